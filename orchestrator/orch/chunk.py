"""Chunks of the arena, and the descriptors that take the place of large frames in a record.

A chunk is a piece of the arena's shared memory that the balancer has leased. A record with Flag.ARENA owns no frames of
the message; its body begins with a descriptor, and its frames lie in the chunk, one after the other in the order of the
payload, each from the next multiple of ALIGN bytes on.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import NamedTuple

from orch.errors import RemoteProtocolError
from orch.wire import MAX_FRAMES

# A cache line, and what vector instructions like.
ALIGN = 64
# Chunks of one GRANT at most: a client that has more to send asks again.
MAX_GRANT = 64

_CHUNK = struct.Struct("<QQQ")  # lease, offset, bytes
_DESCRIPTOR = struct.Struct("<QQQHxxxxxx")  # the same of what is used of it, and how many frames
_COUNT = struct.Struct("<Hxxxxxx")
_NUMBER = struct.Struct("<Q")


class Chunk(NamedTuple):
    """Bytes [offset, offset + size) of the arena. lease: the number under which the balancer has given it away."""

    lease: int
    offset: int
    size: int


class Descriptor(NamedTuple):
    """Where a record's frames are. size: bytes from the chunk's beginning to the end of the last frame.

    places: begin and end of each frame, from the chunk's beginning. body: the record's, without the descriptor.
    """

    lease: int
    offset: int
    size: int
    places: Sequence[tuple[int, int]]
    body: bytes


class Layout(NamedTuple):
    """How frames lie in a chunk. places: begin and end of each, from the chunk's beginning; size: the end of the last.

    packed: what a descriptor says behind the size.
    """

    size: int
    places: tuple[tuple[int, int], ...]
    packed: bytes


@functools.lru_cache  # most of what one program sends has the same few shapes
def layout(lengths: tuple[int, ...]) -> Layout:
    """Of frames of these lengths, one after the other."""
    places = []
    end = 0
    for length in lengths:
        begin = -(-end // ALIGN) * ALIGN
        end = begin + length
        places.append((begin, end))
    return Layout(end, tuple(places), _COUNT.pack(len(lengths)) + write_numbers(lengths))


def span(lengths: Sequence[int]) -> int:
    """Bytes of a chunk that frames of these lengths take."""
    return layout(tuple(lengths)).size


def write_descriptor(chunk: Chunk, lengths: Sequence[int]) -> bytes:
    """What goes before the body of a record whose frames are in the chunk."""
    lease, offset, _ = chunk
    size, _, packed = layout(tuple(lengths))
    return _CHUNK.pack(lease, offset, size) + packed


def read_place(body: bytes) -> Chunk:
    """What a descriptor says of its chunk, which is all that the balancer looks at.

    Raises:
        RemoteProtocolError: the body is too short.
    """
    if len(body) < _DESCRIPTOR.size:
        raise RemoteProtocolError(f"a descriptor in a body of {len(body)} bytes; it has {_DESCRIPTOR.size} or more")
    return tuple.__new__(Chunk, _CHUNK.unpack_from(body))  # its own constructor takes three times as long


def read_descriptor(body: bytes) -> Descriptor:
    """Where the frames are, and the body behind the descriptor.

    Raises:
        RemoteProtocolError: the body holds no descriptor, or one that contradicts itself.
    """
    if len(body) < _DESCRIPTOR.size:
        raise RemoteProtocolError(f"a descriptor in a body of {len(body)} bytes; it has {_DESCRIPTOR.size} or more")
    lease, offset, size, count = _DESCRIPTOR.unpack_from(body)
    start = _DESCRIPTOR.size + count * _NUMBER.size
    if not 1 <= count <= MAX_FRAMES or start > len(body):
        raise RemoteProtocolError(f"a descriptor of {count} frames in a body of {len(body)} bytes")
    found = layout(struct.unpack_from(f"<{count}Q", body, _DESCRIPTOR.size))
    if found.size != size:
        raise RemoteProtocolError(f"a descriptor of {size} bytes whose frames take {found.size}")
    return tuple.__new__(Descriptor, (lease, offset, size, found.places, body[start:]))


def write_chunks(chunks: Sequence[Chunk]) -> bytes:
    """The body of a GRANT."""
    return b"".join([_CHUNK.pack(*chunk) for chunk in chunks])


def read_chunks(body: bytes) -> list[Chunk]:
    """The chunks of a GRANT.

    Raises:
        RemoteProtocolError: the body is not made of whole ones.
    """
    if len(body) % _CHUNK.size:
        raise RemoteProtocolError(f"a GRANT of {len(body)} bytes; a chunk takes {_CHUNK.size}")
    return [Chunk(*fields) for fields in _CHUNK.iter_unpack(body)]


def write_numbers(numbers: Sequence[int]) -> bytes:
    """The body of a RETURN (leases), or of a LEASE (one number: bytes)."""
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def read_numbers(body: bytes) -> list[int]:
    """What `write_numbers` wrote.

    Raises:
        RemoteProtocolError: the body is not made of whole ones.
    """
    if len(body) % _NUMBER.size:
        raise RemoteProtocolError(f"a body of {len(body)} bytes where numbers of {_NUMBER.size} belong")
    return [number for (number,) in _NUMBER.iter_unpack(body)]
