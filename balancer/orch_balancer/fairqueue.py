"""The queue: by priority, and within a priority clients take turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from orch.wire import BUNDLE, Flag, Priority
from orch_balancer import policy
from orch_balancer.entry import QUEUED, Entry

# Removed entries stay in their deque, emptied, until they reach its head; beyond this many more than live ones the
# deques are rebuilt, so removal costs O(1) on average and memory stays proportional to what waits.
SLACK = 1024
# To cut a bundle costs as much as it has requests: one with more than so many times what is wanted is halved first.
HALVED = 8
# Looked up once.
NORMAL, STREAM = int(Priority.NORMAL), Flag.STREAM


class _Batch:
    """What is taken together. is_first: it may be larger than the room. cuts: bundles, where less is wanted."""

    def __init__(self, wanted: int, room: int, *, is_first: bool, cuts: bool) -> None:
        self.entries: list[Entry] = []
        self.num = 0  # requests
        self.rows = 0
        self.left = wanted  # rows
        self.is_full = False
        self.is_refused = False  # because the next has too many rows
        self._room = room
        self._is_first = is_first
        self._cuts = cuts

    def draw(self, line: deque[Entry], most: int) -> int:
        """Take from the head of a line until it has so many rows, at least one entry. Ended entries there were so many.

        The last may make it more, and so may a bundle that is not to be cut.
        """
        num_ended, num, rows, entries, room = 0, self.num, self.rows, self.entries, self._room
        until = rows + most
        while line and rows < until:
            entry = line[0]
            if entry.place is not QUEUED:
                line.popleft()
                num_ended += 1
                continue
            flags, its_rows = entry.flags, entry.rows
            if flags & BUNDLE:
                if entry.cancelled is not None:
                    line.popleft()
                    line.extendleft(reversed(entry.rest()))
                    continue
                fitting = min(until, room) - rows if self._cuts else room - rows
                while 0 < fitting < its_rows:
                    its_rows = its_rows // 2 if HALVED * fitting < its_rows else fitting
                    entry = entry.cut_off(its_rows)
                    line.appendleft(entry)
            if rows + its_rows > room and not (self._is_first and not entries):
                self.is_full = self.is_refused = True
                break
            line.popleft()
            entries.append(entry)
            num += entry.num
            rows += its_rows
            if flags & STREAM:  # it may take any time: nothing is to wait behind it
                self.is_full = True
                break
        self.left -= rows - self.rows
        self.num, self.rows = num, rows
        if self.left <= 0:
            self.is_full = True
        return num_ended

    def has_enough(self, *, is_alone: bool) -> bool:
        """Whether a class is to add nothing more; where others wait too, a turn is one request."""
        return self.is_full or (bool(self.entries) and not is_alone)


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

    def add(self, client: bytes, entries: Iterable[Entry], rows: int) -> None:
        """Last in their client's line: these, with so many rows."""
        line = self.by_client.get(client)
        if line is None:
            line = self.by_client[client] = deque()
            self.turns.append(client)
        line.extend(entries)
        self.count(client, rows)

    def count(self, client: bytes, rows: int) -> None:
        """Count rows of a client."""
        self.rows += rows
        self.rows_of[client] = self.rows_of.get(client, 0) + rows

    def uncount(self, client: bytes, rows: int) -> None:
        """Count rows of a client no more."""
        self.rows -= rows
        left = self.rows_of[client] - rows
        if left:
            self.rows_of[client] = left
        else:
            del self.rows_of[client]

    def take(self, batch: _Batch, *, is_alone: bool) -> None:
        """Add what is to run next: all that is wanted where no other class waits, else one request.

        Clients get equal parts of rows, in turns: where bundles are cut, what each would have if one request after
        another was taken.
        """
        if self.first:
            self.removed -= batch.draw(self.first, batch.left if is_alone else 1)
            for entry in batch.entries:
                self.uncount(entry.session.id, entry.rows)
        turns, by_client = self.turns, self.by_client
        while turns and not batch.has_enough(is_alone=is_alone):
            part = max(1, batch.left // len(turns)) if is_alone else 1
            for _ in range(len(turns)):
                client = turns.popleft()
                line, rows = by_client[client], batch.rows
                self.removed -= batch.draw(line, part)
                if batch.rows > rows:
                    self.uncount(client, batch.rows - rows)
                if not line:
                    del by_client[client]
                elif batch.is_refused:  # it waits for a batch with more room
                    turns.appendleft(client)
                else:
                    turns.append(client)
                if batch.has_enough(is_alone=is_alone):
                    return

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
        self.num = self.rows = 0  # of all that waits
        self._lone: Entry | None = None  # what waits where nothing else does, in no line
        self._turn = 0

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[Entry]:
        if self._lone is not None:
            yield self._lone
        for each in self._classes:
            yield from each

    def num_of(self, priority: int) -> int:
        """Entries of one class."""
        return self._counts[priority]

    def push(self, entries: Sequence[Entry], num: int, rows: int) -> None:
        """Last in their client's line: entries of one client and one priority; so many requests and rows."""
        first = entries[0]
        if self.num or len(entries) > 1:
            self._line_up()
            self._classes[first.priority].add(first.session.id, entries, rows)
        else:
            self._lone = first
        self._counts[first.priority] += num
        self.num += num
        self.rows += rows

    def _line_up(self) -> None:
        """Others come, or it is to be found: it takes its place in its client's line."""
        lone = self._lone
        if lone is not None:
            self._lone = None
            self._classes[lone.priority].add(lone.session.id, (lone,), self.rows)

    def push_first(self, entry: Entry) -> None:
        """Ahead of everything in its class."""
        self._line_up()
        each = self._classes[entry.priority]
        each.first.appendleft(entry)
        each.count(entry.session.id, entry.rows)
        self._counts[entry.priority] += 1
        self.num += 1
        self.rows += entry.rows

    def take(self, wanted: int, room: int, *, cuts: bool = True) -> list[Entry]:
        """The next to run, up to `wanted` rows: at least one, even one that is larger than the room.

        No more than `room` rows together otherwise. A bundle is cut where it has more than that; unless `cuts`, it is
        taken whole where it has more than is wanted. The caller moves them out of the queue.
        """
        lone = self._lone
        if lone is not None:
            if self.rows <= (min(wanted, room) if cuts else room):
                self._lone = None
                self._turn += self.num
                self._counts[lone.priority] = self.num = self.rows = 0
                return [lone]
            self._line_up()
        taken: list[Entry] = []
        rows, is_full = 0, False
        while self.num and not is_full:
            # Where no other class waits, every turn is this one's.
            is_alone = self._counts[NORMAL] == self.num
            priority = NORMAL if is_alone else policy.next_class(self._counts, self._turn)
            is_alone = is_alone or self._counts[priority] == self.num
            each = self._classes[priority]
            batch = _Batch(wanted - rows, room - rows, is_first=not taken, cuts=cuts or not is_alone)
            each.take(batch, is_alone=is_alone)
            is_full = batch.is_full
            self._counts[priority] -= batch.num
            self.num -= batch.num
            self.rows -= batch.rows
            self._turn += batch.num
            rows += batch.rows
            taken += batch.entries
        return taken

    def rows_ahead(self, client: bytes, priority: int, num: int = 1) -> int:
        """About how many rows run before the last of so many that the client would push now.

        Higher classes, then turn by turn.
        """
        self._line_up()
        each = self._classes[priority]
        own = each.rows_of.get(client, 0) + num
        num_clients = len(each.rows_of) + (client not in each.rows_of)
        return sum(higher.rows for higher in self._classes[:priority]) + min(each.rows + num - 1, own * num_clients)

    def forget(self, entry: Entry, num: int = 1) -> None:
        """Account for requests that were just cancelled, or have expired: so many of a bundle, or the entry."""
        self._line_up()
        priority = entry.priority
        each = self._classes[priority]
        self._counts[priority] -= num
        self.num -= num
        rows = num if entry.is_bundle else entry.rows
        self.rows -= rows
        each.uncount(entry.session.id, rows)
        if entry.place is not QUEUED:
            each.removed += 1
            if each.removed > self._counts[priority] + SLACK:
                each.rebuild()
