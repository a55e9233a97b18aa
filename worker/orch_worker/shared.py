"""A worker's side of the arena: requests that are read in place, results that are written once.

A request's chunk is the client's again with the answer. So before a batch is answered, what the model still refers to
is told apart: each request gets a memory exporter of its own, which lives as long as any array, tensor or frame over
it. The chunk of one that lives on is reported as kept, and given back when it is gone.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from orch import chunk
from orch.arena import Arena, bytes_of
from orch.chunk import Chunk
from orch.errors import RemoteProtocolError
from orch.wire import Flag, Record
from orch_worker import device

log = logging.getLogger(__name__)

Alive = weakref.ref[Any]


class Shared:
    """Owns the mapping, the chunks for results, and the memory of what the model has kept."""

    def __init__(self) -> None:
        self._epoch = 0
        self._arena: Arena | None = None
        self.is_pinned = False  # the arena, for copies to a device
        self.kept: dict[int, list[Alive]] = {}  # exporters that outlived their batch, by lease
        self._granted: dict[int, Chunk] = {}  # for results, by ticket
        self._reading: dict[int, tuple[int, Alive]] = {}  # lease and exporter of the running batch, by ticket

    def open(self, path: str, epoch: int) -> None:
        """A WELCOME: map the arena of this epoch, "" for none. Raises OSError."""
        if epoch == self._epoch:
            return
        if self.is_pinned and self._arena is not None:
            device.unpin(self._arena.memory)
        self._arena, self.is_pinned = None, False
        self.kept.clear()  # of another arena, which lives on as long as they do
        if path:
            self._arena = Arena(path, epoch)
            self.is_pinned = device.pin(self._arena.memory)
        self._epoch = epoch

    def forget(self) -> None:
        """The connection is lost, and with it all that was given over it; what the model keeps, it keeps."""
        self._granted.clear()
        self._reading.clear()

    # --- requests

    def frames(self, request: Record, *, copied: bool = False) -> tuple[bytes, Sequence[memoryview]]:
        """Body and frames of a request whose frames are in the arena. Raises RemoteProtocolError.

        copied: to memory of our own, for what takes any time.
        """
        if self._arena is None:
            raise RemoteProtocolError("it is in shared memory, and this worker has none")
        (lease, _, _, places, body), memory = self._arena.read(request.body)
        exporter: Any = np.frombuffer(memory, np.uint8)
        if copied:
            exporter = exporter.copy()
        self._reading[request.ticket] = (lease, weakref.ref(exporter))
        whole = memoryview(exporter)
        return body, [whole[begin:end] for begin, end in places]

    def synchronize(self) -> None:
        """After a batch, in the thread that ran it: a copy from pinned memory may still be on its way to the device."""
        if self._reading:
            device.synchronize()

    def end(self, answers: list[Record]) -> list[Record]:
        """As they are to be sent: with KEPT where the model still refers to what the request held; we do not."""
        if not (self._reading or self._granted):
            return answers
        return [self._end(each) for each in answers]

    def _end(self, answer: Record) -> Record:
        self._granted.pop(answer.ticket, None)
        read = self._reading.pop(answer.ticket, None)
        if read is None:
            return answer
        lease, exporter = read
        if exporter() is not None:
            self.kept.setdefault(lease, []).append(exporter)
        return answer._replace(flags=answer.flags | Flag.KEPT) if lease in self.kept else answer

    def let_go(self) -> list[int]:
        """Leases that were kept, and are not any more; each is told once."""
        gone = [lease for lease, exporters in self.kept.items() if all(each() is None for each in exporters)]
        for lease in gone:
            del self.kept[lease]
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
