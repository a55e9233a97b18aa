"""Who may touch which chunk of the arena. The balancer owns every lease, and never looks at the bytes.

A chunk is leased for as long as anybody may touch it:

    held       by the client: it writes the next request there, reads a result, or may have to send its request again
    named      by a request that has not ended
    processes  of the workers that may read the request, or write the result, of a dispatch

and is free when none of these is left. What a worker or a client had ends by its own word or by its death, never by
a time-out. A number is never used twice, so a descriptor that is too late names nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from orch import chunk
from orch.chunk import Chunk
from orch.errors import RemoteProtocolError
from orch.wire import make_ticket
from orch_balancer.buddy import Buddy

# A worker process: replica and generation.
Process = tuple[str, int]


@dataclass(slots=True, eq=False)
class Lease:
    """One chunk that is given out. session: the client that it counts for. kept: processes whose model refers to it."""

    chunk: Chunk
    session: bytes
    held: bool = False
    named: bool = False
    processes: set[Process] = field(default_factory=set)
    kept: set[Process] = field(default_factory=set)


class Leases:
    """Owns the leases of one balancer's life. total: bytes of the arena; 0: there is none, and nothing is given."""

    def __init__(self, total: int, epoch: int) -> None:
        self._memory = Buddy(total)
        self._epoch = epoch
        self._numbers = itertools.count(1)
        self._leases: dict[int, Lease] = {}
        self._of_session: dict[bytes, dict[int, Lease]] = {}
        self._bytes_of: dict[bytes, int] = {}
        self.num_requests = self.num_results = 0  # that came through the arena

    # --- clients -------------------------------------------------------------------------------------------------

    def grant(self, session: bytes, num_bytes: int, count: int) -> list[Chunk]:
        """Chunks for a client to write requests into: as many as it wants and may have, perhaps none."""
        found = []
        for _ in range(min(count, chunk.MAX_GRANT)):
            lease = self._lease(session, num_bytes)
            if lease is None:
                break
            lease.held = True
            found.append(lease.chunk)
        return found

    def name(self, session: bytes, place: Chunk) -> Lease:
        """A request comes whose frames are in a chunk: it is not the client's to write before the request's end.

        Raises:
            RemoteProtocolError: it is no chunk that this client may use now.
        """
        lease = self._leases.get(place.lease)
        if (
            lease is None
            or lease.session != session
            or not lease.held
            or lease.named
            or lease.processes
            or not _inside(place, lease)
        ):
            raise RemoteProtocolError(f"a request in lease {place.lease}, which is not this client's to use")
        lease.named = True
        self.num_requests += 1
        return lease

    def end(self, lease: Lease) -> bool:
        """The request that names it has ended. Whether its client may write there again; else it is to return it."""
        lease.named = False
        if not lease.held:
            self._free_if_unused(lease)
        # Of workers that still run it, or were given up with it and live. Until its client has heard so it may send the
        # request again, from there: the chunk stays held.
        return lease.held and not lease.processes

    def give_back(self, session: bytes, numbers: Iterable[int]) -> None:
        """A client has no more to do with these; numbers that are not its own are ignored."""
        own = self._of_session.get(session, {})
        for number in numbers:
            lease = own.get(number)
            if lease is not None:
                lease.held = False
                self._free_if_unused(lease)

    def forget(self, session: bytes) -> None:
        """A client is gone, or has forgotten what it held."""
        self.give_back(session, list(self._of_session.get(session, ())))

    def holds(self, session: bytes) -> bool:
        """Whether a client may touch any chunk."""
        return any(lease.held for lease in self._of_session.get(session, {}).values())

    # --- workers -------------------------------------------------------------------------------------------------

    def read(self, lease: Lease, process: Process) -> None:
        """A worker is given the request."""
        lease.processes.add(process)

    def result(self, session: bytes, num_bytes: int, process: Process) -> Lease | None:
        """A chunk for a worker to write one result into, or None."""
        lease = self._lease(session, num_bytes)
        if lease is not None:
            self.read(lease, process)
        return lease

    def wrote(self, lease: Lease, process: Process, body: bytes) -> bool:
        """The result is there, and the client's to read. False: the descriptor says something else, or is none."""
        try:
            place = chunk.read_place(body)
        except RemoteProtocolError:  # of this answer alone, amid others that are to be counted
            return False
        if place.lease != lease.chunk.lease or not _inside(place, lease):
            return False
        lease.held = True
        self.leave(lease, process)
        self.num_results += 1
        return True

    def has_read(self, lease: Lease, process: Process, *, kept: bool) -> None:
        """A worker has answered the request. kept: its model refers to it still, until `let_go`."""
        if kept:
            lease.kept.add(process)
        elif process not in lease.kept:
            self.leave(lease, process)

    def leave(self, lease: Lease, process: Process) -> None:
        """A worker neither reads nor writes there any more."""
        lease.processes.discard(process)
        if lease.kept:
            lease.kept.discard(process)
        if not lease.named:
            self._free_if_unused(lease)

    def leave_all(self, process: Process, but: Collection[int] = ()) -> None:
        """A worker process is dead, or has come back on a new connection and uses no others than these numbers."""
        for number, lease in list(self._leases.items()):
            if process not in lease.processes:
                continue
            if number in but:
                lease.kept.add(process)
            else:
                self.leave(lease, process)

    def let_go(self, process: Process, numbers: Iterable[int]) -> None:
        """A worker does not read these any more, which its model had kept."""
        for number in numbers:
            lease = self._leases.get(number)
            if lease is not None and process in lease.processes:
                lease.kept.discard(process)
                if not lease.named:  # else it may run there again: its answer ends that
                    self.leave(lease, process)

    @property
    def processes(self) -> set[Process]:
        """Workers that may touch some chunk."""
        return {process for lease in self._leases.values() for process in lease.processes}

    # --- facts ---------------------------------------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Bytes of the arena."""
        return self._memory.total

    @property
    def num_leased(self) -> int:
        """Bytes that are leased."""
        return self._memory.total - self._memory.num_free

    def check_invariants(self) -> None:
        """What must hold after every event; for tests."""
        spans = sorted((lease.chunk.offset, lease.chunk.size) for lease in self._leases.values())
        for (offset, size), (following, _) in itertools.pairwise(spans):
            assert offset + size <= following, "a byte in two chunks"
        assert sum(size for _, size in spans) == self.num_leased
        assert all(offset + size <= self.total for offset, size in spans)
        for number, lease in self._leases.items():
            assert lease.chunk.lease == number
            assert lease.held or lease.named or lease.processes, "a lease that nobody has"
            assert lease.kept <= lease.processes
            assert self._of_session[lease.session][number] is lease
        assert sum(len(own) for own in self._of_session.values()) == len(self._leases)
        for session, own in self._of_session.items():
            assert own
            assert self._bytes_of[session] == sum(lease.chunk.size for lease in own.values())

    # --- inside --------------------------------------------------------------------------------------------------

    def _lease(self, session: bytes, num_bytes: int) -> Lease | None:
        """A client may have as much as would be left: one has half of the arena, each of n an equal part in n + 1."""
        if num_bytes < 1:
            return None
        size = self._memory.block(num_bytes)
        if self._bytes_of.get(session, 0) + size > self._memory.num_free - size:
            return None
        taken = self._memory.take(num_bytes)
        if taken is None:
            return None
        lease = Lease(Chunk(make_ticket(self._epoch, next(self._numbers)), *taken), session)
        self._leases[lease.chunk.lease] = lease
        self._of_session.setdefault(session, {})[lease.chunk.lease] = lease
        self._bytes_of[session] = self._bytes_of.get(session, 0) + size
        return lease

    def _free_if_unused(self, lease: Lease) -> None:
        number = lease.chunk.lease
        if lease.held or lease.named or lease.processes or number not in self._leases:
            return
        del self._leases[number]
        own = self._of_session[lease.session]
        del own[number]
        if own:
            self._bytes_of[lease.session] -= lease.chunk.size
        else:
            del self._of_session[lease.session], self._bytes_of[lease.session]
        self._memory.give_back(lease.chunk.offset)


def _inside(place: Chunk, lease: Lease) -> bool:
    return place.offset == lease.chunk.offset and place.size <= lease.chunk.size
