"""Plain processes that run a model in a loop, with nothing of orch's serving: what a benchmark is held against.

`python bare.py TARGET DEVICE SETTINGS REQUEST` is one of them: it loads, says so on a line of JSON, and runs the
request from one moment to another for each line that asks it to.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from serving import Failed, tail

from orch.supervising.mps import CONTROL, numbers

LOAD_S = 120.0
STOP_S, POLL_S = 10.0, 0.05
# What processes need to wake up and take their line before the moment at which all begin.
LEAD_S = 0.3


def main(argv: list[str]) -> None:
    """One process."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not get between the lines
    from orch_worker.target import load_target

    target, device, settings, request = argv[0], argv[1], json.loads(argv[2]), json.loads(argv[3])
    model = load_target(target, settings)
    model.load(device)
    for _ in range(3):
        model.predict([request])
    out.write(json.dumps({"pid": os.getpid(), "gap_s": getattr(model, "gap_s", None)}) + "\n")
    for line in sys.stdin:
        order = json.loads(line)
        time.sleep(max(0.0, order["begin"] - time.monotonic()))
        moments: list[float] = []
        while not moments or moments[-1] < order["end"]:
            answer = model.predict([request])[0]
            moments.append(time.monotonic())
        out.write(json.dumps({"moments": moments, "answer": answer}) + "\n")


class Bare:
    """Owns some plain processes that have loaded a model; the first of them can be set to work."""

    def __init__(self, target: str, device: str, settings: Mapping[str, Any], request: Any) -> None:
        self._words = [target, device, json.dumps(dict(settings)), json.dumps(request)]
        self._children: list[subprocess.Popen[str]] = []
        self._said = tempfile.NamedTemporaryFile("w+", prefix="bare")  # noqa: SIM115  closed in __exit__
        self.facts: list[dict[str, Any]] = []

    def start(self, count: int, environ: Mapping[str, str]) -> None:
        """Start so many, and wait until all have loaded."""
        for _ in range(count):
            self._children.append(
                subprocess.Popen(
                    [sys.executable, str(Path(__file__).resolve()), *self._words],
                    env={**os.environ, **environ},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._said,
                    text=True,
                )
            )
        deadline = time.monotonic() + LOAD_S
        self.facts = [self._line(child, deadline - time.monotonic()) for child in self._children]

    def run(self, count: int, ramp_s: float, seconds: float) -> tuple[list[dict[str, Any]], float, float]:
        """Set the first `count` to work at once; what each did, and the window to count in."""
        begin = time.monotonic() + LEAD_S
        end = begin + ramp_s + seconds
        working = self._children[:count]
        for child in working:
            assert child.stdin is not None
            child.stdin.write(json.dumps({"begin": begin, "end": end}) + "\n")
            child.stdin.flush()
        return [self._line(child, LEAD_S + ramp_s + seconds + LOAD_S) for child in working], begin + ramp_s, end

    def _line(self, child: subprocess.Popen[str], within: float) -> dict[str, Any]:
        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], max(0.0, within))
        line = child.stdout.readline() if readable else ""
        if not line:
            how = "ended" if readable else f"said nothing for {within:.0f} s"
            raise Failed(f"a bare process {how}:\n{tail(Path(self._said.name).read_text(errors='replace'))}")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            assert child.stdin is not None
            with contextlib.suppress(OSError):
                child.stdin.close()  # which ends it
        for child in self._children:
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._said.close()


@contextlib.contextmanager
def mps_daemon(base: Path) -> Iterator[dict[str, str]]:
    """A private MPS control daemon; yields what makes a process its client."""
    pipe, log = base / "mps", base / "mps-log"
    pipe.mkdir(mode=0o700)
    log.mkdir(mode=0o700)
    environ = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}
    with (log / "daemon.out").open("wb") as out:
        daemon = subprocess.Popen(
            [CONTROL, "-f"],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    servers: list[int] = []
    try:
        _await_daemon(daemon, environ, log)
        yield environ
        servers = numbers(ask(environ, "get_server_list") or "")
    finally:
        ask(environ, "quit")
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(STOP_S)
        for pid in (*servers, daemon.pid):
            if pid != daemon.pid or daemon.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        daemon.wait()


def ask(environ: Mapping[str, str], command: str) -> str | None:
    """One command to the daemon; None where it does not answer."""
    try:
        asked = subprocess.run(
            [CONTROL],
            input=f"{command}\n",
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            timeout=STOP_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout


def clients(environ: Mapping[str, str]) -> set[int]:
    """Processes that the daemon's servers have as clients."""
    servers = numbers(ask(environ, "get_server_list") or "")
    return {pid for server in servers for pid in numbers(ask(environ, f"get_client_list {server}") or "")}


def _await_daemon(daemon: subprocess.Popen[bytes], environ: Mapping[str, str], log: Path) -> None:
    deadline = time.monotonic() + STOP_S
    while ask(environ, "get_server_list") is None:
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"{CONTROL} did not come up:\n{tail((log / 'daemon.out').read_text(errors='replace'))}")
        time.sleep(POLL_S)


if __name__ == "__main__":
    main(sys.argv[1:])
