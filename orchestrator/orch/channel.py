"""Messages between processes of one host, over a Unix stream socket.

The same messages as ZeroMQ carries between hosts (wire.py), each behind a prefix that says how long its parts are:

    head length (u32), number of frames (u32), the length of each frame (u64)...   head   frame  frame ...

One read takes in all that has arrived, so what waits for a busy process costs it one system call, and no other thread
is woken on the way: ZeroMQ hands each message from one to another in both processes.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from orch.errors import RemoteProtocolError
from orch.wire import MAX_FRAMES, MAX_INLINE_BYTES

PREFIX = struct.Struct("<II")
FRAME_LENGTH = struct.Struct("<Q")
PREFIX_BYTES, LENGTH_BYTES = PREFIX.size, FRAME_LENGTH.size
# Bytes taken in by one read: a turn of one peer. From 128 KiB on the allocator would map and unmap memory for each,
# which costs five times as much as the read itself.
READ_BYTES = 120 * 1024
# What the kernel keeps between two processes; it gives no more than net.core.wmem_max.
SOCKET_BYTES = 1024 * 1024
# A head is what `wire.messages` makes; one record alone may have a longer body than that.
MAX_HEAD_BYTES = 4 * MAX_INLINE_BYTES
# Until the balancer has said what it takes, and from the balancer itself.
ANY_BYTES = 1 << 62

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid

Incoming = tuple[bytes, Sequence[Any]]  # head and frames


def connect(path: str) -> Channel:
    """A channel to whoever listens at `path`. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # where the listener's queue is full: an error, not a wait
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return Channel(sock)


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel took them at connect; pid 0: of another pid namespace."""
    pid, uid, _gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid


class Channel:
    """One end, non-blocking. Owns the socket and what is not yet read or written of it.

    max_frame_bytes: of one frame that is received.
    """

    def __init__(self, sock: socket.socket, max_frame_bytes: int = ANY_BYTES) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self.socket = sock
        self.closed = False  # the other end is gone, or nothing more can be said to it
        self.is_dry = False  # the last read found nothing
        self.unsent_bytes = 0
        self._max_frame_bytes = max_frame_bytes
        self._partial = bytearray()  # a message whose head has not arrived as a whole
        self._needed = 0  # bytes of it
        self._head = b""  # of the message whose frames are being filled
        self._frames: list[memoryview] = []
        self._empty: deque[memoryview] = deque()  # the parts of its frames that are not filled
        self._unsent: deque[memoryview] = deque()
        self._is_heard = True  # somebody may still read

    def fileno(self) -> int:
        """For pollers."""
        return self.socket.fileno()

    # --- receiving

    def receive(self) -> list[Incoming]:
        """Read once; the messages that have arrived whole. End-of-file sets `closed`.

        Raises:
            RemoteProtocolError: what came is no message; nothing that comes behind it can be read.
        """
        if self._empty:
            return self._fill()
        self.is_dry = False
        try:
            data = self.socket.recv(READ_BYTES)
        except BlockingIOError:
            self.is_dry = True
            return []
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return []
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return []
            data, self._partial = bytes(self._partial), bytearray()
        return self._cut(data)

    def _cut(self, data: bytes) -> list[Incoming]:
        found: list[Incoming] = []
        start, end = 0, len(data)
        while start < end:
            stop = begin = start + PREFIX_BYTES
            if begin <= end:
                length, num_frames = PREFIX.unpack_from(data, start)
                if not length or length > MAX_HEAD_BYTES or num_frames > MAX_FRAMES:
                    raise self._broken(f"a message of {length} bytes and {num_frames} frames")
                if num_frames:
                    begin += num_frames * LENGTH_BYTES
                stop = begin + length
            if stop > end:
                self._partial, self._needed = bytearray(memoryview(data)[start:]), stop - start
                break
            if num_frames:
                self._head = data[begin:stop]
                lengths = FRAME_LENGTH.iter_unpack(data[start + PREFIX_BYTES : begin])
                self._frames = [self._memory(each) for (each,) in lengths]
                stop = self._pour(data, stop)
                if self._empty:
                    break
                found.append(self._whole())
            else:
                found.append((data[begin:stop], ()))
            start = stop
        return found

    def _memory(self, num_bytes: int) -> memoryview:
        if num_bytes > self._max_frame_bytes:
            raise self._broken(f"a frame of {num_bytes} bytes; the limit is {self._max_frame_bytes}")
        # Not zeroed, and the system commits it by the page as it is filled: a lie about the length costs nothing.
        try:
            memory = np.empty(num_bytes, np.uint8).data
        except MemoryError:
            raise self._broken(f"a frame of {num_bytes} bytes; there is no memory for it") from None
        if num_bytes:
            self._empty.append(memory)
        return memory

    def _pour(self, data: bytes, start: int) -> int:
        """Move what is here of the frames into them; where the rest begins."""
        while self._empty and start < len(data):
            space = self._empty[0]
            piece = memoryview(data)[start : start + len(space)]
            space[: len(piece)] = piece
            self._filled(len(piece))
            start += len(piece)
        return start

    def _fill(self) -> list[Incoming]:
        # All frames in one call; what follows the last one waits for the next.
        self.is_dry = False
        try:
            num_bytes = self.socket.recvmsg_into(list(self._empty))[0]
        except BlockingIOError:
            self.is_dry = True
            return []
        except OSError:
            num_bytes = 0
        if not num_bytes:
            self.closed = True
            return []
        while num_bytes:
            taken = min(num_bytes, len(self._empty[0]))
            self._filled(taken)
            num_bytes -= taken
        return [] if self._empty else [self._whole()]

    def _whole(self) -> Incoming:
        frames, self._frames = self._frames, []  # who receives them alone decides how long they stay
        return self._head, frames

    def _filled(self, num_bytes: int) -> None:
        space = self._empty.popleft()
        if num_bytes < len(space):
            self._empty.appendleft(space[num_bytes:])

    def _broken(self, what: str) -> RemoteProtocolError:
        self.closed = True
        self._empty.clear()
        return RemoteProtocolError(what)

    # --- sending

    def send(self, message: Sequence[Any]) -> bool:
        """Write a message, its head first; whether all of it is out. `flush` writes the rest.

        The parts are read until then. What is said to somebody who is gone is dropped: `receive` tells.
        """
        if self.closed or not self._is_heard:
            return True
        head = message[0]
        if len(message) == 1:
            parts: list[Any] = [PREFIX.pack(len(head), 0) + head]
            num_bytes = len(parts[0])
        else:
            frames = [memoryview(frame).cast("B") for frame in message[1:]]
            lengths = [len(frame) for frame in frames]
            start = PREFIX.pack(len(head), len(frames)) + b"".join(map(FRAME_LENGTH.pack, lengths)) + head
            parts = [start, *frames]
            num_bytes = len(start) + sum(lengths)
        sent = 0 if self._unsent else self._write(parts)
        if sent == num_bytes or not self._is_heard:
            return True
        self._unsent.extend(map(memoryview, parts))
        self.unsent_bytes += num_bytes
        self._sent(sent)
        return False

    def flush(self) -> bool:
        """Write what could not be written before; whether nothing is left."""
        while self._unsent and not self.closed:
            sent = self._write(list(itertools.islice(self._unsent, MAX_FRAMES)))
            if not sent:
                break
            self._sent(sent)
        return not self._unsent

    def _sent(self, num_bytes: int) -> None:
        """So much of what waits is out."""
        self.unsent_bytes -= num_bytes
        while num_bytes:
            part = self._unsent.popleft()
            if num_bytes < len(part):
                self._unsent.appendleft(part[num_bytes:])
            num_bytes = max(0, num_bytes - len(part))

    def _write(self, parts: Sequence[Any]) -> int:
        try:
            return self.socket.send(parts[0]) if len(parts) == 1 else self.socket.sendmsg(parts)
        except BlockingIOError:
            return 0
        except OSError:
            self._is_heard = False  # what the other end said before that may still be here
            self._drop()
            return 0

    def _drop(self) -> None:
        self._unsent.clear()
        self.unsent_bytes = 0

    def close(self) -> None:
        """Close the socket; what is not read or written is gone."""
        self.closed = True
        self._drop()
        self.socket.close()
