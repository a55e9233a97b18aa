"""A worker's side of the arena: requests that are read in place, results that are written once.

A request's chunk is the client's again with the answer. So before a batch is answered, what the model still refers to
is told apart: each request gets a memory exporter of its own, which lives as long as any array, tensor or frame over
it. The chunk of one that lives on is reported as kept, and given back when it is gone.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from orch import chunk
from orch.arena import Arena, bytes_of
from orch.chunk import Chunk
from orch.errors import RemoteProtocolError
from orch.wire import Record
from orch_worker import device

log = logging.getLogger(__name__)

Alive = weakref.ref[Any]


class Shared:
    """Owns the mapping, the chunks for results, and the memory of what the model has kept."""

    def __init__(self) -> None:
        self._epoch = 0
        self._arena: Arena | None = None
        self._pinned = False
        self._granted: dict[int, Chunk] = {}  # for results, by ticket
        self._reading: dict[int, tuple[int, Alive]] = {}  # lease and exporter of the running batch, by ticket
        self._kept: dict[int, list[Alive]] = {}  # exporters that outlived their batch, by lease

    def open(self, path: str, epoch: int) -> None:
        """A WELCOME: map the arena of this epoch, "" for none. Raises OSError."""
        if epoch == self._epoch:
            return
        if self._pinned and self._arena is not None:
            device.unpin(self._arena.memory)
        self._arena, self._pinned = None, False
        self._kept.clear()  # of another arena, which lives on as long as they do
        if path:
            self._arena = Arena(path, epoch)
            self._pinned = device.pin(self._arena.memory)
        self._epoch = epoch

    def forget(self) -> None:
        """The connection is lost, and with it all that was given over it; what the model keeps, it keeps."""
        self._granted.clear()
        self._reading.clear()

    @property
    def keeps(self) -> bool:
        """Whether the model still refers to memory of a request that is answered."""
        return bool(self._kept)

    @property
    def kept(self) -> list[int]:
        """Leases whose memory the model still refers to."""
        return list(self._kept)

    # --- requests

    def frames(self, request: Record) -> tuple[bytes, list[memoryview]]:
        """Body and frames of a request whose frames are in the arena. Raises RemoteProtocolError."""
        return self._frames(request, np.frombuffer)

    def copied(self, request: Record) -> tuple[bytes, list[memoryview]]:
        """The same in memory of our own: for what takes any time."""
        return self._frames(request, lambda memory, kind: np.frombuffer(memory, kind).copy())

    def _frames(self, request: Record, export: Any) -> tuple[bytes, list[memoryview]]:
        if self._arena is None:
            raise RemoteProtocolError("it is in shared memory, and this worker has none")
        found, memory = self._arena.read(request.body)
        exporter = export(memory, np.uint8)
        self._reading[request.ticket] = (found.lease, weakref.ref(exporter))
        whole = memoryview(exporter)
        return found.body, [whole[begin:end] for begin, end in found.places]

    def synchronize(self) -> None:
        """After a batch, in the thread that ran it: a copy from a request to the device may still be on its way."""
        if self._reading and self._pinned:
            device.synchronize()

    def end(self, tickets: Iterable[int]) -> set[int]:
        """These are about to be answered, and nothing of ours refers to them: the tickets whose chunks are kept."""
        kept: set[int] = set()
        if not self._reading and not self._granted:
            return kept
        for ticket in tickets:
            self._granted.pop(ticket, None)
            lease, exporter = self._reading.pop(ticket, (0, None))
            if exporter is None:
                continue
            if exporter() is not None:
                self._kept.setdefault(lease, []).append(exporter)
            if lease in self._kept:
                kept.add(ticket)
        return kept

    def let_go(self) -> list[int]:
        """Leases that were kept, and are not any more; each is told once."""
        gone = [lease for lease, exporters in self._kept.items() if all(each() is None for each in exporters)]
        for lease in gone:
            del self._kept[lease]
        return gone

    # --- results

    def grant(self, ticket: int, chunks: Sequence[Chunk]) -> None:
        """Where the result of a ticket may be put."""
        for each in chunks:
            self._granted[ticket] = each

    def put(self, ticket: int, frames: Sequence[Any]) -> bytes | None:
        """Write a result's frames into the chunk of its ticket: the descriptor. None: there is none, or it is small."""
        where = self._granted.get(ticket)
        if where is None or self._arena is None:
            return None
        views = bytes_of(frames)
        if chunk.span([view.nbytes for view in views]) > where.size:
            return None
        return self._arena.write(where, views)
