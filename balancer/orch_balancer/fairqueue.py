"""The queue: by priority, and within a priority clients take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from orch.wire import Flag, Priority
from orch_balancer import policy
from orch_balancer.entry import QUEUED, Entry

# Removed entries stay in their deque, emptied, until they reach its head; beyond this many more than live ones the
# deques are rebuilt, so removal costs O(1) on average and memory stays proportional to what waits.
SLACK = 1024
# Looked up once.
NORMAL, STREAM = int(Priority.NORMAL), Flag.STREAM


class _Class:
    """The entries of one priority."""

    def __init__(self) -> None:
        self.first: deque[Entry] = deque()  # requeued: they have waited once already
        self.by_client: dict[bytes, deque[Entry]] = {}
        self.turns: deque[bytes] = deque()  # every client with a deque, the next to serve first
        self.rows = 0
        self.rows_of: dict[bytes, int] = {}  # of each client that has rows waiting here
        self.removed = 0  # entries that are still in a deque

    def __iter__(self) -> Iterator[Entry]:
        for entries in (self.first, *self.by_client.values()):
            yield from (entry for entry in entries if entry.place is QUEUED)

    def came(self, client: bytes, rows: int) -> None:
        """Count rows of a client."""
        self.rows += rows
        self.rows_of[client] = self.rows_of.get(client, 0) + rows

    def went(self, entries: Sequence[Entry]) -> None:
        """Count theirs no more. Most often they are of one client, and its rows are changed once."""
        i, end = 0, len(entries)
        while i < end:
            session, rows = entries[i].session, 0
            while i < end and entries[i].session is session:
                rows += entries[i].rows
                i += 1
            self.rows -= rows
            left = self.rows_of[session.id] - rows
            if left:
                self.rows_of[session.id] = left
            else:
                del self.rows_of[session.id]

    def drain(self) -> Iterator[Entry]:
        """The live entries as they are to run, each out of its deque when it is given; not counted."""
        first, turns, by_client = self.first, self.turns, self.by_client
        while first:
            entry = first.popleft()
            if entry.place is QUEUED:
                yield entry
            else:
                self.removed -= 1
        while turns:
            client = turns.popleft()
            line = by_client[client]
            if not turns:  # nobody to take turns with
                turns.append(client)
                while line:
                    entry = line.popleft()
                    if entry.place is QUEUED:
                        yield entry
                    else:
                        self.removed -= 1
                turns.clear()
                del by_client[client]
                return
            while line:
                entry = line.popleft()
                if entry.place is QUEUED:
                    if line:
                        turns.append(client)
                    else:
                        del by_client[client]
                    yield entry
                    break
                self.removed -= 1
            else:
                del by_client[client]

    def rebuild(self) -> None:
        """Without what was removed."""
        self.first = deque(entry for entry in self.first if entry.place is QUEUED)
        lines = {
            client: deque(entry for entry in line if entry.place is QUEUED) for client, line in self.by_client.items()
        }
        self.by_client = {client: line for client, line in lines.items() if line}
        self.turns = deque(client for client in self.turns if client in self.by_client)
        self.removed = 0


class FairQueue:
    """Owns the order of what waits. Entries whose place is not QUEUED any more are skipped."""

    def __init__(self) -> None:
        self._classes = [_Class() for _ in Priority]
        self._counts = [0 for _ in Priority]
        self.num = 0  # of all that waits
        self._turn = 0

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[Entry]:
        for each in self._classes:
            yield from each

    def num_of(self, priority: int) -> int:
        """Entries of one class."""
        return self._counts[priority]

    @property
    def rows(self) -> int:
        """Of all that waits."""
        high, normal, low = self._classes
        return high.rows + normal.rows + low.rows

    def push(self, entries: Sequence[Entry], rows: int) -> None:
        """Last in their client's line: entries of one client and one priority, with so many rows."""
        first = entries[0]
        priority, client = first.priority, first.session.id
        each = self._classes[priority]
        line = each.by_client.get(client)
        if line is None:
            line = each.by_client[client] = deque()
            each.turns.append(client)
        line.extend(entries)
        self._counts[priority] += len(entries)
        self.num += len(entries)
        each.came(client, rows)

    def push_first(self, entry: Entry) -> None:
        """Ahead of everything in its class."""
        each = self._classes[entry.priority]
        each.first.appendleft(entry)
        self._counts[entry.priority] += 1
        self.num += 1
        each.came(entry.session.id, entry.rows)

    def take(self, wanted: int, room: int) -> list[Entry]:
        """The next to run, up to `wanted` rows: at least one, even one that is larger than the room.

        No more than `room` rows together otherwise. The caller moves them out of the queue.
        """
        taken: list[Entry] = []
        rows, is_full = 0, False
        while self.num and not is_full:
            # Where no other class waits, every turn is this one's.
            alone = self._counts[NORMAL] == self.num
            priority = NORMAL if alone else policy.next_class(self._counts, self._turn)
            each, num_before = self._classes[priority], len(taken)
            alone = alone or self._counts[priority] == self.num
            for entry in each.drain():
                its_rows = entry.rows
                if taken and rows + its_rows > room:
                    each.first.appendleft(entry)
                    is_full = True
                    break
                taken.append(entry)
                rows += its_rows
                # A stream may take any time: nothing is to wait behind it.
                is_full = rows >= wanted or entry.flags & STREAM != 0
                if is_full or not alone:
                    break
            new = taken[num_before:]
            each.went(new)
            self._counts[priority] -= len(new)
            self.num -= len(new)
            self._turn += len(new)
        return taken

    def rows_ahead(self, client: bytes, priority: int) -> int:
        """About how many rows run before one that the client would push now: higher classes, then turn by turn."""
        each = self._classes[priority]
        own = each.rows_of.get(client, 0)
        num_clients = len(each.rows_of) + (client not in each.rows_of)
        return sum(higher.rows for higher in self._classes[:priority]) + min(each.rows, (own + 1) * num_clients)

    def forget(self, entry: Entry) -> None:
        """Account for an entry that was just moved elsewhere: cancelled or expired."""
        priority = entry.priority
        each = self._classes[priority]
        self._counts[priority] -= 1
        self.num -= 1
        each.went([entry])
        each.removed += 1
        if each.removed > self._counts[priority] + SLACK:
            each.rebuild()
