"""The arena's memory: one sealed file without a name for each life of a balancer, which every process maps once.

The balancer makes it, and hands its descriptor to processes of the same user over a Unix socket: it is gone when the
last of them is, whatever they died of. Sealed against shrinking and growing, because a peer that truncated it would
kill everybody who reads it with SIGBUS. Memory is committed by the page, when a page is first touched.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

from orch import chunk
from orch.channel import credentials
from orch.chunk import Chunk, Descriptor
from orch.errors import RemoteProtocolError

# The balancer hands it out between two turns of its loop, and a turn takes milliseconds.
HAND_OUT_S = 1.0
_EPOCH = struct.Struct("<Q")
# Of <sys/mman.h>, on Linux; Python's mmap has no name for it.
MAP_FIXED = 0x10


def create(num_bytes: int) -> int:
    """A new arena; the descriptor is inherited by nobody. Raises OSError."""
    fd = os.memfd_create("orch-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


def hand_out(connection: socket.socket, fd: int, epoch: int) -> None:
    """Send the descriptor to whoever has connected; a process of another user gets nothing. Raises OSError."""
    _pid, uid = credentials(connection)
    if uid == os.getuid():
        socket.send_fds(connection, [_EPOCH.pack(epoch)], [fd])


class Arena:
    """A mapping of the arena. It lasts as long as somebody has a view of it."""

    def __init__(self, path: str, epoch: int) -> None:
        """Fetch it from the socket at `path`. Raises OSError; also where it is another epoch's."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(HAND_OUT_S)
            connection.connect(path)
            said, fds, _, _ = socket.recv_fds(connection, _EPOCH.size, 1)
        try:
            if not fds or said != _EPOCH.pack(epoch):
                raise ConnectionRefusedError("it is not this epoch's arena")
            self._map = mmap.mmap(fds[0], 0)
        finally:
            for fd in fds:
                os.close(fd)
        self.memory = memoryview(self._map)

    def write(self, where: Chunk, frames: Sequence[memoryview]) -> bytes:
        """Copy frames, of bytes, into a chunk that they fit into; the descriptor for the record's body."""
        memory, offset = self.memory, where.offset
        lengths = tuple(map(len, frames))
        for frame, (begin, end) in zip(frames, chunk.layout(lengths).places, strict=True):
            memory[offset + begin : offset + end] = frame
        return chunk.write_descriptor(where, lengths)

    def keep(self, where: Chunk) -> None:
        """Make a chunk memory of this process alone, with the same bytes at the same address: views of it stay good.

        Raises:
            OSError: the kernel has no memory for it.
        """
        place = self.memory[where.offset : where.offset + where.size]
        content = bytes(place)
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        address = ctypes.addressof(ctypes.c_char.from_buffer(place))
        if libc.mmap(address, where.size, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0) != address:
            raise OSError(ctypes.get_errno(), "a chunk of shared memory could not be kept")
        place[:] = content

    def read(self, body: bytes) -> tuple[Descriptor, memoryview]:
        """Of a record with Flag.ARENA: what its body says, and the part of the memory that its frames are in.

        Raises:
            RemoteProtocolError: it names no part of this arena.
        """
        found = chunk.read_descriptor(body)
        end = found.offset + found.size
        if end > len(self.memory):
            raise RemoteProtocolError(f"a descriptor of bytes to {end}; the arena has {len(self.memory)}")
        return found, self.memory[found.offset : end]


def bytes_of(frames: Sequence[Any]) -> list[memoryview]:
    """Views of frames, byte by byte."""
    return [memoryview(frame).cast("B") for frame in frames]
