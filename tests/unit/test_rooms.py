"""Rooms: which frames they are, when their chunks are free, and what is left of them when a connection is lost."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from orch import arena, chunk, payload
from orch.arena import Arena
from orch.chunk import Chunk
from orch.loans import ROOM_SHARE, Loans
from orch.rooms import memory_of
from orch.wire import FRAME_BYTES, Kind, Record
from orch_balancer.leases import Leases

SESSION = b"a" * 16
EPOCH = 1
CHUNK, NUM_CHUNKS = 2 * FRAME_BYTES, 32
SIZE = CHUNK - 96  # of a room


class Memory(Arena):
    """A process's mapping of the file."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, 0)
        self.memory = memoryview(self._map)


class Client:
    """A client with chunks, what the balancer has leased, and what another process sees of the memory."""

    def __init__(self, fd: int) -> None:
        self.balancer = Leases(NUM_CHUNKS * CHUNK, EPOCH)
        self.other = Memory(fd)
        self.loans = Loans("path", EPOCH, lambda _path, _epoch: Memory(fd))
        self.now = 1.0
        assert [self.loans.room(SIZE) for _ in range(4)] == [None] * 4, "they are asked for"
        self.tell()

    def tell(self) -> None:
        """Send, and hear what the balancer says to that."""
        self.now += 0.01
        for record in self.loans.news(self.now):
            numbers = chunk.read_numbers(record.body)
            if record.kind == Kind.RETURN:
                self.balancer.give_back(SESSION, numbers)
                continue
            granted = self.balancer.grant(SESSION, numbers[0], record.rows)
            self.loans.granted(Record(Kind.GRANT, body=chunk.write_chunks(granted)))

    def room(self, value: int) -> memoryview:
        """A room whose every byte is the value."""
        memory = self.loans.room(SIZE)
        assert memory is not None
        memory[:] = bytes([value]) * SIZE
        return memory

    def put(self, view: Any) -> tuple[Chunk, bytes]:
        """The chunk that an array's request went out in, and what another process sees there."""
        _, frames = payload.encode({"x": np.frombuffer(view, "<f4").reshape(2, -1)})
        found = self.loans.put(frames)
        assert found is not None
        descriptor = chunk.read_descriptor(found[0])
        return found[1], bytes(self.other.memory[descriptor.offset : descriptor.offset + descriptor.size])

    def rest(self) -> int:
        """Bytes that are leased after an idle second."""
        self.loans.rest()
        self.tell()
        return self.balancer.num_leased


@pytest.fixture
def client() -> Iterator[Client]:
    """One that may have four chunks at once."""
    fd = arena.create(NUM_CHUNKS * CHUNK)
    yield Client(fd)
    os.close(fd)


def test_a_request_goes_out_in_the_room_that_it_was_read_into(client: Client) -> None:
    """Whatever views of it were made on the way; so it has taken one chunk in all."""
    room = client.room(7)
    found = memory_of(room)
    assert found is not None
    taken, seen = client.put(memoryview(room).cast("B"))
    assert taken.lease == found.lease
    assert seen == bytes([7]) * SIZE


def test_only_what_is_all_of_a_room_is_in_it(client: Client) -> None:
    """A part, other memory of the same length, several frames, and what is in it already are copied."""
    room, other = client.room(1), client.room(2)
    lease = memory_of(room).lease  # type: ignore[union-attr]
    room[8:] = bytes([9]) * (SIZE - 8)
    part, seen = client.put(room[8:])
    assert (part.lease == lease, seen) == (False, bytes([9]) * (SIZE - 8))
    copy, seen = client.put(bytearray(room))
    assert (copy.lease == lease, seen) == (False, bytes(room))
    client.loans.back(part)
    client.loans.back(copy)
    both = client.loans.put([other, np.zeros(4, np.uint8)])
    assert both is not None
    assert both[1].lease != memory_of(other).lease  # type: ignore[union-attr]
    client.loans.back(both[1])
    first, _ = client.put(room)
    again, seen = client.put(room)
    assert (first.lease, seen) == (lease, bytes(room))
    assert again.lease != lease


