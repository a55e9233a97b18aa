"""The status page: what a worker is doing, readable by others while it computes, hangs or is dead.

One memfd per instance holds a page per worker slot. The worker writes its phase and the tickets of its batch, the
supervisor reads progress from it, and the balancer reads the tickets of a dead worker's batch (the suspects) and writes
cancellations. Each field has one writer; a field is one aligned store, which x86-64 and arm64 do not tear. All of them
are words of 64 bits:

    0     phase                  8     running tickets, MAX_BATCH_SIZE of them
    1     batch number           1032  cancelled tickets, a ring of NUM_CANCELLED
    2     progress at, ns
    3     running count
    4     cancelled count
"""

from __future__ import annotations

import enum
import mmap
import os
from array import array
from collections.abc import Sequence

from orch.model import MAX_BATCH_SIZE

PAGE_BYTES = 16 * 1024
MAX_WORKERS = 4096  # slots in one file: 64 MiB of address space, of which only used pages take memory

_PHASE, _BATCH, _PROGRESS, _RUNNING, _CANCELLED = range(5)
_TICKETS = 8
_RING = _TICKETS + MAX_BATCH_SIZE
NUM_CANCELLED = 512


class Phase(enum.IntEnum):
    """What the worker's one loop is in."""

    STARTING = 0
    LOADING = 1
    WARMING = 2
    IDLE = 3
    RUNNING = 4
    STOPPING = 5


# For every batch: to look a member up in its enum costs as much as the store.
_IS_IDLE, _IS_RUNNING = int(Phase.IDLE), int(Phase.RUNNING)


def create() -> int:
    """A new file of pages, all STARTING; the descriptor is inheritable by those that are given it."""
    fd = os.memfd_create("orch-pages", os.MFD_CLOEXEC)
    os.ftruncate(fd, PAGE_BYTES * MAX_WORKERS)
    return fd


class StatusPage:
    """One worker's page. Which methods a process may call follows from who writes the field."""

    def __init__(self, fd: int, slot: int) -> None:
        self._map = mmap.mmap(fd, PAGE_BYTES, offset=slot * PAGE_BYTES)
        self._words = memoryview(self._map).cast("Q")
        self._seen_cancelled = 0

    # --- the supervisor, before the worker starts

    def clear(self) -> None:
        """Forget the slot's last worker."""
        self._map[:] = bytes(PAGE_BYTES)

    # --- the worker

    def enter(self, phase: Phase) -> None:
        """Say what the loop is in."""
        self._words[_PHASE] = phase

    def begin_batch(self, tickets: Sequence[int], now_ns: int) -> None:
        """Name the requests that are about to run, before the model sees them."""
        words, num = self._words, len(tickets)
        words[_TICKETS : _TICKETS + num] = array("Q", tickets)
        words[_BATCH] += 1
        words[_PROGRESS] = now_ns
        words[_RUNNING] = num
        words[_PHASE] = _IS_RUNNING

    def progress(self, now_ns: int) -> None:
        """A stream has sent a part: long, but not hung."""
        self._words[_PROGRESS] = now_ns

    def end_batch(self) -> None:
        """Nothing runs; called after the answers were sent."""
        words = self._words
        words[_RUNNING] = 0
        words[_PHASE] = _IS_IDLE

    def newly_cancelled(self) -> list[int]:
        """Tickets cancelled since the last call; the oldest are lost where more than NUM_CANCELLED were."""
        count = self._words[_CANCELLED]
        if count == self._seen_cancelled:
            return []
        first = max(self._seen_cancelled, count - NUM_CANCELLED)
        self._seen_cancelled = count
        return [self._words[_RING + i % NUM_CANCELLED] for i in range(first, count)]

    # --- the balancer

    def cancel(self, ticket: int) -> None:
        """Tell the worker that nobody waits for this any more."""
        count = self._words[_CANCELLED]
        self._words[_RING + count % NUM_CANCELLED] = ticket
        self._words[_CANCELLED] = count + 1

    # --- readers

    @property
    def phase(self) -> Phase:
        """What the loop is, or was last, in."""
        return Phase(self._words[_PHASE])

    @property
    def batch_number(self) -> int:
        """Batches begun in this worker's life."""
        return self._words[_BATCH]

    @property
    def progress_at_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds of the running batch's start or last part."""
        return self._words[_PROGRESS]

    def running(self) -> tuple[int, ...]:
        """Tickets of the batch that runs, or ran when the worker died."""
        count = min(self._words[_RUNNING], MAX_BATCH_SIZE)
        return tuple(self._words[_TICKETS : _TICKETS + count])

    def close(self) -> None:
        """Unmap."""
        self._words.release()
        self._map.close()
