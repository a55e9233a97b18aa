"""A client process: it does what its standard input says, one JSON object a line, and answers likewise.

{"do": "check", "within_s": 30}                                    {"wrong": null} once an answer is right
{"do": "load", "outstanding": 64, "seconds": 3, "patience_s": null}   what it saw: see `Seen.told`
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from benchmarks.peers.bodies import body_of, tensor
from benchmarks.peers.figures import histogram

WORKLOAD = os.environ["BENCH_WORKLOAD"]
PORT = int(os.environ["BENCH_PORT"])
IS_TENSOR = WORKLOAD == "tensor"
TENSOR, BODY = tensor(), body_of(WORKLOAD)
MEAN, MEAN_TOLERANCE = float(TENSOR.mean()), 1e-4
RETRY_S = 0.02


@dataclass
class Seen:
    """What one run of load saw; times are those of time.monotonic()."""

    began_at: float = 0.0
    took_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def told(self, *, timeline: bool) -> dict[str, Any]:
        """For the driver. timeline: with the moment of each answer."""
        return {
            "answered": len(self.latencies_s),
            "took_s": self.took_s,
            "errors": len(self.errors),
            "kinds": sorted(set(self.errors))[:5],
            "latencies_us": histogram(self.latencies_s),
            "began_at": self.began_at,
            "answered_at": self.answered_at if timeline else [],
        }


class Target(Protocol):
    """One kind of client."""

    def ask(self, timeout_s: float) -> Any:
        """One answer. Raises whatever it likes while nobody is there."""

    def load(self, outstanding: int, seconds: float, patience_s: float | None) -> Seen:
        """Keep that many requests under way. patience_s: what is not answered by then is an error, and replaced."""


def is_right(answer: Any) -> bool:
    """Whether an answer, bytes or a number, is what the workload gives."""
    if not IS_TENSOR:
        return bool(answer == BODY)
    mean = np.frombuffer(answer, np.float32)[0] if isinstance(answer, (bytes, memoryview)) else answer
    return bool(abs(mean - MEAN) < MEAN_TOLERANCE)


def serve(connect: Callable[[], Target]) -> None:
    """Until the end of the standard input."""
    target: Target | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "check":
            target, wrong = _check(target, connect, asked["within_s"])
            told: dict[str, Any] = {"wrong": wrong}
        else:
            assert target is not None, "a check comes first"
            patience_s = asked["patience_s"]
            seen = target.load(asked["outstanding"], asked["seconds"], patience_s)
            told = seen.told(timeline=patience_s is not None)
        print(json.dumps(told), flush=True)


def _check(target: Target | None, connect: Callable[[], Target], within_s: float) -> tuple[Target | None, str | None]:
    """A client that has got a right answer; or what is wrong."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            target = target or connect()
            answer = target.ask(min(1.0, within_s))
        except Exception as err:  # noqa: BLE001  whatever it is: the server is not there yet, or never will be
            wrong = f"no answer within {within_s:g} s: {type(err).__name__}: {err}"
            if time.monotonic() > deadline:
                return target, wrong
            time.sleep(RETRY_S)
        else:
            return target, None if is_right(answer) else f"a wrong answer: {answer!r}"[:200]
