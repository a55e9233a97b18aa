"""A service manager for tests: plays systemd for one service, by the same protocol and with the same deadlines.

Of Type=notify, NotifyAccess=main, Restart=always and KillMode=mixed: it takes notifications of the main process alone
(SO_PASSCRED), gives a start and a stop their time and more where that is asked for, ends a service whose watchdog is
not fed by SIGABRT, kills what is left of it, and starts it again. It holds the service's listening socket meanwhile.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.process.harness import FACTOR, STOP_S, Place, eventually

UCRED = struct.Struct("3i")  # pid, uid, gid (unix(7))
LOOK_S = 0.02
# Puts the listener where sd_listen_fds(3) has it, says whom it is for, and becomes the service.
EXEC = (
    "import os, sys\n"
    "if int(sys.argv[1]) >= 0:\n"
    "    os.dup2(int(sys.argv[1]), 3)\n"
    "    os.environ['LISTEN_PID'] = str(os.getpid())\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True)
class Notice:
    """One line that a process has sent."""

    at: float
    pid: int
    line: str


class Manager:
    """Owns the service's process, the notification socket, and the listener where there is one."""

    def __init__(
        self,
        place: Place,
        *words: str,
        watchdog_s: float | None = None,
        abstract: bool = False,
        holds_port: bool = False,
    ) -> None:
        self.place, self._words = place, words
        self._watchdog_s = watchdog_s * FACTOR if watchdog_s is not None else None
        self.notices: list[Notice] = []
        self.starts: list[int] = []  # pids of main processes
        self.aborted = 0
        self.exit_codes: list[int] = []
        self._address = f"@{place.base.name}" if abstract else str(place.base / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("\0" + self._address[1:] if abstract else self._address)
        self._socket.settimeout(LOOK_S)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024) if holds_port else None
        self._output = (place.base / "journal").open("a+b")
        self._state = "start"  # start, running, reload, stop
        self._deadline = time.monotonic() + STOP_S * FACTOR
        self._again = True
        self._ended = False
        self._start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._again = False
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._thread.join(STOP_S * FACTOR)
        self._ended = True
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self._socket.close()
        self._output.close()
        if self.listener is not None:
            self.listener.close()

    # --- what tests see

    @property
    def pid(self) -> int:
        """The main process now."""
        return self.starts[-1]

    @property
    def state(self) -> str:
        """What systemctl would show: start, running, reload or stop."""
        return self._state

    def lines(self, key: str) -> list[str]:
        """What was said of it."""
        return [each.line for each in list(self.notices) if each.line.startswith(f"{key}=")]

    def output(self) -> str:
        """What the service has written, of all its lives."""
        return (self.place.base / "journal").read_text(errors="replace")

    def await_running(self, starts: int = 1, within: float = STOP_S) -> None:
        """Until the service is ready in that life."""
        eventually(lambda: len(self.starts) == starts and self._state == "running", within)

    def signal(self, number: signal.Signals) -> None:
        """To the main process."""
        os.kill(self.pid, number)

    def stop(self) -> int:
        """For good; its exit code."""
        self._again = False
        self.signal(signal.SIGTERM)
        eventually(lambda: not self._thread.is_alive(), STOP_S)
        return self.exit_codes[-1]

    # --- inside

    def _start(self) -> None:
        environ = self.place.environ({"NOTIFY_SOCKET": self._address})
        found = os.fstat(self._output.fileno())
        environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
        if self._watchdog_s is not None:
            environ["WATCHDOG_USEC"] = str(round(self._watchdog_s * 1e6))
        fd = -1
        if self.listener is not None:
            fd = self.listener.fileno()
            environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
            environ.pop("ORCH_HTTP")
        self._state, self._deadline = "start", time.monotonic() + STOP_S * FACTOR
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", EXEC, str(fd), sys.executable, "-P", "-m", "orch_cli", *self._words],
            env=environ, cwd=self.place.base, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
            pass_fds=[fd] if fd >= 0 else [],
        )  # fmt: skip
        self.starts.append(self._process.pid)

    def _run(self) -> None:
        while not self._ended:
            try:
                data, creds, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(UCRED.size))
            except TimeoutError:
                pass
            else:
                self._notified(data, creds)
            code = self._process.poll()
            if code is not None:
                self.exit_codes.append(code)
                for pid in self.place.processes():
                    os.kill(pid, signal.SIGKILL)
                eventually(lambda: not self.place.processes())
                if not self._again:
                    return
                self._start()
            elif self._state != "stop" and time.monotonic() > self._deadline:
                self.aborted += 1
                self._deadline = time.monotonic() + STOP_S * FACTOR
                self._process.send_signal(signal.SIGABRT)
                self._process.send_signal(signal.SIGCONT)  # as systemd does: a stopped process must not miss it

    def _notified(self, data: bytes, creds: Sequence[tuple[int, int, Any]]) -> None:
        pid = UCRED.unpack(creds[0][2])[0]
        now = time.monotonic()
        lines = data.decode().split("\n")
        self.notices += [Notice(now, pid, line) for line in lines]
        if pid != self._process.pid:  # NotifyAccess=main
            return
        for line in lines:
            key, _, value = line.partition("=")
            match key:
                case "READY":
                    self._state = "running"
                    self._feed(now)
                case "RELOADING":
                    self._state = "reload"
                case "STOPPING":
                    self._state = "stop"
                case "WATCHDOG" if self._state in ("running", "reload"):
                    self._feed(now)
                case "EXTEND_TIMEOUT_USEC" if self._state == "start":
                    self._deadline = max(self._deadline, now + int(value) / 1e6)
                case "MAINPID":
                    assert int(value) == pid

    def _feed(self, now: float) -> None:
        self._deadline = float("inf") if self._watchdog_s is None else now + self._watchdog_s
