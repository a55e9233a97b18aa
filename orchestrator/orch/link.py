"""JSON lines over a connected socket: how the supervisor talks to its children and to the command line."""

from __future__ import annotations

import json
import socket
from typing import Any

# A status of a thousand replicas is about 200 KB; a line beyond this is not one of ours.
MAX_LINE_BYTES = 16 * 1024 * 1024
READ_BYTES = 64 * 1024

Message = dict[str, Any]


class Link:
    """One end of a stream socket, non-blocking. Owns the socket and what is not yet read or written of it."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self.closed = False

    def fileno(self) -> int:
        """For selectors and pollers."""
        return self.socket.fileno()

    def send(self, **message: Any) -> None:
        """Queue a message and write what the socket takes now; `flush` writes the rest."""
        self._outgoing += json.dumps(message, separators=(",", ":")).encode() + b"\n"
        self.flush()

    @property
    def unsent(self) -> bool:
        """Whether `flush` has something left to write."""
        return bool(self._outgoing) and not self.closed

    def flush(self) -> None:
        """Write what the socket takes. A peer that is gone or never reads sets `closed`: our owner closes us then."""
        while self._outgoing and not self.closed:
            try:
                del self._outgoing[: self.socket.send(self._outgoing)]
            except BlockingIOError:
                if len(self._outgoing) > MAX_LINE_BYTES:
                    self.closed = True
                    self._outgoing.clear()
                return
            except OSError:
                self.closed = True

    def receive(self) -> list[Message]:
        """The messages that have arrived whole. End-of-file, or a line that is no JSON object, sets `closed`."""
        while not self.closed:
            try:
                piece = self.socket.recv(READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece or len(self._incoming) > MAX_LINE_BYTES:
                self.closed = True
            self._incoming += piece
        *lines, rest = self._incoming.split(b"\n")
        self._incoming = bytearray(rest)
        return [message for line in lines if (message := self._parse(bytes(line))) is not None]

    def _parse(self, line: bytes) -> Message | None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self.closed = True
            return None
        return message

    def close(self) -> None:
        """Close the socket; unread and unwritten messages are gone."""
        self.closed = True
        self.socket.close()


def pair() -> tuple[Link, socket.socket]:
    """A link for us and a plain inheritable end for a child."""
    ours, theirs = socket.socketpair()
    return Link(ours), theirs
