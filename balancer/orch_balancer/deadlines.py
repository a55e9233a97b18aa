"""Deadlines of what is admitted, the nearest first."""

from __future__ import annotations

import heapq

from orch.wire import NO_DEADLINE
from orch_balancer.entry import Entry, Session

SLACK = 1024

# A deadline, the order of equal ones, and the requests that have it.
Item = tuple[int, int, Session, range]


class Deadlines:
    """A heap of requests, found in their session when they are due: their ledger lines may be cut meanwhile.

    It keeps ended ones until they surface, and is rebuilt when those are the majority.
    """

    def __init__(self) -> None:
        self._heap: list[Item] = []
        self._serial = 0
        self._num_open = 0  # requests with a deadline that have no final answer

    def watch(self, entry: Entry) -> None:
        """From now on; an entry without a deadline is ignored."""
        if entry.deadline_ns != NO_DEADLINE:
            self._serial += 1
            self._num_open += entry.num
            ids = range(entry.request_id, entry.request_id + entry.num)
            heapq.heappush(self._heap, (entry.deadline_ns, self._serial, entry.session, ids))

    def ended(self, num: int) -> None:
        """So many that are watched have their final answers."""
        self._num_open -= num
        if len(self._heap) > 2 * self._num_open + SLACK:
            self._heap = [item for item in self._heap if _lines(item)]
            heapq.heapify(self._heap)

    def due(self, now_ns: int, most: int) -> list[Entry]:
        """Lines, not ended, whose deadline has passed, of so many requests; the last bundle may make it more.

        Each is given once.
        """
        found: dict[Entry, None] = {}  # one that came again, with the same deadline, is there twice
        num = 0
        while self._heap and self._heap[0][0] <= now_ns and num < most:
            for entry in _lines(heapq.heappop(self._heap)):
                found[entry] = None
                num += entry.num
        return list(found)

    def next_ns(self) -> int | None:
        """The nearest deadline, which may be that of an ended entry."""
        return self._heap[0][0] if self._heap else None


def _lines(item: Item) -> list[Entry]:
    """The ledger lines that these requests are in now. Later ones may have their numbers by the time."""
    deadline_ns, _, session, ids = item
    found = dict.fromkeys(map(session.entries.get, ids))
    return [entry for entry in found if entry is not None and entry.deadline_ns == deadline_ns]
