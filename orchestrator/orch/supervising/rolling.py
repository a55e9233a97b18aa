"""Restarts in their order: one replica at a time, and only while no other is leaving or coming."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orch.supervising.events import Event
from orch.supervising.fleet import Fleet
from orch.supervising.replica import State


class Rolling:
    """Owns which replicas are still to be restarted."""

    def __init__(self, fleet: Fleet, report: Callable[[Event], None]) -> None:
        self._fleet, self._report = fleet, report
        self._waiting: list[str] = []
        self._last = ""  # whose turn it was

    @property
    def idle(self) -> bool:
        """Nobody waits."""
        return not self._waiting

    @property
    def waiting(self) -> tuple[str, ...]:
        """Whose turn is still to come, in their order."""
        return tuple(self._waiting)

    def ask(self, replica_ids: Iterable[str]) -> None:
        """Restart these too, each once."""
        if not self._waiting:
            self._last = ""  # what became of earlier restarts says nothing of these
        self._waiting += [each for each in replica_ids if each not in self._waiting]

    def tick(self) -> None:
        """The next, if it may. One that does not come back ends it: the others serve."""
        if not self._waiting:
            return
        failed = self._fleet.replicas.get(self._last)
        if failed is not None and failed.state in (State.BACKOFF, State.QUARANTINED):
            left = ", ".join(self._waiting)
            self._waiting.clear()
            self._last = ""
            self._report(Event("warning", f"{failed.id} did not come back ({failed.reason}): {left} not restarted"))
        elif not self._fleet.in_state(State.DRAINING, State.PLANNED, State.STARTING, State.LOADING):
            self._last = self._waiting.pop(0)
            replica = self._fleet.replicas.get(self._last)
            if replica is not None:
                self._fleet.stop(replica, comes_back=True)
