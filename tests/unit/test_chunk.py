"""Descriptors of chunks: what is written is read, and anything else is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import chunk
from orch.arena import Arena
from orch.chunk import ALIGN, Chunk
from orch.errors import RemoteProtocolError
from orch.wire import MAX_FRAMES

u64 = st.integers(0, 2**64 - 1)


class Memory(Arena):
    """The arena without a file."""

    def __init__(self, num_bytes: int) -> None:
        self.memory = memoryview(bytearray(num_bytes))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=MAX_FRAMES), st.binary(max_size=20))
def test_a_descriptor_is_read_as_written(lengths: list[int], body: bytes) -> None:
    """Frames in their order, aligned, none over another, and the body behind."""
    where = Chunk(7 << 32 | 1, 4096, 1 << 20)
    found = chunk.read_descriptor(chunk.write_descriptor(where, lengths) + body)
    assert (found.lease, found.offset, found.body) == (where.lease, where.offset, body)
    assert [end - begin for begin, end in found.places] == lengths
    assert all(begin % ALIGN == 0 for begin, _ in found.places)
    assert all(end <= begin for (_, end), (begin, _) in zip(found.places, found.places[1:], strict=False))
    assert found.size == found.places[-1][1] == chunk.span(lengths)
    assert chunk.read_place(chunk.write_descriptor(where, lengths)) == Chunk(where.lease, where.offset, found.size)


@given(st.binary(max_size=200), st.integers(0, 1 << 16))
def test_any_bytes_are_a_place_in_the_memory_or_refused(body: bytes, num_bytes: int) -> None:
    """Nothing beyond the arena is ever looked at, and no other exception leaves."""
    arena = Memory(num_bytes)
    with contextlib.suppress(RemoteProtocolError):
        found, memory = arena.read(body)
        assert len(memory) == found.size
    for read in (chunk.read_chunks, chunk.read_numbers, chunk.read_place):
        with contextlib.suppress(RemoteProtocolError):
            read(body)


@given(u64, u64, st.lists(u64, min_size=1, max_size=3))
def test_huge_numbers_are_refused(offset: int, size: int, lengths: list[int]) -> None:
    """Sums beyond 64 bits, and places beyond the arena's end."""
    body = chunk._DESCRIPTOR.pack(1, offset, size, len(lengths)) + chunk.write_numbers(lengths)  # noqa: SLF001
    with contextlib.suppress(RemoteProtocolError):
        found, memory = Memory(1000).read(body)
        assert found.offset + found.size <= 1000
        assert len(memory) == found.size


def test_grants_and_returns_are_read_as_written() -> None:
    """Any number of each, and none."""
    chunks = [Chunk(1, 2, 3), Chunk(2**64 - 1, 0, 65_536)]
    assert chunk.read_chunks(chunk.write_chunks(chunks)) == chunks
    assert chunk.read_chunks(b"") == []
    assert chunk.read_numbers(chunk.write_numbers([5, 2**64 - 1])) == [5, 2**64 - 1]
    with pytest.raises(RemoteProtocolError, match="a chunk takes 24"):
        chunk.read_chunks(b"x" * 25)
    with pytest.raises(RemoteProtocolError, match="a descriptor in a body of 3 bytes"):
        chunk.read_descriptor(b"abc")


def test_what_is_written_to_a_chunk_is_read_there() -> None:
    """And nowhere else."""
    arena = Memory(4096)
    frames = [memoryview(b"a" * 100), memoryview(b"b" * 65)]
    found, memory = arena.read(arena.write(Chunk(1, 1024, 1024), frames) + b"body")
    assert [bytes(memory[begin:end]) for begin, end in found.places] == [bytes(frame) for frame in frames]
    assert found.body == b"body"
    assert not any(arena.memory[:1024])
    assert not any(arena.memory[1024 + found.size :])
