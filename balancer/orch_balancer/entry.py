"""One admitted request, from its admission to its final answer. Only the router changes it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from orch.wire import Flag
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
    """A ledger line. Its key is (session, request id)."""

    session: Session
    request_id: int  # the client's number for it
    raw: bytes  # the request, packed, as it came
    frames: tuple[Any, ...]
    flags: int
    model: int
    deadline_ns: int
    rows: int  # batch rows it takes
    priority: int  # its class; lower runs first
    num_bytes: int
    admitted_at: float
    place: Place = QUEUED
    attempts: int = 0  # dispatches whose end, so far, would count
    ticket: int = 0  # of the running dispatch, 0 while queued
    worker: Any = None
    is_suspect: bool = False
    group_strikes: int = 0  # how often its group fell while it ran as a suspect
    sent_parts: bool = False
    lease: Lease | None = None  # of the chunk that its large frames are in
    result: Lease | None = None  # of the chunk that the running dispatch may put its result into

    @property
    def may_retry(self) -> bool:
        """Whether another run could not hurt: the client allows it, and has seen no part of the first."""
        return not self.flags & Flag.NO_RETRY and not self.sent_parts

    @property
    def is_stream(self) -> bool:
        """Answered in parts, which takes as long as its reader does."""
        return bool(self.flags & Flag.STREAM)
