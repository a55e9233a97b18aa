"""`python -P -m orch_worker.command LINK_FD`: the runner, a process in charge of somebody else's server.

Towards the supervisor it behaves as a worker does: it says loading and ready, ends when its server does, and takes it
along when told to. It sees no request.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orch.child import PR_SET_PDEATHSIG, become_child, first_messages
from orch.errors import Exit
from orch.link import Link
from orch_worker.health import LONG_S, Health
from orch_worker.probe import Probe

# While a server loads, a look that is older than this has met one that was only about to listen, or an answer that does
# not end.
LOADING_ANSWER_S: Final = 10.0
LINGER_S: Final = 1.0
# What a server has started may hold its port for a while after it: killed, it lets go of a GPU first.
PORT_WAIT_S, PORT_LOOK_S = 2.0, 0.05
# What a shell says of a command that it cannot run (POSIX, 2.8.2).
NOT_RUNNABLE: Final = (126, 127)
_LIBC: Final = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Spec:
    """What the supervisor tells a new runner. health: the path to ask for; None: a connection is enough."""

    replica: str
    command: list[str]
    host: str
    port: int
    health: str | None
    health_interval_s: float
    timeout_s: float

    @property
    def where(self) -> str:
        """Where the server is looked at."""
        return f"{self.host}:{self.port}{self.health or ''}"


def main(argv: list[str]) -> int:
    """Start the server, say READY when it answers, watch it; the exit code says how it ended."""
    become_child()
    link = Link(socket.socket(fileno=int(argv[0])))
    messages = first_messages(link)
    if not messages:
        return Exit.ORPHANED
    return Runner(Spec(**messages[0]["spec"]), link).run()


class Runner:
    """Owns the server's process, and the look at its health that is under way."""

    def __init__(self, spec: Spec, link: Link) -> None:
        self._spec, self._link = spec, link
        self._health = Health(spec.where, spec.timeout_s)
        self._selector = selectors.DefaultSelector()
        self._selector.register(link, selectors.EVENT_READ, self._read)
        self._probe: Probe | None = None
        self._looked_at = 0.0  # when the present look, or else the last, began
        self._told_stuck = False
        self._quiet = False  # it leaves: no more connections of ours
        self._stopping = False
        self._code: int | None = None

    def run(self) -> int:
        """Until the server has ended."""
        self._link.send(event="loading")
        if not _comes_free(self._spec.host, self._spec.port):
            holder = holder_of(self._spec.port)
            return self._fail(f"port {self._spec.port} is taken{holder}", Exit.ADDRESS_IN_USE)
        self._catch_term()
        try:
            self._server = subprocess.Popen(
                self._spec.command,
                env=environ_of(os.environ),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_become_server,  # noqa: PLW1509  this process has one thread
            )
        except OSError as err:
            return self._fail(f"{self._spec.command[0]} cannot be run: {err.strerror}", Exit.BAD_CONFIG)
        self._link.send(event="started", pid=self._server.pid)
        pidfd = os.pidfd_open(self._server.pid)
        self._selector.register(pidfd, selectors.EVENT_READ, self._ended)
        while self._code is None:
            for key, _ in self._selector.select(self._wait_s(time.monotonic())):
                if key.fd in self._selector.get_map():  # an earlier callback may have hung up
                    key.data()
            self._look(time.monotonic())
        return self._code

    # --- the server ----------------------------------------------------------------------------------------------

    def _catch_term(self) -> None:
        """SIGTERM becomes something to read."""
        wake, waker = socket.socketpair()
        for end in (wake, waker):
            end.setblocking(False)
        self._waker = waker  # which has to live as long as the handler
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self._selector.register(wake, selectors.EVENT_READ, lambda: self._stop(wake.recv(64)))

    def _stop(self, _numbers: bytes) -> None:
        """Told to leave: so is the server, which may take the time that the supervisor gives us."""
        self._stopping = True
        self._hang_up()
        self._server.terminate()

    def _ended(self) -> None:
        """It has: as it was told to, or by itself."""
        code = self._server.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        if self._stopping:
            self._code = Exit.OK
        elif self._health.ready:
            self._code = self._fail(f"the server {how}", Exit.BUG)
        else:
            exit_code = Exit.BAD_CONFIG if code in NOT_RUNNABLE else Exit.MODEL_LOAD
            hint = "" if code else "; it has to stay in the foreground"
            self._code = self._fail(f"the server {how} before it answered at {self._spec.where}{hint}", exit_code)

    def _kill(self) -> None:
        """At once, with its process group; what has left that is found by its mark."""
        try:
            os.killpg(self._server.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self._server.wait()

    def _fail(self, why: str, code: Exit) -> int:
        self._link.send(event="failed", message=why, exit_code=code)
        return code

    def _read(self) -> None:
        """The supervisor's words, or its end."""
        for message in self._link.receive():
            if message.get("do") == "quiet":
                self._quiet = True
                self._hang_up()
        if self._link.closed:
            self._kill()
            self._code = Exit.ORPHANED

    # --- its health ----------------------------------------------------------------------------------------------

    def _wait_s(self, now: float) -> float | None:
        if self._stopping or self._quiet:
            return None
        if self._probe is None:
            return max(0.0, self._looked_at + self._interval_s(now) - now)
        return LINGER_S if self._probe.partial() else max(0.0, self._give_up_at - now)

    def _interval_s(self, now: float) -> float:
        return self._spec.health_interval_s if self._health.ready else self._health.loading_look_s(now)

    @property
    def _give_up_at(self) -> float:
        return self._looked_at + (self._spec.timeout_s if self._health.ready else LOADING_ANSWER_S)

    def _look(self, now: float) -> None:
        """Begin a look when it is time, and end one that has taken too long."""
        if self._quiet or self._stopping or self._code is not None:
            return
        if self._probe is None and now >= self._looked_at + self._interval_s(now):
            self._looked_at = now
            with contextlib.suppress(OSError):  # no descriptor to be had: the next look may have one
                self._probe = Probe(self._spec.host, self._spec.port, self._spec.health)
                self._selector.register(self._probe, self._probe.events, self._advance)
        elif self._probe is not None and now >= self._looked_at + LINGER_S and self._probe.partial():
            self._advance()
        if self._probe is not None and now > self._give_up_at:
            self._judge(now - self._looked_at)
            self._hang_up()

    def _advance(self) -> None:
        probe, now = self._probe, time.monotonic()
        if probe is None:
            return
        answer = probe.advance()
        if answer is None and now >= self._looked_at + LINGER_S:
            answer = probe.partial()
        if answer is None:
            self._selector.modify(probe, probe.events, self._advance)
            return
        self._hang_up()
        news = answer != self._health.last
        was_ready = self._health.ready
        self._health.heard(answer, now)
        if self._health.ready and not was_ready:
            self._link.send(event="ready")
        elif not self._health.ready and news:
            self._link.send(event="waiting", message=self._health.waiting_for)
        elif self._health.is_stuck(now) and not self._told_stuck:
            self._told_stuck = True
            self._link.send(event="waiting", message=self._health.waiting_for, for_s=LONG_S)
        self._judge(0.0)

    def _judge(self, silent_s: float) -> None:
        if (why := self._health.why_ill(silent_s)) is not None and not self._stopping:
            self._kill()
            self._code = self._fail(why, Exit.BUG)

    def _hang_up(self) -> None:
        if self._probe is not None:
            self._selector.unregister(self._probe)
            self._probe.close()
            self._probe = None


def environ_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: ours, less what only children of the supervisor go by."""
    return {key: value for key, value in environ.items() if key != "ORCH_SUPERVISOR_PID"}


def _comes_free(host: str, port: int) -> bool:
    """Whether nobody listens on a port, now or within PORT_WAIT_S."""
    until = time.monotonic() + PORT_WAIT_S
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended is not in the way
            try:
                trial.bind((host, port))
            except OSError:
                if time.monotonic() > until:
                    return False
            else:
                return True
        time.sleep(PORT_LOOK_S)


def holder_of(port: int) -> str:
    """Who listens on a port, for a sentence: " by process 12 (nginx)", or nothing."""
    import psutil

    try:
        for each in psutil.net_connections("tcp"):
            if each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN and each.pid:
                return f" by process {each.pid} ({psutil.Process(each.pid).name()})"
    except psutil.Error:
        pass  # another user's: the kernel does not tell
    return ""


def _become_server() -> None:
    """Between fork and exec: die with this process, and heed Ctrl-C again, which no terminal sends there."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
