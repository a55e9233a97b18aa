"""A client's side of the arena: the chunks it has on loan, what it asks for, and what it gives back.

It never waits: what finds no chunk travels in frames, and the chunks that would have been needed are asked for. After
the answer the request's chunk is the client's again, for the next one of its size. Who reads a request from elsewhere
may read it into a chunk in the first place: see rooms.py.
"""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

from orch import chunk
from orch.arena import Arena, bytes_of
from orch.chunk import Chunk
from orch.errors import RemoteProtocolError
from orch.rooms import Rooms
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
# Rooms that no request is in yet may take one part in so many of the arena: their senders may be slow.
ROOM_SHARE = 8


class Loans:
    """Owns the mapping and the chunks of one client, on one connection. Used by the thread that drives the socket."""

    def __init__(self, path: str = "", epoch: int = 0, attach: Callable[[str, int], Arena] = Arena) -> None:
        """Where the arena of this epoch is handed out, as WELCOME says it; "": nowhere."""
        self._path, self._epoch, self._attach = path, epoch, attach
        self._arena: Arena | None = None  # mapped when there is something to put into it
        # By size; the longest unused first.
        self._free: defaultdict[int, deque[tuple[float, Chunk]]] = defaultdict(deque)
        self.num_held = 0
        self.missed: dict[int, int] = {}  # requests that found no chunk, by size
        self._asked = 0  # chunks, while the balancer's answer is outstanding
        self._retry_at = 0.0
        self._now = 0.0  # when something was sent last
        self._look_at = 0.0  # when to look for chunks that are not needed
        self._told = False  # the balancer knows that results may be put there
        self.returned: list[int] = []
        self._rooms = Rooms()

    # --- requests

    def put(self, frames: Sequence[Any]) -> tuple[bytes, Chunk] | None:
        """Copy a request's frames into a chunk, unless they are in one: the descriptor, and the chunk.

        None: they travel as they are.
        """
        if not self._path:
            return None
        views = bytes_of(frames)
        if self._rooms.lent and len(views) == 1 and (there := self._rooms.send(views[0])) is not None:
            return chunk.write_descriptor(there, (len(views[0]),)), there
        taken = self._pick(chunk.span(tuple(map(len, views))))
        if taken is None or self._arena is None:
            return None
        return self._arena.write(taken, views), taken

    def room(self, num_bytes: int) -> memoryview | None:
        """Memory to read the one frame of a later request into, which is not copied then; at least 1 byte.

        It is given back by letting go of it and of all its views. None: there is none now.
        """
        if not self._path:
            return None
        self._sweep()
        if self._arena is not None and num_bytes + self._rooms.waiting_bytes > len(self._arena.memory) // ROOM_SHARE:
            return None
        taken = self._pick(num_bytes)
        return None if taken is None or self._arena is None else self._rooms.lend(self._arena, taken, num_bytes)

    def _pick(self, num_bytes: int) -> Chunk | None:
        """A free chunk for so many bytes; one that is not there is asked for."""
        if self._rooms.unseen:
            self._sweep()
        size = max(FRAME_BYTES, 1 << (num_bytes - 1).bit_length())
        free = self._free.get(size) or self._free.get(size * ROOMY)
        if not free:
            self.missed[size] = self.missed.get(size, 0) + 1
            return None
        return free.pop()[1]

    def back(self, taken: Chunk) -> None:
        """The request in this chunk is answered: it may be written again."""
        if not self._rooms.lent or not self._rooms.ended(taken, is_given_up=False):
            self._is_free(taken)

    def drop(self, taken: Chunk) -> None:
        """Nobody waits for the request in this chunk any more, and somebody may still read it."""
        if not self._rooms.lent or not self._rooms.ended(taken, is_given_up=True):
            self._give_up(taken)

    def leave(self) -> None:
        """The connection is lost, and all chunks with it. Called before the next HELLO, after which others get them."""
        if self._arena is not None:
            try:
                self._rooms.keep(self._arena)
            except OSError as err:
                log.critical("bodies that are being read cannot be kept (%s), and others are to be lent the place", err)
                os.abort()  # the only other way is to write into what is somebody else's
        self._path = ""

    def _is_free(self, taken: Chunk) -> None:
        self._free[taken.size].append((self._now, taken))

    def _give_up(self, taken: Chunk) -> None:
        self.num_held -= 1
        self.returned.append(taken.lease)

    def _sweep(self) -> None:
        """Take back the rooms that nobody refers to any more."""
        for taken, is_given_up in self._rooms.left():
            self._give_up(taken) if is_given_up else self._is_free(taken)

    def granted(self, record: Record) -> None:
        """The balancer's answer to what was asked for. Raises RemoteProtocolError."""
        chunks = chunk.read_chunks(record.body)
        if len(chunks) < self._asked:
            self._retry_at = self._now + RETRY_S
        self._asked = 0
        self.num_held += len(chunks)
        for each in chunks:
            self._is_free(each)

    # --- results

    def take(self, record: Record) -> tuple[bytes, list[Any]]:
        """Body and frames of an answer; those in the arena are copied out, and their chunk goes back.

        Raises:
            RemoteProtocolError: the arena has no such frames.
        """
        if not record.flags & Flag.ARENA:
            if not self._told and record.frames and self._path:
                self.missed.setdefault(0, 0)
            return record.body, list(record.frames)
        self.refuse(record)
        if self._arena is None:
            raise RemoteProtocolError("a result in an arena that this client has not mapped")
        found, memory = self._arena.read(record.body)
        return found.body, [bytearray(memory[begin:end]) for begin, end in found.places]

    def refuse(self, record: Record) -> None:
        """An answer that nobody waits for, or that is read at once: its chunk, if any, goes back."""
        if record.flags & Flag.ARENA:
            self.returned.append(chunk.read_place(record.body).lease)

    # --- what the balancer is told

    @property
    def is_urgent(self) -> bool:
        """Whether a message should be sent for this alone."""
        return len(self.returned) >= MANY

    @property
    def are_any(self) -> bool:
        """Whether there is something to give back, once it was not needed for a while."""
        return bool(self.num_held or self.returned or self._asked)

    def news(self, now: float) -> list[Record]:
        """What goes along with the next message: chunks asked for, and chunks given back.

        There is none unless chunks are held, `missed` or `returned`.
        """
        self._now = now
        self._sweep()
        if now >= self._look_at:
            self._look_at = now + IDLE_S
            self._give_back(now - IDLE_S)
        records = self._ask() if self.missed and not self._asked and now >= self._retry_at else []
        if self.returned:
            records.append(Record(Kind.RETURN, body=chunk.write_numbers(self.returned)))
            self.returned = []
        return records

    def rest(self) -> None:
        """Nothing was sent for a while: whatever is left of the last calls goes back, and nothing is wanted."""
        self._sweep()
        self.missed.clear()
        self._asked = 0  # a balancer that grants answers sooner
        self._give_back(math.inf)

    def _give_back(self, before: float) -> None:
        for free in self._free.values():
            while free and free[0][0] <= before:
                self._give_up(free.popleft()[1])

    def _ask(self) -> list[Record]:
        """For the size that was missed most; the others' turn comes."""
        if self._arena is None:
            try:
                self._arena = self._attach(self._path, self._epoch)
            except OSError as err:  # another view of the file system, no descriptors left, a new balancer...
                log.info("no shared memory (%s): large arrays are sent instead", err)
                self._path = ""
                self.missed.clear()
                return []
        self._told = True
        size = max(self.missed, key=self.missed.__getitem__)
        # A GRANT has no more. What finds no chunk even then is asked for at once: nobody has said that there are none.
        self._asked = min(self.missed.pop(size), chunk.MAX_GRANT)
        self.missed.pop(0, None)
        return (
            [Record(Kind.LEASE, rows=self._asked, body=chunk.write_numbers([size]))] if size else [Record(Kind.LEASE)]
        )
