"""One look at a server's health: a connection, and perhaps an HTTP request, that never blocks."""

from __future__ import annotations

import errno
import os
import re
import selectors
import socket
import struct
from typing import Final

from orch_worker.health import Answer, of_status

# An answer is read to its end, so that the server sees a client that leaves in order; but no more than this of it.
MAX_ANSWER_BYTES: Final = 64 * 1024
READ_BYTES: Final = 16 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)\b")  # RFC 9112, 4
REFUSALS: Final = (errno.ECONNREFUSED, errno.ECONNRESET)
CONNECTS: Final = Answer("takes connections", well=True)
REFUSES: Final = Answer("refuses connections", failed=True)
HANGS_UP: Final = Answer("ends connections without an answer", failed=True, spoke=True)


class Probe:
    """Owns one connection. path: what is asked for; None: that it connects is enough."""

    def __init__(self, host: str, port: int, path: str | None) -> None:
        self._unsent = b""
        if path is not None:
            words = (f"GET {path} HTTP/1.1", f"Host: {host}:{port}", "User-Agent: orch", "Connection: close", "", "")
            self._unsent = "\r\n".join(words).encode()
        self._asks = path is not None
        self._answer = b""
        self._connecting = True
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._code = self._socket.connect_ex((host, port))

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What it waits for."""
        return selectors.EVENT_WRITE if self._connecting or self._unsent else selectors.EVENT_READ

    def advance(self) -> Answer | None:
        """Go on as far as possible; what it showed, once that is known."""
        try:
            return self._connect() if self._connecting else self._ask()
        except BlockingIOError:
            return None
        except OSError as err:
            return HANGS_UP if isinstance(err, ConnectionError) else _ours(err.strerror or str(err))

    def _connect(self) -> Answer | None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self._code
        if code not in (0, errno.EINPROGRESS):
            return REFUSES if code in REFUSALS else _ours(os.strerror(code))
        if self._socket.getsockname() == self._socket.getpeername():
            # Nobody listens, and the kernel has given us this very port for our own end: we have met ourselves. Left at
            # once, without the minute in which the port would be in the way of whoever is to listen there.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return REFUSES
        self._connecting = False
        return self._ask() if self._asks else CONNECTS

    def _ask(self) -> Answer | None:
        while self._unsent:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        while len(self._answer) < MAX_ANSWER_BYTES:
            try:
                piece = self._socket.recv(READ_BYTES)
            except ConnectionResetError:
                piece = b""
            if not piece:
                break
            self._answer += piece
        found = _STATUS.match(self._answer)
        return of_status(int(found[1])) if found else HANGS_UP

    def partial(self) -> Answer | None:
        """What it showed so far: the status of an answer that does not end."""
        found = _STATUS.match(self._answer)
        return of_status(int(found[1])) if found else None

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def _ours(why: str) -> Answer:
    """What tells nothing of the server: no local port or memory is left for a connection."""
    return Answer(f"cannot be asked ({why})")
