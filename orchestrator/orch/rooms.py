"""Rooms: chunks that a request's bytes are read into from a network, so that nobody copies them there afterwards.

A room is lent before there is a request. It is filled, and if a request's one frame is the whole of it, the request
goes out with the chunk that it is in. Every view of a room leads back to it, by what Python itself keeps: an array's
`base` and a memoryview's `obj`. So a frame is known by the object that it is a view of, never by an address; and what
nobody refers to any more is known, too. A room's chunk therefore leaves its client (for another request, or back to
the balancer) only when no view of it is left and no request is in it:

    lent       a view is left, no request: bodies that arrive, or wait; if the last view goes, the chunk is free
    sent       a request is in it; its answer makes it lent again, for as long as the caller still has a view
    given up   somebody else may still read it; it goes back to the balancer with the last view

After the loss of a connection the request's bytes are needed again, and the balancer may lend the chunk to others as
soon as this client says HELLO. Before that, each room becomes memory of this process alone (`Arena.keep`), with the
same bytes at the same place: what still arrives there harms nobody, and what is sent again is copied from there. Its
bytes are what they were when it was sent: a worker only reads a request, and the balancer takes no chunk from a client
before that client has returned it, not even with an answer that says KEPT.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from orch.arena import Arena
from orch.chunk import Chunk


class Memory(np.ndarray[Any, Any]):
    """What a room's views are views of: its bytes as uint8. lease: of its chunk."""

    lease = 0


class Room(weakref.ref[Memory]):
    """Of one room: its chunk, and whether a request is in it, or somebody else may read it."""

    __slots__ = ("chunk", "is_given_up", "is_sent", "was_sent")

    chunk: Chunk
    is_sent: bool
    was_sent: bool
    is_given_up: bool


class Rooms:
    """Owns the rooms of one `Loans`.

    lent: by lease, those of which there may be a view. unseen: those without one that `left` has not told yet.
    waiting_bytes: of chunks that no request was in yet.
    """

    def __init__(self) -> None:
        self.lent: dict[int, Room] = {}
        # The last view may go in any thread, and in the middle of anything: a deque takes that.
        self.unseen: deque[Room] = deque()
        self.waiting_bytes = 0

    def lend(self, arena: Arena, taken: Chunk, num_bytes: int) -> memoryview:
        """The first so many bytes of a chunk."""
        memory = Memory((num_bytes,), np.uint8, arena.memory, taken.offset)
        memory.lease = taken.lease
        room = self.lent[taken.lease] = Room(memory, self.unseen.append)
        room.chunk, room.is_sent, room.was_sent, room.is_given_up = taken, False, False, False
        self.waiting_bytes += taken.size
        return memory.data

    def send(self, frame: memoryview) -> Chunk | None:
        """The chunk that this frame, contiguous bytes, is the whole content of; a request is in it from now on."""
        memory = memory_of(frame)
        room = None if memory is None else self.lent.get(memory.lease)
        if room is None or memory is None or room() is not memory or frame.nbytes != memory.nbytes:
            return None
        if room.is_sent or room.is_given_up:
            return None
        self._no_longer_waits(room)
        room.is_sent = True
        return room.chunk

    def ended(self, taken: Chunk, *, is_given_up: bool) -> bool:
        """The request in a chunk has ended. Whether the chunk stays a room; else it is the caller's to pass on."""
        room = self.lent.get(taken.lease)
        if room is None or room() is None:
            self.lent.pop(taken.lease, None)
            return False
        room.is_sent, room.is_given_up = False, is_given_up
        return True

    def left(self) -> Iterator[tuple[Chunk, bool]]:
        """Chunks that nobody refers to any more, and whether somebody else may still read them; each is told once."""
        while self.unseen:
            room = self.unseen.popleft()
            self._no_longer_waits(room)
            if not room.is_sent:  # else the end of its request frees the chunk
                del self.lent[room.chunk.lease]
                yield room.chunk, room.is_given_up

    def keep(self, arena: Arena) -> None:
        """Make all of them memory of this process. Raises OSError."""
        for room in self.lent.values():
            if room() is not None:
                arena.keep(room.chunk)
        self.lent.clear()
        self.unseen.clear()
        self.waiting_bytes = 0

    def _no_longer_waits(self, room: Room) -> None:
        if not room.was_sent:
            room.was_sent = True
            self.waiting_bytes -= room.chunk.size


def memory_of(view: Any) -> Memory | None:
    """What a frame is a view of, if that is a room's."""
    while not isinstance(view, Memory):
        if isinstance(view, memoryview):
            view = view.obj
        elif isinstance(view, np.ndarray):
            view = view.base
        else:
            return None
    return view
