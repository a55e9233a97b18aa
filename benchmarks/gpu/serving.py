"""An orch instance of its own for a benchmark: started, waited for, driven, and gone afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkout import SOURCES

from orch import Client
from orch.errors import NotRunning, OrchError
from orch.planning import gpu
from orch.planning.cards import Gpu
from orch.supervising import control, mps

MODELS = Path(__file__).resolve().parent / "models"
POLL_S = 0.1
STOP_S = 60.0
ANSWER_S = 120.0


class Failed(Exception):
    """The benchmark cannot go on; the text says why, and what to do."""


def check_machine(device: str, *, mps_too: bool = True) -> None:
    """Raises Failed, with the name of each thing that the machine lacks."""
    lacks = []
    try:
        import torch
    except ImportError:
        lacks.append("torch (pip install torch)")
    else:
        if device != "cpu" and not torch.cuda.is_available():
            lacks.append("a CUDA device that torch can use")
    if device != "cpu":
        cards = gpu.read_gpus()
        lacks += [] if cards else [gpu.why_none()]
        reason = mps.why_not(cards) if mps_too else None
        lacks += [f"CUDA MPS: {reason}"] if reason else []
    if not hasattr(os, "pidfd_open"):
        lacks.append("pidfd_open (Linux 5.3, Python 3.9)")
    if lacks:
        raise Failed(f"this machine lacks: {'; '.join(lacks)}. --device cpu runs a tiny version of everything")


def the_card(device: str) -> Gpu | None:
    """The first GPU as it is now; None on the CPU."""
    found = gpu.read_gpus() if device != "cpu" else ()
    return found[0] if found else None


@contextlib.contextmanager
def a_place() -> Iterator[Path]:
    """A runtime and a state directory of our own, in the environment of this process and its children.

    SIGTERM ends the program as an exception does, so that nothing stays behind.
    """
    base = Path(tempfile.mkdtemp(prefix="o", dir="/tmp"))  # short: sockets lie in it
    for name in [name for name in os.environ if name.startswith("ORCH_")]:
        del os.environ[name]
    os.environ |= {"ORCH_RUNTIME_DIR": str(base / "r"), "ORCH_STATE_DIR": str(base / "s")}
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *SOURCES])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


@dataclass
class Instance:
    """One `orch up`."""

    name: str
    process: subprocess.Popen[bytes]
    printed: Path

    def output(self) -> str:
        """All that it has printed."""
        return self.printed.read_text(errors="replace")

    def logs(self) -> str:
        """All that its replicas and its supervisor have written."""
        folder = Path(os.environ["ORCH_STATE_DIR"]) / self.name
        return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.log")))

    def status(self) -> dict[str, Any]:
        """What `orch status --json` shows; nothing while nobody answers."""
        try:
            return control.call(self.name, "status")
        except NotRunning:
            return {}

    def scale(self, replicas: int) -> None:
        """`orch scale`. Raises OrchError where it is refused."""
        control.call(self.name, "scale", replicas=replicas)

    def settle(self, within: float, replicas: int | None = None) -> dict[str, Any]:
        """Wait until every replica serves and none is about to leave or to come; the status then.

        Raises Failed if it ends, or takes longer than `within` seconds.
        """
        deadline = time.monotonic() + within
        while True:
            status = self.status()
            rows = status.get("replicas", [])
            if status.get("settled") and replicas in (None, len(rows)):
                return status
            if self.process.poll() is not None:
                raise Failed(f"orch up ended with {self.process.returncode}:\n{tail(self.output())}")
            if time.monotonic() > deadline:
                states = [(row["id"], row["state"], row["reason"]) for row in rows]
                raise Failed(f"not settled after {within:.0f} s: {states}\n{tail(self.output())}")
            time.sleep(POLL_S)

    def stop(self) -> int:
        """SIGTERM, twice if need be, and the exit code."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(STOP_S / 2)
        return self.process.wait()


@contextlib.contextmanager
def serve(base: Path, target: str, *options: str, name: str = "bench") -> Iterator[Instance]:
    """`orch up`, and its end: SIGTERM, which has to be answered with exit code 0."""
    command = [sys.executable, "-P", "-m", "orch_cli", "up", target, "--name", name, "--no-http", *options]
    printed = base / f"{name}.out"
    with printed.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    instance = Instance(name, process, printed)
    try:
        yield instance
    except BaseException:
        instance.stop()
        raise
    if (code := instance.stop()) != 0:
        raise Failed(f"orch up ended with {code}:\n{tail(instance.output())}")


@dataclass
class Answers:
    """What came back from a closed loop: (moment, answer) each, the moments monotonic seconds."""

    done: list[tuple[float, Any]] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


def closed_loop(client: Client, request: Callable[[int], Any], outstanding: int, until: float) -> Answers:
    """Keep requests under way until the moment `until`: each answer sends the next. The errors of any are kept."""
    answers, ended, lock, num_sent = Answers(), threading.Semaphore(0), threading.Lock(), 0

    def send() -> None:
        nonlocal num_sent
        with lock:
            number, num_sent = num_sent, num_sent + 1
        try:
            client.submit(request(number)).add_done_callback(answered)
        except Exception as err:  # noqa: BLE001  whatever it is, it ends this one of the loops
            answers.errors.append(err)
            ended.release()

    def answered(future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            answers.errors.append(error)
            ended.release()
            return
        answers.done.append((time.monotonic(), future.result()))
        if time.monotonic() < until:
            send()
        else:
            ended.release()

    for _ in range(outstanding):
        send()
    deadline = until + ANSWER_S
    for _ in range(outstanding):
        if not ended.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise Failed(f"a request was not answered within {ANSWER_S:.0f} s")
    return answers


def rate(moments: Sequence[float], begin: float, end: float) -> float:
    """Answers per second of one worker: intervals between those inside the window, so that no edge is counted."""
    inside = [moment for moment in moments if begin <= moment <= end]
    if len(inside) < 2:
        return len(inside) / (end - begin)
    return (len(inside) - 1) / (inside[-1] - inside[0])


class Results:
    """Owns the result file: a JSON object that is written whole after each figure, so that a next run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        except ValueError as err:
            raise Failed(f"{path} is no result file of this program ({err}); name another with --out") from None

    def put(self, key: str, row: Any) -> None:
        """Keep one figure."""
        self.rows[key] = row
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.rows, indent=1) + "\n")
        new.replace(self.path)


def tail(text: str, lines: int = 25) -> str:
    """The end of a long output."""
    return "\n".join(text.splitlines()[-lines:])


def run(main: Callable[[], int]) -> None:
    """The program; what stops it is told in plain words."""
    try:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        code = main()
    except (Failed, OrchError) as err:
        print(f"FAILED: {err}", flush=True)
        code = 1
    raise SystemExit(code)
