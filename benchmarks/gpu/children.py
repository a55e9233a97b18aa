"""Processes of a benchmark that are told what to do, and answer, by lines of JSON.

Such a process calls `orders`, and says one line for each; whoever has started it as a `Child` sends orders and reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serving import Failed, tail

STOP_S = 10.0

Message = dict[str, Any]


def orders() -> tuple[Iterator[Message], Callable[[Message], object]]:
    """In such a process: the orders, which end when nobody can give any more, and how to answer."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the lines
    return (json.loads(line) for line in sys.stdin), lambda message: out.write(json.dumps(message) + "\n")


class Child:
    """Owns one such process: `python PROGRAM WORDS...`. It ends with the block."""

    def __init__(self, program: Path, *words: str) -> None:
        self._said = tempfile.NamedTemporaryFile("w+", prefix="child")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, str(program), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.pid = self._process.pid

    def order(self, **what: Any) -> None:
        """Tell it something; `answer` has what it says to that."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says more
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()

    def answer(self, within: float) -> Message:
        """Its next line. Raises Failed if there is none within so many seconds."""
        out = self._process.stdout
        assert out is not None
        line = out.readline() if select.select([out], [], [], within)[0] else ""
        if not line:
            how = "ended" if self._process.poll() is not None else f"said nothing for {within:.0f} s"
            raise Failed(f"{self._process.args} {how}:\n{tail(Path(self._said.name).read_text(errors='replace'))}")
        found: Message = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # which ends it
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()