def test_a_room_that_nobody_refers_to_is_free(client: Client) -> None:
    """By letting go of every view of it, and by nothing else; then it goes back as any chunk does."""
    rooms = [client.room(each) for each in range(4)]
    assert client.rest() == 4 * CHUNK
    last = np.frombuffer(rooms.pop()[100:200], np.uint8)
    assert client.loans.room(SIZE) is None
    client.loans.rest()
    assert client.rest() == 4 * CHUNK
    del last
    assert client.room(9) is not None
    del rooms
    assert client.rest() == 0


def test_an_answered_room_is_written_again_only_when_nobody_has_a_view(client: Client) -> None:
    """With the answer or with the last view, whichever comes later; meanwhile it may be sent once more."""
    keeping = [client.room(each) for each in range(3)]
    room = client.room(5)
    taken, _ = client.put(room)
    client.loans.back(taken)
    assert client.loans.room(SIZE) is None, "of the view"
    again, _ = client.put(room)
    assert again == taken
    del room
    assert client.loans.room(SIZE) is None, "of the request"
    client.loans.back(again)
    assert memory_of(client.room(6)).lease == taken.lease  # type: ignore[union-attr]
    assert [bytes(each) for each in keeping] == [bytes([each]) * SIZE for each in range(3)]


def test_a_room_that_died_and_was_lent_again_is_not_taken_for_its_predecessor(client: Client) -> None:
    """The view went while the request was under way; what is left of the first room is looked at later."""
    keeping = [client.room(each) for each in range(3)]
    taken, _ = client.put(client.room(1))
    client.loans.back(taken)
    successor = client.room(2)
    assert memory_of(successor).lease == taken.lease  # type: ignore[union-attr]
    assert client.loans.room(SIZE) is None
    assert client.put(successor)[0] == taken
    assert len(keeping) == 3


def test_a_room_that_is_read_on_goes_back_with_its_last_view(client: Client) -> None:
    """Given up, or answered with KEPT: nobody writes there while this client may have to send it again."""
    room = client.room(3)
    taken, _ = client.put(room)
    client.loans.drop(taken)
    assert client.put(room)[0] != taken, "it is copied"
    assert client.rest() == 2 * CHUNK
    del room
    assert client.rest() == CHUNK
    assert client.loans.num_held == 1


def test_rooms_without_a_request_take_a_part_of_the_arena_at_most(client: Client) -> None:
    """However slow their senders are; requests in them do not count."""
    for _ in range(16):
        client.loans.put([bytes(SIZE)])
    client.tell()
    rooms = [client.loans.room(SIZE) for _ in range(12)]
    lent = [each for each in rooms if each is not None]
    assert len(lent) == NUM_CHUNKS // ROOM_SHARE
    client.put(lent[0])
    assert client.loans.room(SIZE) is not None


def test_a_lost_connection_leaves_rooms_to_their_holders_alone(client: Client) -> None:
    """They hold what they held, what comes now reaches nobody else, and what is sent again is copied from there."""
    sent, arriving = client.room(1), client.room(2)
    _, seen = client.put(sent)
    client.loans.leave()
    client.balancer.forget(SESSION)
    client.other.memory[:] = bytes([99]) * len(client.other.memory)  # by whoever has the chunks now
    assert (bytes(sent), bytes(arriving)) == (seen, bytes([2]) * SIZE)
    arriving[:] = bytes([3]) * SIZE
    assert set(client.other.memory) == {99}
    fd = os.memfd_create("next")
    os.ftruncate(fd, NUM_CHUNKS * CHUNK)
    successor = Client(fd)
    os.close(fd)
    assert successor.put(sent)[1] == bytes([1]) * SIZE, "though a lease of the same number is there"
    assert successor.put(arriving)[1] == bytes([3]) * SIZE
