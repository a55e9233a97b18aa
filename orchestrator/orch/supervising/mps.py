"""CUDA MPS: a private control daemon, so that the replicas of a GPU run at the same time and not in turns.

Ours alone: its own pipe and log directories under the instance's runtime directory, named GPUs, started and ended by
us; another user's daemon is never talked to. Nothing of the card's settings is changed. What the commands answer is in
NVIDIA's "Multi-Process Service" guide, and was seen with driver 580.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from orch.planning.cards import Gpu
from orch.supervising.output import Lines
from orch.supervising.reactor import Reactor

LOG_NAME = "mps"
# What a command comes to when the daemon is gone, hung or refuses.
UNANSWERED = (OSError, subprocess.SubprocessError)
CONTROL, SERVER = "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"
# A command is answered in some 10 ms; a daemon that takes this long is hung.
ASK_S = 5.0
START_S = 10.0
QUIT_S = 3.0
PAUSE_S = 0.02
# Client contexts that one server takes per device: 48 up to CUDA 13.0, 60 after; each replica is one client.
MAX_CLIENTS = 48
# The first architecture whose clients have address spaces of their own.
VOLTA = (7, 0)


def why_not(gpus: Sequence[Gpu], which: Callable[[str], str | None] = shutil.which) -> str | None:
    """Why MPS cannot be used on these GPUs, or None."""
    missing = [binary for binary in (CONTROL, SERVER) if which(binary) is None]
    if missing:
        return f"{' and '.join(missing)} not found on PATH"
    for gpu in gpus:
        if gpu.mig:
            return f"{gpu.name} is a MIG instance"
        if gpu.compute_mode not in (None, "DEFAULT", "EXCLUSIVE_PROCESS"):
            return f"{gpu.name} is in compute mode {gpu.compute_mode}"
        if gpu.compute_capability is not None and gpu.compute_capability < VOLTA:
            return f"{gpu.name} is older than Volta"
    return None


class Owner(Protocol):
    """What the daemon tells its supervisor."""

    def printed(self, name: str, line: str) -> None:
        """It has printed a line."""

    def mps_died(self, what: str) -> None:
        """The daemon, or its server, is gone: every client on its GPUs is lost."""


class Mps:
    """Owns the control daemon. Its server is started by it with the first client, under our user.

    Raises:
        OSError, subprocess.SubprocessError: the daemon did not come up.
    """

    def __init__(
        self, directory: Path, uuids: Sequence[str], environ: Mapping[str, str], reactor: Reactor, owner: Owner
    ) -> None:
        self._pipe, self._log = directory / "mps", directory / "mps-log"
        for path in (self._pipe, self._log):
            path.mkdir(mode=0o700, exist_ok=True)
        self._environ = {
            **environ,
            "CUDA_MPS_PIPE_DIRECTORY": str(self._pipe),
            "CUDA_MPS_LOG_DIRECTORY": str(self._log),
            "CUDA_VISIBLE_DEVICES": ",".join(uuids),
        }
        self._reactor = reactor
        self._owner = owner
        self._server_fd: int | None = None
        self._server_pid: int | None = None
        self._ending = False
        self._start()

    def _start(self) -> None:
        # In the foreground, so that it is our child; the server it forks inherits the instance's mark.
        self._process = subprocess.Popen(
            [CONTROL, "-f"],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._lines = Lines(self._process.stdout.read, lambda line: self._owner.printed(LOG_NAME, line))
        self._reactor.add_lines(self._process.stdout, self._lines)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._reactor.add(self._pidfd, lambda: self._died("the MPS control daemon"))

    def environ(self, fence_bytes: int | None, thread_percentage: int | None = None) -> dict[str, str]:
        """What makes a worker a client. fence_bytes: device memory it may take at most, its context included."""
        found = {"CUDA_MPS_PIPE_DIRECTORY": str(self._pipe), "CUDA_MPS_LOG_DIRECTORY": str(self._log)}
        if fence_bytes is not None:
            # By the client's own count, which sees one device. Naming one that it does not see voids the whole limit.
            found["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"] = f"0={-(-fence_bytes // 2**20)}M"
        if thread_percentage is not None:
            found["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(thread_percentage)
        return found

    def wait_until_up(self) -> None:
        """Until it takes commands; a worker that came before would miss it.

        Raises:
            OSError, subprocess.SubprocessError: it does not, within START_S.
        """
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._ask("get_server_list")
            except UNANSWERED:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(PAUSE_S)
            else:
                return

    def is_attached(self, pids: Collection[int]) -> bool:
        """Whether a worker is a client of our server. One that missed the pipe would run in turns, and say nothing.

        pids: of its processes.
        """
        try:
            for server in self._servers():
                if not set(pids).isdisjoint(numbers(self._ask(f"get_client_list {server}"))):
                    self._watch_server(server)
                    return True
        except UNANSWERED:
            pass  # the daemon is dying: its own end is told to the owner, and there is nothing to be attached to
        return False

    def has_fault(self) -> bool:
        """Whether a client's fault has been reported to all: nobody new is taken until every one of them is gone."""
        try:
            return any("FAULT" in self._ask(f"get_server_status {server}").upper() for server in self._servers())
        except UNANSWERED:
            return True

    def terminate_client(self, pids: Collection[int]) -> None:
        """Take a client off the GPU before it is killed: a SIGKILL amid its kernels may wedge the server.

        pids: of the processes of a worker, some of which are clients.
        """
        try:
            for server in self._servers():
                clients = pids if len(pids) == 1 else {*pids} & {*numbers(self._ask(f"get_client_list {server}"))}
                for pid in clients:
                    self._ask(f"terminate_client {server} {pid}")
        except UNANSWERED:
            pass  # then the SIGKILL has to do

    def close(self) -> None:
        """End the daemon and its server."""
        if self._ending:
            return
        self._ending = True
        self._forget()
        try:
            self._ask("quit")
            self._process.wait(QUIT_S)
        except UNANSWERED:
            pass
        for pid in filter(None, (self._server_pid, self._process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        shutil.rmtree(self._pipe, ignore_errors=True)
        shutil.rmtree(self._log, ignore_errors=True)

    def _servers(self) -> list[int]:
        return numbers(self._ask("get_server_list"))

    def _ask(self, command: str) -> str:
        answer = subprocess.run(
            [CONTROL],
            input=command + "\n",
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=True,
        )
        return answer.stdout

    def _watch_server(self, pid: int) -> None:
        if self._server_pid != pid:
            self._forget_server()
            self._server_pid, self._server_fd = pid, os.pidfd_open(pid)
            self._reactor.add(self._server_fd, lambda: self._died("the MPS server"))

    def _died(self, what: str) -> None:
        self._forget()
        if not self._ending:
            self._owner.mps_died(what)

    def _forget(self) -> None:
        self._forget_server()
        self._reactor.remove(self._pidfd)
        if self._process.stdout is not None:
            self._reactor.remove(self._process.stdout)

    def _forget_server(self) -> None:
        if self._server_fd is not None:
            self._reactor.remove(self._server_fd)
            os.close(self._server_fd)
            self._server_fd = None


def numbers(text: str) -> list[int]:
    """The whole numbers of a list that the daemon printed, one a line."""
    return [int(word) for word in text.split() if word.isdigit()]
