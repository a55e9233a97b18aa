"""A server under test: started, watched from outside, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from benchmarks.peers.rows import Row

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 10.0
POLL_S = 0.02


class ServerFailed(Exception):
    """It did not come up, or gave a wrong answer; the message says which, with the end of what it printed."""


class Server:
    """Owns the process that holds the server, and the folder with all that it leaves.

    python: the interpreter to run it with.
    """

    def __init__(self, row: Row, workload: str, python: Path) -> None:
        self.row = row
        self.workload = workload
        self.folder = Path(tempfile.mkdtemp(prefix="ob"))
        self.port = _free_port()
        self._output = (self.folder / "output").open("wb")
        path, form = row.asked(workload)
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ORCH_")},
            "PATH": f"{python.parent}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(ROOT),
            "BENCH_WORKLOAD": workload,
            "BENCH_PORT": str(self.port),
            "BENCH_FOLDER": str(self.folder),
            "BENCH_FRONT": f"tcp://127.0.0.1:{self.port}" if row.front == "tcp" else f"ipc://{self.folder}/front",
            "BENCH_BATCHED": "1" if row.batched or workload == "batch" else "",
            "BENCH_PATH": path,
            "BENCH_FORM": form,
            "BENCH_GATEWAYS": str(row.gateways),
            "ORCH_RUNTIME_DIR": str(self.folder / "r"),
            "ORCH_STATE_DIR": str(self.folder / "s"),
        }
        hold = [sys.executable, "-m", "benchmarks.peers.hold"]
        self._hold = psutil.Popen(
            [*hold, str(python), "-m", f"benchmarks.peers.servers.{row.module or row.name}"],
            cwd=ROOT,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def processes(self) -> list[psutil.Process]:
        """All of the server's: launchers, balancers, workers, and orphans of these."""
        return self._hold.children(recursive=True) if self._hold.is_running() else []

    def cpu_s(self) -> float:
        """User and system seconds of all of them so far."""
        return sum(cpu_s(process) for process in self.processes())

    def workers(self) -> set[int]:
        """Pids of the workers that are up."""
        folder = self.folder / "workers"
        said = {int(path.name) for path in folder.iterdir()} if folder.is_dir() else set()
        return said & {process.pid for process in self.processes()}

    def wait_for_workers(self, within_s: float) -> None:
        """Until all have said that they are there. Raises ServerFailed."""
        deadline = time.monotonic() + within_s
        while len(self.workers()) < self.row.workers:
            if self._hold.poll() is not None:
                raise self.failed(f"it ended with {self._hold.returncode}")
            if time.monotonic() > deadline:
                raise self.failed(f"{len(self.workers())} of {self.row.workers} workers within {within_s:g} s")
            time.sleep(POLL_S)

    def failed(self, why: str) -> ServerFailed:
        """The error to raise."""
        said = (self.folder / "output").read_text(errors="replace").strip().splitlines()[-3:]
        return ServerFailed(" | ".join([f"{self.row.name}: {why}", *said])[:600])

    def kill_a_worker(self) -> None:
        """The oldest of them, by SIGKILL."""
        os.kill(min(self.workers()), signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hold.poll() is None:
            self._hold.terminate()
        try:
            self._hold.wait(STOP_S)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            for process in [*self.processes(), self._hold]:
                process.kill()
        self._output.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def cpu_s(process: psutil.Process) -> float:
    """User and system seconds of one process; 0 of one that is gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
