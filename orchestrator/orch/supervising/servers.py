"""The servers that proxies share requests out to, and which of the proxies' writers route by what. Pure.

Every change of the set is a revision. A watcher is told each whole set, and says up to which revision its proxy routes
by it; a server that leaves waits for that before it stops.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

# A proxy takes a new set within a second; a writer that takes longer is stuck, and holds up nobody.
APPLY_S: Final = 5.0
# An HTTP answer that has begun may pause; one that pauses longer, in a server that computes nothing meanwhile, is over.
QUIET_S: Final = 5.0
# The same where an answer and a request came in one tick of the kernel's clock, so that either may have been the last.
DOUBT_S: Final = 15.0
# A server that has used less than this share of a core for as long computes nothing.
CPU_WINDOW_S, CPU_SHARE = 2.0, 0.05


@dataclass(frozen=True, slots=True)
class Server:
    """One process that speaks HTTP. address: `host:port` or `unix:/path`. draining: it takes no new request."""

    id: str
    address: str
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Connection:
    """A client's connection as the kernel knows it at the server's end; times are seconds since then.

    unread_bytes, unsent_bytes: on their way in and out. num_received, num_sent: segments with data; None: the kernel
    does not tell. acked_ago_s: since anything came from the client, if only its word that it has what was sent.
    """

    unread_bytes: int
    unsent_bytes: int
    num_received: int | None = None
    num_sent: int | None = None
    received_ago_s: float = 0.0
    sent_ago_s: float = 0.0
    acked_ago_s: float = 0.0

    def is_busy(self, *, computes: bool) -> bool:
        """Whether a request may be under way; in doubt, one is. computes: the server has used a CPU lately.

        Idle is a connection of keep-alive: nothing on its way, what was last seen was an answer (or nothing at all),
        and that has been so for QUIET_S. A request that came last is under way however long it takes. What cannot be
        told apart, an answer that pauses and one that is over, counts as over once the server computes nothing.
        """
        if self.num_received is None or self.unread_bytes or self.unsent_bytes:
            return True
        if self.num_received and (not self.num_sent or self.received_ago_s < self.sent_ago_s):
            return True
        # A client acknowledges an answer before its next request, or with it.
        told = not self.num_received or min(self.sent_ago_s, self.acked_ago_s) < self.received_ago_s
        return computes or min(self.received_ago_s, self.sent_ago_s) < (QUIET_S if told else DOUBT_S)


class Computing:
    """Owns what CPU time a server had used when, over the last CPU_WINDOW_S and a look.

    now: whether it may compute: it did, or it has not been watched for long enough to tell.
    """

    def __init__(self) -> None:
        self._looks: list[tuple[float, float]] = []
        self.now = True

    def look(self, now: float, used_s: float) -> None:
        """So much it has used by now; less than before where one of its processes has ended, which tells nothing."""
        if self._looks and used_s < self._looks[-1][1]:
            self._looks.clear()
        self._looks.append((now, used_s))
        while len(self._looks) > 1 and now - self._looks[1][0] >= CPU_WINDOW_S:
            self._looks.pop(0)
        since, before_s = self._looks[0]
        self.now = now - since < CPU_WINDOW_S or used_s - before_s > CPU_SHARE * (now - since)


class Servers:
    """Owns the set, its revision, and how far each watcher is. kind: "command", or "model" for gateways."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.revision = 0
        self.all: tuple[Server, ...] = ()
        self._applied: dict[Hashable, int] = {}
        self._leaving: dict[str, tuple[int, float]] = {}  # by id: the revision that says so, and when that was

    def set(self, servers: Sequence[Server], now: float) -> bool:
        """The whole set as it is now; whether that is another."""
        if tuple(servers) == self.all:
            return False
        self.all = tuple(servers)
        self.revision += 1
        leaving = [each.id for each in servers if each.draining]
        self._leaving = {each: self._leaving.get(each, (self.revision, now)) for each in leaving}
        return True

    @property
    def facts(self) -> dict[str, Any]:
        """For a watcher."""
        return {"kind": self.kind, "revision": self.revision, "servers": self.rows}

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """id, address, draining of each."""
        return [asdict(each) for each in self.all]

    @property
    def watchers(self) -> list[Hashable]:
        """Who is to be told."""
        return list(self._applied)

    def watch(self, watcher: Hashable) -> None:
        """It has been told the present set, and routes by none of it yet."""
        self._applied[watcher] = -1

    def forget(self, watcher: Hashable) -> None:
        """It is gone."""
        self._applied.pop(watcher, None)

    def applied(self, watcher: Hashable, revision: int) -> None:
        """A watcher's proxy routes by that set."""
        if watcher in self._applied:
            self._applied[watcher] = max(self._applied[watcher], revision)

    def has_left(self, server_id: str, now: float) -> bool:
        """Whether no proxy sends that draining server anything new, as far as is to be waited for that."""
        revision, since = self._leaving.get(server_id, (0, now))
        return now - since >= APPLY_S or all(seen >= revision for seen in self._applied.values())
