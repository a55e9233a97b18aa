"""A client's side of the arena: the chunks it has on loan, what it asks for, and what it gives back.

It never waits: what finds no chunk travels in frames, and the chunks that would have been needed are asked for. After
the answer the request's chunk is the client's again, for the next one of its size.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from orch import chunk
from orch.arena import Arena, bytes_of
from orch.chunk import Chunk
from orch.errors import RemoteProtocolError
from orch.wire import FRAME_BYTES, Flag, Kind, Record

log = logging.getLogger(__name__)

# A chunk that was not needed for this long goes back.
IDLE_S = 1.0
# After the balancer had fewer chunks than were asked for, it is not asked again for this long.
RETRY_S = 1.0
# So many chunks are given back without waiting for a message that goes anyway.
MANY = 8
# A chunk may be this much too large for what it carries, before one that fits better is asked for.
ROOMY = 2


class Loans:
    """Owns the mapping and the chunks of one client, on one connection. Used by the thread that drives the socket."""

    def __init__(self, path: str = "", epoch: int = 0, attach: Callable[[str, int], Arena] = Arena) -> None:
        """Where the arena of this epoch is handed out, as WELCOME says it; "": nowhere."""
        self._path, self._epoch, self._attach = path, epoch, attach
        self._arena: Arena | None = None  # mapped when there is something to put into it
        self._free: dict[int, deque[tuple[float, Chunk]]] = {}  # by size; the longest unused first
        self._missed: dict[int, int] = {}  # requests that found no chunk, by size
        self._asked = 0  # chunks, while the balancer's answer is outstanding
        self._retry_at = 0.0
        self._now = 0.0  # when something was sent last
        self._look_at = 0.0  # when to look for chunks that are not needed
        self._told = False  # the balancer knows that results may be put there
        self._returned: list[int] = []
        self.num_held = 0

    # --- requests

    def put(self, frames: Sequence[Any]) -> tuple[bytes, Chunk] | None:
        """Copy a request's frames into a chunk: the descriptor, and the chunk. None: they travel as they are."""
        if not self._path:
            return None
        views = bytes_of(frames)
        needed = chunk.span([view.nbytes for view in views])
        size = max(FRAME_BYTES, 1 << (needed - 1).bit_length())
        free = self._free.get(size) or self._free.get(size * ROOMY)
        if not free or self._arena is None:
            self._missed[size] = self._missed.get(size, 0) + 1
            return None
        _, taken = free.pop()
        return self._arena.write(taken, views), taken

    def back(self, taken: Chunk) -> None:
        """The request in this chunk is answered: it may be written again."""
        self._free.setdefault(taken.size, deque()).append((self._now, taken))

    def drop(self, taken: Chunk) -> None:
        """Nobody waits for the request in this chunk any more, and somebody may still read it."""
        self.num_held -= 1
        self._returned.append(taken.lease)

    def lost(self) -> None:
        """A chunk is read on by a worker, and is not ours any more."""
        self.num_held -= 1

    def granted(self, record: Record) -> None:
        """The balancer's answer to what was asked for. Raises RemoteProtocolError."""
        chunks = chunk.read_chunks(record.body)
        if len(chunks) < self._asked:
            self._retry_at = self._now + RETRY_S
        self._asked = 0
        self.num_held += len(chunks)
        for each in chunks:
            self.back(each)

    # --- results

    def take(self, record: Record) -> tuple[bytes, list[Any]]:
        """Body and frames of an answer; those in the arena are copied out, and their chunk goes back.

        Raises:
            RemoteProtocolError: the arena has no such frames.
        """
        if not record.flags & Flag.ARENA:
            if not self._told and record.frames and self._path:
                self._missed.setdefault(0, 0)
            return record.body, list(record.frames)
        self.refuse(record)
        if self._arena is None:
            raise RemoteProtocolError("a result in an arena that this client has not mapped")
        found, memory = self._arena.read(record.body)
        return found.body, [bytearray(memory[begin:end]) for begin, end in found.places]

    def refuse(self, record: Record) -> None:
        """An answer that nobody waits for, or that is read at once: its chunk, if any, goes back."""
        if record.flags & Flag.ARENA:
            self._returned.append(chunk.read_place(record.body).lease)

    # --- what the balancer is told

    @property
    def is_urgent(self) -> bool:
        """Whether a message should be sent for this alone."""
        return len(self._returned) >= MANY

    @property
    def are_any(self) -> bool:
        """Whether there is something to give back, once it was not needed for a while."""
        return bool(self.num_held or self._returned or self._asked)

    def news(self, now: float) -> list[Record]:
        """What goes along with the next message: chunks asked for, and chunks given back."""
        self._now = now
        if now >= self._look_at:
            self._look_at = now + IDLE_S
            self._give_back(now - IDLE_S)
        records = self._ask() if self._missed and not self._asked and now >= self._retry_at else []
        if self._returned:
            records.append(Record(Kind.RETURN, body=chunk.write_numbers(self._returned)))
            self._returned = []
        return records

    def rest(self) -> None:
        """Nothing was sent for a while: whatever is left of the last calls goes back, and nothing is wanted."""
        self._missed.clear()
        self._asked = 0  # a balancer that grants answers sooner
        self._give_back(math.inf)

    def _give_back(self, before: float) -> None:
        for free in self._free.values():
            while free and free[0][0] <= before:
                self.drop(free.popleft()[1])

    def _ask(self) -> list[Record]:
        """For the size that was missed most; the others' turn comes."""
        if self._arena is None:
            try:
                self._arena = self._attach(self._path, self._epoch)
            except OSError as err:  # another view of the file system, no descriptors left, a new balancer...
                log.info("no shared memory (%s): large arrays are sent instead", err)
                self._path = ""
                self._missed.clear()
                return []
        self._told = True
        size = max(self._missed, key=self._missed.__getitem__)
        # A GRANT has no more. What finds no chunk even then is asked for at once: nobody has said that there are none.
        self._asked = min(self._missed.pop(size), chunk.MAX_GRANT)
        self._missed.pop(0, None)
        return (
            [Record(Kind.LEASE, rows=self._asked, body=chunk.write_numbers([size]))] if size else [Record(Kind.LEASE)]
        )
