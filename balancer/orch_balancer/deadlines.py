"""Deadlines of what is admitted, the nearest first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from orch.wire import NO_DEADLINE
from orch_balancer.entry import DONE, Entry

SLACK = 1024


class Deadlines:
    """A heap that keeps ended entries until they surface, and is rebuilt when those are the majority."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Entry]] = []
        self._serial = 0
        self._ended = 0

    def watch(self, entry: Entry) -> None:
        """From now on; an entry without a deadline is ignored."""
        if entry.deadline_ns != NO_DEADLINE:
            self._serial += 1
            heapq.heappush(self._heap, (entry.deadline_ns, self._serial, entry))

    def ended(self, entry: Entry) -> None:
        """It has its final answer."""
        if entry.deadline_ns == NO_DEADLINE:
            return
        self._ended += 1
        if 2 * self._ended > len(self._heap) + SLACK:
            self._heap = [item for item in self._heap if item[2].place is not DONE]
            heapq.heapify(self._heap)
            self._ended = 0

    def due(self, now_ns: int) -> Iterator[Entry]:
        """Entries, not ended, whose deadline has passed; each is given once."""
        while self._heap and self._heap[0][0] <= now_ns:
            entry = heapq.heappop(self._heap)[2]
            if entry.place is not DONE:
                yield entry
            else:
                self._ended -= 1

    def next_ns(self) -> int | None:
        """The nearest deadline, which may be that of an ended entry."""
        return self._heap[0][0] if self._heap else None
