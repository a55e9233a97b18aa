"""What the supervisor has in a balancer's place before a command: the proxies' writers, and how servers leave them.

No request is seen here. A server that is to stop leaves the proxies first: the set says so, their writers answer that
they route by it, and the kernel tells when no connection to the server is busy any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orch.errors import ConfigError
from orch.link import Message
from orch.supervising.connections import connections, port_of
from orch.supervising.control import Caller
from orch.supervising.events import Event
from orch.supervising.fleet import Fleet
from orch.supervising.readings import cpu_s
from orch.supervising.replica import Replica, State
from orch.supervising.servers import Computing, Server, Servers

# Between two looks at the connections of servers that leave, and how many times as long as a look takes: the kernel
# walks over all connections of the host for it.
LOOK_S, REST_FACTOR = 0.05, 10.0


class Owner(Protocol):
    """What is told to the supervisor, in the balancer's words."""

    def balancer_said(self, message: Message) -> None:
        """That a replica is drained, or all of them are (empty), or the figures that there are (stats)."""

    def report(self, event: Event) -> None:
        """What a person may want to know."""


class Watchers:
    """Owns who is told of every change of the servers: over the control socket, each on its own connection.

    settings: the instance's, which a proxy's limits follow from. They stay, and are told with the first answer alone.
    """

    def __init__(self, kind: str, clock: Callable[[], float], settings: Mapping[str, Any]) -> None:
        self.servers = Servers(kind)
        self._clock, self._settings = clock, settings

    def set(self, servers: Sequence[Server]) -> None:
        """The whole set as it is now."""
        for watcher in self._callers():
            if watcher.closed:
                self.servers.forget(watcher)
        if self.servers.set(servers, self._clock()):
            for watcher in self._callers():
                watcher.tell("servers", **self.servers.facts)

    def ask(self, caller: Caller, arguments: Message) -> None:
        """The call `servers`."""
        if arguments.get("watch"):
            self.servers.watch(caller)
        caller.answer(**self.servers.facts, settings=self._settings)

    def applied(self, caller: Caller, arguments: Message) -> None:
        """A watcher's word, which has no answer.

        Raises:
            ConfigError: it is no number of a revision.
        """
        revision = arguments.get("revision")
        if type(revision) is not int:
            raise ConfigError(f"revision = {revision!r}; it must be the number of one that was told")
        self.servers.applied(caller, revision)

    def _callers(self) -> list[Caller]:
        return [each for each in self.servers.watchers if isinstance(each, Caller)]


def gateways_as_servers(rows: Sequence[Mapping[str, Any]], *, draining: bool) -> list[Server]:
    """A model's gateways, each at the socket that it alone accepts from."""
    return [Server(row["id"], row["address"], draining=draining) for row in rows]


@dataclass(slots=True)
class Leaving:
    """What is known of a server that leaves. num_busy: its connections with a request under way, at the last look."""

    computing: Computing = field(default_factory=Computing)
    num_busy: int = 0


class Proxies:
    """Owns which servers are leaving, and what the kernel last said of them; of a balancer's shape."""

    pid = None
    restarts = 0

    def __init__(self, fleet: Fleet, watchers: Watchers, owner: Owner, clock: Callable[[], float]) -> None:
        self._fleet, self._watchers, self._owner, self._clock = fleet, watchers, owner, clock
        self._begun = self._draining = self._empty = self.stopped = False
        self._leaving: dict[str, Leaving] = {}  # by replica
        self._look_at = 0.0

    # --- what the supervisor tells a balancer --------------------------------------------------------------------

    def send(self, **message: Any) -> None:
        """There is nobody to tell; figures are asked for, and there are none."""
        if message.get("do") == "stats":
            self._owner.balancer_said({"event": "stats", "seq": message["seq"], "workers": {}})

    def send_workers(self, workers: Sequence[Message]) -> None:
        """The set has changed: told with the next `tick`."""

    def drain(self) -> None:
        """All of them leave the proxies."""
        self._draining = True

    def kill(self) -> None:
        """There is no process."""

    def stop(self) -> None:
        """Every server has ended."""
        self.stopped = True
        self._watchers.set(())

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Tell the watchers the set, and the supervisor who is done."""
        self._begun = True
        if self.stopped:
            return
        serving = self._serving()
        self._watchers.set([self._server(replica) for replica in serving])
        leaving = [replica for replica in serving if self._leaves(replica)]
        before, self._leaving = self._leaving, {}
        for replica in leaving:
            if replica.id not in before:
                self._fleet.launcher.leaves(self._fleet.running[replica.id].child)
            self._leaving[replica.id] = before.get(replica.id) or Leaving()
        for replica_id, left in before.items():
            if left.num_busy and replica_id not in self._leaving and not self._draining:
                text = f"{replica_id} has ended with {left.num_busy} of its connections busy"
                self._owner.report(Event("warning", text, replica_id))
        if now < self._look_at:
            return
        done = [replica for replica in leaving if self._is_done(replica, now)]
        for replica in done:
            if replica.state is State.DRAINING:
                message = {"event": "drained", "replica": replica.id, "generation": replica.generation}
                self._owner.balancer_said(message)
        if self._draining and not self._empty and len(done) == len(serving):
            self._empty = True
            self._owner.balancer_said({"event": "empty"})
        if leaving:
            ended = self._clock()
            self._look_at = ended + max(LOOK_S, REST_FACTOR * (ended - now))

    @property
    def num_busy(self) -> int:
        """Connections with a request under way, as far as that can be known, at servers that leave."""
        return sum(left.num_busy for left in self._leaving.values())

    @property
    def addresses(self) -> list[str]:
        """Of the servers that serve now."""
        return [self._server(replica).address for replica in self._serving()]

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        if not self._begun:
            return self._clock()
        return self._look_at if self._leaving else None

    # --- inside --------------------------------------------------------------------------------------------------

    def _serving(self) -> list[Replica]:
        """Replicas whose servers have answered and still run, by number."""
        ready = [
            replica
            for replica in self._fleet.in_state(State.READY, State.DRAINING)
            if replica.ready_at is not None and replica.id in self._fleet.running
        ]
        return sorted(ready, key=lambda each: each.slot)

    def _server(self, replica: Replica) -> Server:
        address = self._fleet.launcher.address(replica)
        return Server(replica.id, str(address), draining=self._leaves(replica))

    def _leaves(self, replica: Replica) -> bool:
        return self._draining or replica.state is State.DRAINING

    def _is_done(self, replica: Replica, now: float) -> bool:
        """Whether no proxy sends it anything new, and nothing is under way at it."""
        left, port = self._leaving[replica.id], port_of(str(self._fleet.launcher.address(replica)))
        left.computing.look(now, sum(map(cpu_s, self._fleet.family(replica.id))))
        try:
            left.num_busy = sum(each.is_busy(computes=left.computing.now) for each in connections(port))
        except OSError:  # nothing can be found out now: it may be
            left.num_busy = 1
        return self._watchers.servers.has_left(replica.id, now) and not left.num_busy
