"""The status page: what a worker is doing, readable by others while it computes, hangs or is dead.

One memfd per instance holds a page per worker slot. The worker writes its phase and the tickets of its batch, the
supervisor reads progress from it, and the balancer reads the tickets of a dead worker's batch (the suspects) and writes
cancellations. Each field has one writer; a field is one aligned store, which x86-64 and arm64 do not tear.

    0     phase u64              64    running tickets, MAX_BATCH_SIZE x u64
    8     batch number u64       8256  cancelled tickets, a ring of NUM_CANCELLED x u64
    16    progress at, ns u64
    24    running count u64
    32    cancelled count u64
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
from collections.abc import Sequence

from orch.model import MAX_BATCH_SIZE

PAGE_BYTES = 16 * 1024
MAX_WORKERS = 4096  # slots in one file: 64 MiB of address space, of which only used pages take memory

_PHASE, _BATCH, _PROGRESS, _RUNNING, _CANCELLED = range(0, 40, 8)
_TICKETS = 64
_RING = _TICKETS + 8 * MAX_BATCH_SIZE
NUM_CANCELLED = 512

_U64 = struct.Struct("<Q")
_BEGUN = struct.Struct("<3Q")  # batch number, progress and running count, which lie side by side


class Phase(enum.IntEnum):
    """What the worker's one loop is in."""

    STARTING = 0
    LOADING = 1
    WARMING = 2
    IDLE = 3
    RUNNING = 4
    STOPPING = 5


def create() -> int:
    """A new file of pages, all STARTING; the descriptor is inheritable by those that are given it."""
    fd = os.memfd_create("orch-pages", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE_BYTES * MAX_WORKERS)
    return fd


class StatusPage:
    """One worker's page. Which methods a process may call follows from who writes the field."""

    def __init__(self, fd: int, slot: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES, offset=slot * PAGE_BYTES)
        self._seen_cancelled = 0

    def _get(self, offset: int) -> int:
        return int(_U64.unpack_from(self._map, offset)[0])

    def _set(self, offset: int, value: int) -> None:
        _U64.pack_into(self._map, offset, value)

    # --- the supervisor, before the worker starts

    def clear(self) -> None:
        """Forget the slot's last worker."""
        self._map[:] = bytes(PAGE_BYTES)

    # --- the worker

    def enter(self, phase: Phase) -> None:
        """Say what the loop is in."""
        self._set(_PHASE, phase)

    def begin_batch(self, tickets: Sequence[int], now_ns: int) -> None:
        """Name the requests that are about to run, before the model sees them."""
        struct.pack_into(f"<{len(tickets)}Q", self._map, _TICKETS, *tickets)
        _BEGUN.pack_into(self._map, _BATCH, self._get(_BATCH) + 1, now_ns, len(tickets))
        self._set(_PHASE, Phase.RUNNING)

    def progress(self, now_ns: int) -> None:
        """A stream has sent a part: long, but not hung."""
        self._set(_PROGRESS, now_ns)

    def end_batch(self) -> None:
        """Nothing runs; called after the answers were sent."""
        self._set(_RUNNING, 0)
        self._set(_PHASE, Phase.IDLE)

    def newly_cancelled(self) -> list[int]:
        """Tickets cancelled since the last call; the oldest are lost where more than NUM_CANCELLED were."""
        count = self._get(_CANCELLED)
        if count == self._seen_cancelled:
            return []
        first = max(self._seen_cancelled, count - NUM_CANCELLED)
        self._seen_cancelled = count
        return [self._get(_RING + 8 * (i % NUM_CANCELLED)) for i in range(first, count)]

    # --- the balancer

    def cancel(self, ticket: int) -> None:
        """Tell the worker that nobody waits for this any more."""
        count = self._get(_CANCELLED)
        self._set(_RING + 8 * (count % NUM_CANCELLED), ticket)
        self._set(_CANCELLED, count + 1)

    # --- readers

    @property
    def phase(self) -> Phase:
        """What the loop is, or was last, in."""
        return Phase(self._get(_PHASE))

    @property
    def batch_number(self) -> int:
        """Batches begun in this worker's life."""
        return self._get(_BATCH)

    @property
    def progress_at_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of the running batch's start or last part."""
        return self._get(_PROGRESS)

    def running(self) -> tuple[int, ...]:
        """Tickets of the batch that runs, or ran when the worker died."""
        count = min(self._get(_RUNNING), MAX_BATCH_SIZE)
        return struct.unpack_from(f"<{count}Q", self._map, _TICKETS)

    def close(self) -> None:
        """Unmap."""
        self._map.close()
