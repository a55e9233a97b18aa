"""The HTTP server: accepts on sockets that it is given, looks after its connections, and drains."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Final, cast

from orch_gateway.connection import Connection
from orch_gateway.messages import Request, Response, head_of
from orch_gateway.reading import Lend, no_memory
from orch_gateway.refusals import refusal

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
CLOSING_POLL_S: Final = 0.01
BACKLOG: Final = 1024
# An idle connection that is about to be closed may bring one more request for so long; its answer says that it closes.
LAST_CALL_S: Final = 1.0
# Bodies that are being read or served, in all: so many of the largest ones. Beyond it a request is refused.
LARGEST_BODIES: Final = 8
TLS_HANDSHAKE_S: Final = 10.0
# Taken in by one read, unless it is the rest of a large body.
READ_BYTES: Final = 32 * 1024

Handle = Callable[[Request], Awaitable[Response]]
Answered = Callable[[Request, Response, int], None]


class Server:
    """Owns the connections. handle: the application; answered: called after each answer was written.

    lend: as of `Reading`.
    """

    def __init__(
        self,
        handle: Handle,
        answered: Answered,
        *,
        lend: Lend = no_memory,
        max_body_bytes: int,
        max_connections: int,
        keep_alive_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.handle, self.answered, self.lend = handle, answered, lend
        self.max_body_bytes, self.keep_alive_s = max_body_bytes, keep_alive_s
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.draining = False
        self.connections: set[Connection] = set()
        self._max_connections = max_connections
        self._tls = tls
        self._held_bytes = 0
        self._servers: list[asyncio.Server] = []
        self._looking: asyncio.Task[None] | None = None
        self.date = b""
        self._note_date()

    async def start(self, sockets: list[socket.socket]) -> None:
        """Accept connections on these, which listen or are bound. Unix sockets speak no TLS: they are on this host."""
        loop = asyncio.get_running_loop()
        if self._looking is None:
            self._looking = loop.create_task(self._look())
        handshake_s = None if self._tls is None else TLS_HANDSHAKE_S
        for sock in sockets:
            if sock.family is socket.AF_UNIX:
                server = await loop.create_unix_server(self._connect, sock=sock, backlog=BACKLOG)
            else:
                server = await loop.create_server(
                    self._connect, sock=sock, backlog=BACKLOG, ssl=self._tls, ssl_handshake_timeout=handshake_s
                )
            self._servers.append(server)

    def hold(self, num_bytes: int) -> bool:
        """Take so many bytes of bodies into account."""
        self._held_bytes += num_bytes
        return self._held_bytes <= LARGEST_BODIES * self.max_body_bytes

    def drain(self) -> None:
        """Answer what has begun; close idle connections, and each other one with its answer."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    async def leave(self) -> None:
        """Leave new connections of the shared address to whoever else holds it; end when all that are here are gone.

        The Unix sockets go on: who has connected to one is ours.
        """
        for server in self._servers:
            if server.sockets[0].family is not socket.AF_UNIX:
                server.close()
        self.draining = True
        await asyncio.sleep(LAST_CALL_S)
        while self.connections:
            self.drain()
            await asyncio.sleep(CLOSING_POLL_S)

    async def stop(self, within_s: float) -> None:
        """Stop accepting, and end when every answer was written, at the latest after so many seconds."""
        self.drain()
        deadline = time.monotonic() + within_s
        while any(each.is_busy for each in self.connections) and time.monotonic() < deadline:  # noqa: ASYNC110  once, at the end
            await asyncio.sleep(CLOSING_POLL_S)
        for server in self._servers:
            server.close()
        if self._looking is not None:
            self._looking.cancel()

    def _connect(self) -> asyncio.BaseProtocol:
        if len(self.connections) >= self._max_connections:
            return _Refused(self.date)
        return Connection(self, asyncio.get_running_loop())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._note_date()
            now = time.monotonic()
            for connection in list(self.connections):
                connection.look(now)

    def _note_date(self) -> None:
        self.date = email.utils.formatdate(usegmt=True).encode()


class _Refused(asyncio.Protocol):
    """A connection beyond the limit."""

    def __init__(self, date: bytes) -> None:
        self._date = date

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        response = refusal(503, "too many connections; try again", code="connections")
        framing = (b"content-length", b"%d" % response.num_bytes)
        head = head_of(response, date=self._date, keep_alive=False, framing=framing)
        transport.writelines([head, *response.buffers])
        transport.close()
