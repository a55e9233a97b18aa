"""Admitted requests, from admission to final answer. Only the router, its queue and its verdicts change them."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from orch import bundles, wire
from orch.wire import BUNDLE, Flag, Packed
from orch_balancer.leases import Lease


class Place(enum.Enum):
    """Where an entry is; always exactly one."""

    QUEUED = "queued"
    SUSPECT = "suspect"  # waits to run alone
    DISPATCHED = "dispatched"
    DONE = "done"


# A member that is looked up in its enum costs as much as the rest of a line.
QUEUED, SUSPECT, DISPATCHED, DONE = Place


@dataclass(slots=True, eq=False)
class Session:
    """One client object. `route` is where it is reached now; a reconnected client keeps its session.

    maps: it has mapped the arena, so that results may be put there.
    """

    id: bytes
    route: Any
    limit: int = 0  # requests it may have here at one time
    entries: dict[int, Entry] = field(default_factory=dict)
    maps: bool = False


@dataclass(slots=True, eq=False)
class Entry:
    """A ledger line: a request, or a bundle of them as long as nothing tells them apart; the session finds it by each.

    A bundle's request id, ticket and place in `raw` are those of its first; the others follow one after another.
    """

    session: Session
    request_id: int  # the client's number for it
    raw: bytes  # packed, as it came
    frames: tuple[Any, ...]
    flags: int
    model: int
    deadline_ns: int
    rows: int  # batch rows it takes
    priority: int  # its class; lower runs first
    num_bytes: int  # without the lengths that a bundle has besides
    admitted_at: float
    num: int = 1  # requests that are neither answered nor cancelled
    place: Place = QUEUED
    attempts: int = 0  # dispatches whose end, so far, would count
    ticket: int = 0  # of the running dispatch, 0 while queued
    worker: Any = None
    is_suspect: bool = False
    group_strikes: int = 0  # how often its group fell while it ran as a suspect
    sent_parts: bool = False
    lease: Lease | None = None  # of the chunk that its large frames are in
    result: Lease | None = None  # of the chunk that the running dispatch may put its result into
    cancelled: set[int] | None = None  # of a bundle: the places of those that were, in the queue

    @property
    def is_bundle(self) -> bool:
        """Whether it is more than one request."""
        return bool(self.flags & BUNDLE)

    @property
    def tickets(self) -> list[int]:
        """Of the running dispatch: those that its worker has not answered."""
        if not self.flags & BUNDLE:
            return [self.ticket]
        given = self.worker.outstanding
        return [each for each in range(self.ticket, self.ticket + wire.num_in(self.raw)) if given.get(each) is self]

    def open_ids(self) -> list[int]:
        """The requests that are neither answered nor cancelled."""
        if not self.flags & BUNDLE:
            return [self.request_id]
        ours = self.session.entries
        ids = range(self.request_id, self.request_id + wire.num_in(self.raw))
        return [each for each in ids if ours.get(each) is self]

    def some(self, start: int, stop: int) -> Entry:
        """These of a bundle, none of them answered or cancelled, as a line of their own in its place."""
        raw, num = bundles.part(self.raw, start, stop), stop - start
        num_bytes = bundles.num_bytes(raw)
        flags = self.flags if num > 1 else self.flags & ~BUNDLE
        entry = Entry(
            self.session, self.request_id + start, raw, (), flags, self.model, self.deadline_ns, num, self.priority,
            num_bytes, self.admitted_at, num, self.place, self.attempts,
            self.ticket + start if self.ticket else 0, self.worker, sent_parts=self.sent_parts,
        )  # fmt: skip
        self.session.entries.update(dict.fromkeys(range(entry.request_id, entry.request_id + num), entry))
        return entry

    def cut_off(self, num: int) -> Entry:
        """The first so many of a bundle in the queue, fewer than it has; it keeps the others."""
        first = self.some(0, num)
        self.raw = bundles.part(self.raw, num, wire.num_in(self.raw))
        self.request_id += num
        self.num -= num
        self.rows -= num
        self.num_bytes -= first.num_bytes
        if self.num == 1:
            self.flags &= ~BUNDLE
        return first

    def rest(self) -> list[Entry]:
        """A bundle of which some were cancelled in the queue: the others, in order, as lines of their own."""
        cancelled, first, found = self.cancelled or set(), 0, list[Entry]()
        end = wire.num_in(self.raw)
        for place in [*sorted(cancelled), end]:
            if place > first:
                found.append(self.some(first, place))
            first = place + 1
        return found

    def apart(self) -> list[Entry]:
        """Each request of it by itself."""
        return [self.some(i, i + 1) for i in range(self.num)] if self.flags & BUNDLE else [self]

    @property
    def may_retry(self) -> bool:
        """Whether another run could not hurt: the client allows it, and has seen no part of the first."""
        return not self.flags & Flag.NO_RETRY and not self.sent_parts

    @property
    def is_stream(self) -> bool:
        """Answered in parts, which takes as long as its reader does."""
        return bool(self.flags & Flag.STREAM)


def by_line(outstanding: dict[int, Entry], records: Sequence[Packed]) -> Iterator[Packed]:
    """A worker's records; what it has bundled is cut where another line, or none, begins.

    One after another, as an earlier one may have answered what a later one answers again.
    """
    for record in records:
        flags, ticket, num = record[1], record[6], record[8]
        if not flags & BUNDLE:
            yield record
            continue
        owners = list(map(outstanding.get, range(ticket, ticket + num)))
        if owners.count(owners[0]) == num:
            yield record
            continue
        start = 0
        while start < num:
            stop = start + 1
            while stop < num and owners[stop] is owners[start]:
                stop += 1
            yield bundles.some(record, start, stop)
            start = stop
