"""The service manager that has started us, if one has: what it is told goes to its socket from here.

Under systemd that is a unit of Type=notify. The variables that lead there are taken out of the environment, so that
nothing that we start takes itself for the service.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final

from orch.errors import ConfigError, OrchError
from orch.link import Message
from orch.page import Phase as Running
from orch.supervising import notify, status
from orch.supervising.control import Caller
from orch.supervising.fleet import Fleet
from orch.supervising.notify import Notices, Phase, Seen
from orch.supervising.replica import ALIVE, Replica, State
from orch.supervising.roster import Roster

MOVING: Final = (State.DRAINING, State.PLANNED, State.STARTING, State.LOADING)


class Service:
    """Owns the socket, what was said there, and who waits for the end of a rolling restart.

    Raises:
        ConfigError: the variables are there, and are none of the protocol.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
        self.managed = bool(address)
        self._waiting: list[tuple[Caller, Mapping[str, int]]] = []
        self._restarting = False
        if not self.managed:
            return
        self._address = _address(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._unsent: list[str] = []
        watched = pid == str(os.getpid()) and usec.isascii() and usec.isdecimal() and int(usec) > 0
        self._notices = Notices(int(usec) / 1e6 if watched else None, os.getpid())
        faulthandler.enable()  # the watchdog ends us by SIGABRT: then the journal says where we were

    def close(self) -> None:
        """Nothing more is said."""
        if self.managed:
            self._socket.close()
            faulthandler.disable()

    # --- what the supervisor tells -------------------------------------------------------------------------------

    def reloads(self, number: int) -> bool:
        """Whether a signal asks for a rolling restart. A hangup does where no terminal can hang up."""
        return self.managed and number == signal.SIGHUP

    def restarts(self, caller: Caller | None = None, asked: Mapping[str, int] | None = None) -> None:
        """A rolling restart has begun. caller: is answered at its end. asked: for whom, with their generations now."""
        self._restarting = True
        if caller is not None:
            self._waiting.append((caller, asked or {}))

    def asks(self, now: float) -> bool:
        """Whether the balancer is to be asked for its figures now."""
        return self.managed and self._notices.asks(now)

    def answered(self, now: float) -> None:
        """The balancer has told its figures."""
        if self.managed:
            self._notices.answered(now)

    def failed(self, error: OrchError) -> None:
        """The last word."""
        if self.managed:
            self._send([f"STATUS={notify.one_line(str(error))}"])

    def tick(
        self, now: float, roster: Roster, fleet: Fleet, stats: Message, drain_until: float | None, *, stopping: bool
    ) -> None:
        """Say what is to be said."""
        if self._restarting and (stopping or (roster.rolling.idle and not fleet.in_state(*MOVING))):
            self._restarting = False
            self._answer(fleet, stopping=stopping)
        if not self.managed:
            return
        phase = Phase.STOPPING if stopping else Phase.SERVING if roster.ever_ready else Phase.STARTING
        queue = status.queue_facts(stats)
        ends = [at for each in fleet.in_state(*ALIVE) if (at := each.next_deadline()) is not None]
        ends += [] if drain_until is None else [drain_until]
        seen = Seen(
            phase,
            {each.id: str(each.state) for each in fleet.replicas.values()},
            until=now if roster.waits_for_gpus else max(ends, default=None),
            stuck=tuple(stuck(fleet, now)),
            restarting=self._restarting,
            num_answered=queue["answered"] if "queue" in stats else None,
            num_unanswered=queue["queued"] + queue["outstanding"],
            waits_for="another instance starts on the same GPU" if roster.waits_for_gpus else "",
        )
        self._send(self._notices.look(seen, now))

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._notices.next_deadline() if self.managed else None

    # --- inside --------------------------------------------------------------------------------------------------

    def _answer(self, fleet: Fleet, *, stopping: bool) -> None:
        waiting, self._waiting = self._waiting, []
        for caller, asked in waiting:
            if stopping:
                caller.refuse(OrchError("told to stop before every replica was restarted"))
            elif down := not_back(asked, fleet.replicas):
                caller.refuse(OrchError(f"not every replica came back: {'; '.join(down)}"))
            else:
                what = f"{len(asked)} replicas" if len(asked) > 1 else "".join(asked)
                caller.answer(text=f"{what} restarted", replicas=len(asked))

    def _send(self, lines: list[str]) -> None:
        """One datagram. A manager that takes none now gets it with the next: what is said is true for a while."""
        self._unsent += lines
        if self._unsent:
            try:
                self._socket.sendto("\n".join(self._unsent).encode(), self._address)
            except BlockingIOError:
                return
            except OSError:
                pass  # the manager is being replaced; it asks for nothing that was said
            self._unsent.clear()


def not_back(asked: Mapping[str, int], replicas: Mapping[str, Replica]) -> list[str]:
    """Of the replicas that were to be restarted, those that are down or were never begun; with the reason.

    asked: their generations before. One that was left out meanwhile is not missed.
    """
    found = [replicas[each] for each in asked if each in replicas]
    down = [each for each in found if each.state is not State.READY or each.generation == asked[each.id]]
    return [
        f"{each.id} is {each.state} ({'not restarted' if each.state is State.READY else each.reason})" for each in down
    ]


def stuck(fleet: Fleet, now: float) -> list[str]:
    """Replicas that are beyond a deadline for long, and were not killed for it."""
    found = [
        each.id
        for each in fleet.in_state(*ALIVE)
        if (at := each.next_deadline()) is not None and now - at > notify.STUCK_S
    ]
    for replica_id, running in fleet.running.items():
        if running.page.phase is Running.RUNNING and running.timeout_s and not running.hung:
            age_s = now - running.page.progress_at_ns / 1e9
            if age_s > running.timeout_s + notify.STUCK_S:
                found.append(replica_id)
    return found


def _address(text: str) -> str:
    """Of the socket: a path, or a name in the abstract namespace, which begins with `@`.

    Raises:
        ConfigError: it is neither.
    """
    if text.startswith("/") and len(text) > 1:
        return text
    if text.startswith("@") and len(text) > 1:
        return "\0" + text[1:]
    raise ConfigError(f"NOTIFY_SOCKET = {text[:80]!r}: it must be an absolute path, or @ and a name")
