"""The queue: by priority, and within a priority clients take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from orch.wire import Priority
from orch_balancer import policy
from orch_balancer.entry import Entry, Place

# Removed entries stay in their deque, emptied, until they reach its head; beyond this many more than live ones the
# deques are rebuilt, so removal costs O(1) on average and memory stays proportional to what waits.
SLACK = 1024


class _Class:
    """The entries of one priority."""

    def __init__(self) -> None:
        self.first: deque[Entry] = deque()  # requeued: they have waited once already
        self.by_client: dict[bytes, deque[Entry]] = {}
        self.turns: deque[bytes] = deque()  # every client with a deque, the next to serve first
        self.rows = 0
        self.rows_of: dict[bytes, int] = {}  # of each client that has rows waiting here


class FairQueue:
    """Owns the order of what waits. Entries that left their place QUEUED are skipped."""

    def __init__(self) -> None:
        self._classes = [_Class() for _ in Priority]
        self._counts = [0 for _ in Priority]
        self._len = 0
        self._turn = 0
        self._removed = 0
        self.rows = 0

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Entry]:
        for each in self._classes:
            for entries in (each.first, *each.by_client.values()):
                yield from (entry for entry in entries if entry.place is Place.QUEUED)

    def push(self, entry: Entry) -> None:
        """Last in its client's line."""
        each = self._classes[entry.priority]
        client = entry.session.id
        line = each.by_client.get(client)
        if line is None:
            line = each.by_client[client] = deque()
            each.turns.append(client)
        line.append(entry)
        self._count(entry, 1)

    def push_first(self, entry: Entry) -> None:
        """Ahead of everything in its class."""
        each = self._classes[entry.priority]
        each.first.appendleft(entry)
        self._count(entry, 1)

    def pop(self) -> Entry | None:
        """The next to run; the caller moves it out of Place.QUEUED."""
        priority = policy.next_class(self._counts, self._turn)
        if priority is None:
            return None
        self._turn += 1
        entry = self._take(self._classes[priority])
        self._count(entry, -1)
        return entry

    def rows_ahead(self, client: bytes, priority: int) -> int:
        """About how many rows run before one that the client would push now: higher classes, then turn by turn."""
        each = self._classes[priority]
        own = each.rows_of.get(client, 0)
        num_clients = len(each.rows_of) + (client not in each.rows_of)
        return sum(higher.rows for higher in self._classes[:priority]) + min(each.rows, (own + 1) * num_clients)

    def forget(self, entry: Entry) -> None:
        """Account for an entry that was just moved out of Place.QUEUED elsewhere: cancelled or expired."""
        self._count(entry, -1)
        self._removed += 1
        if self._removed > len(self) + SLACK:
            self._rebuild()

    def _count(self, entry: Entry, sign: int) -> None:
        self._counts[entry.priority] += sign
        self._len += sign
        rows = sign * entry.rows
        self.rows += rows
        each, client = self._classes[entry.priority], entry.session.id
        each.rows += rows
        each.rows_of[client] = each.rows_of.get(client, 0) + rows
        if not each.rows_of[client]:
            del each.rows_of[client]

    def _take(self, each: _Class) -> Entry:
        """The first live entry of a class that has one."""
        while each.first:
            entry = each.first.popleft()
            if entry.place is Place.QUEUED:
                return entry
            self._removed -= 1
        while True:
            client = each.turns.popleft()
            line = each.by_client[client]
            while line:
                entry = line.popleft()
                if entry.place is Place.QUEUED:
                    self._end_turn(each, client, line)
                    return entry
                self._removed -= 1
            del each.by_client[client]

    @staticmethod
    def _end_turn(each: _Class, client: bytes, line: deque[Entry]) -> None:
        if line:
            each.turns.append(client)
        else:
            del each.by_client[client]

    def _rebuild(self) -> None:
        for each in self._classes:
            each.first = deque(entry for entry in each.first if entry.place is Place.QUEUED)
            lines = {
                client: deque(entry for entry in line if entry.place is Place.QUEUED)
                for client, line in each.by_client.items()
            }
            each.by_client = {client: line for client, line in lines.items() if line}
            each.turns = deque(client for client in each.turns if client in each.by_client)
        self._removed = 0
