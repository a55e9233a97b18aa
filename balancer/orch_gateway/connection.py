"""One HTTP/1.1 connection: requests are served one after the other, and the answers written.

How slowly an answer may be taken is bounded here, and how long a connection may idle. A client that leaves cancels its
request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Final, Protocol, cast

from orch_gateway.messages import BODILESS, Buffer, Header, Request, Response, head_of
from orch_gateway.reading import Reading
from orch_gateway.refusals import refusal

log = logging.getLogger(__name__)

# What a client still sends behind a refusal is read and thrown away for so long: a reset would overtake the answer.
LINGER_S: Final = 2.0
# An answer of which a client has taken nothing for so long is given up.
STALL_S: Final = 30.0
# Requests of one connection that were sent ahead; then it is not read any more.
MAX_AHEAD: Final = 16
# Bytes that may be unsent before a streaming answer waits.
HIGH_WATER_BYTES: Final = 256 * 1024
# Below this head and body leave in one piece, which is one system call.
SMALL_BODY_BYTES: Final = 64 * 1024
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Site(Protocol):
    """What a connection needs of its server. buffer: what is read goes here, and is taken from here at once."""

    max_body_bytes: int
    keep_alive_s: float
    date: bytes
    buffer: memoryview
    draining: bool
    connections: set[Connection]

    def handle(self, request: Request) -> Awaitable[Response]:
        """The answer to a request. It raises nothing but CancelledError."""

    def hold(self, num_bytes: int) -> bool:
        """Take so many bytes of bodies into account (fewer, if negative); whether that is within the bound."""

    def lend(self, num_bytes: int) -> memoryview | None:
        """Memory for a body that is one input as it is; None: there is none."""

    def answered(self, request: Request, response: Response, num_bytes: int) -> None:
        """An answer was written; num_bytes: of its body."""


class Connection(asyncio.BufferedProtocol):
    """Owns one client's socket, and the one request of it that is served: all of them by one task, in turn."""

    def __init__(self, site: Site, loop: asyncio.AbstractEventLoop) -> None:
        self._site, self._loop = site, loop
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Future[tuple[Request, bool]] = loop.create_future()  # which the task waits for
        self._is_serving = False
        self._closing = False
        self._drained: asyncio.Future[None] | None = None
        self._idle_until = time.monotonic() + site.keep_alive_s
        self._unsent, self._unsent_since = 0, 0.0

    # --- asyncio's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's are of no class of asyncio's
        transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        peer = transport.get_extra_info("peername")
        self._reading = Reading(peer[0] if peer else "-", self._site.max_body_bytes, self._site.hold, self._lend)
        self._site.connections.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._site.connections.discard(self)
        self._closing = True
        self._reading.end()
        if self._task is not None:
            self._task.cancel()
        self.resume_writing()

    def get_buffer(self, _sizehint: int) -> memoryview:
        rest = self._reading.rest
        return self._site.buffer if rest is None else rest

    def buffer_updated(self, num_bytes: int) -> None:
        if self._closing:
            return
        reading = self._reading
        if reading.rest is None:
            reading.feed(self._site.buffer[:num_bytes], time.monotonic())
        else:
            reading.filled(num_bytes, time.monotonic())
        self._go_on()

    def pause_writing(self) -> None:
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _lend(self, num_bytes: int) -> memoryview | None:
        """Not for a request that has to wait for another one of this connection."""
        return None if self._is_serving or self._reading.waiting else self._site.lend(num_bytes)

    # --- serving -------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Begin with the next request, if none is under way."""
        reading = self._reading
        if self._transport.is_closing():
            return
        if not self._is_serving:
            if reading.waiting and not self._next.done():
                self._is_serving = True
                self._next.set_result(reading.waiting.popleft())
                if self._task is None:
                    self._task = self._loop.create_task(self._serve())
            elif reading.refusal is not None:
                self._say_refusal(reading.refusal)
            elif reading.is_over:
                self._transport.close()
            elif reading.wants_body:
                reading.wants_body = False
                self._write([CONTINUE])
        if len(reading.waiting) >= MAX_AHEAD:
            self._transport.pause_reading()
        elif not self._transport.is_reading():
            self._transport.resume_reading()

    def _say_refusal(self, response: Response) -> None:
        if not self._closing:
            self._closing = True
            self._write([self._head(response, response.num_bytes, keep_alive=False), *response.buffers])
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._idle_until = time.monotonic() + LINGER_S

    async def _serve(self) -> None:
        site, reading = self._site, self._reading
        while True:
            request, keep_alive = await self._next
            self._next = self._loop.create_future()  # the other one refers to the request, and so to its body
            try:
                response = await site.handle(request)
                keep_alive = keep_alive and not site.draining and not reading.is_over
                if response.parts is None:
                    num_bytes = self._send(request, response, keep_alive=keep_alive)
                else:
                    num_bytes = await self._send_parts(request, response, response.parts, keep_alive=keep_alive)
                site.answered(request, response, num_bytes)
            except asyncio.CancelledError:  # the client has left; a task keeps what it ends with, and so the body
                return
            except Exception:  # a part of a stream could not be made: the client must not take it for the end
                log.exception("an answer to %s %s broke off", request.method, request.path)
                self._transport.abort()
                return
            finally:
                self._is_serving = False
                reading.let_go(len(request.body))
            if not keep_alive or self._closing:
                break
            del request, response  # which hold bodies
            now = time.monotonic()
            self._idle_until = now + site.keep_alive_s
            reading.restart_clock(now)
            self._go_on()
        self._closing = True
        self._transport.close()

    def _send(self, request: Request, response: Response, *, keep_alive: bool) -> int:
        num_bytes = response.num_bytes
        head = self._head(response, num_bytes, keep_alive=keep_alive)
        if request.method == "HEAD" or not num_bytes:
            self._write([head])
        elif num_bytes < SMALL_BODY_BYTES:
            self._write([b"".join((head, *response.buffers))])
        else:
            self._write([head, *response.buffers])
        return num_bytes

    async def _send_parts(
        self, request: Request, response: Response, parts: AsyncGenerator[bytes, None], *, keep_alive: bool
    ) -> int:
        """A body whose length nobody knows yet: in chunks, or for an HTTP/1.0 client until the connection ends."""
        chunked = not request.is_old
        framing = (b"transfer-encoding", b"chunked") if chunked else None
        self._closing = self._closing or not chunked
        num_bytes = 0
        try:
            self._write([head_of(response, date=self._site.date, keep_alive=keep_alive and chunked, framing=framing)])
            async for part in parts:
                num_bytes += len(part)
                self._write([b"%x\r\n" % len(part), part, b"\r\n"] if chunked else [part])
                if self._drained is not None:
                    await self._drained
            if chunked:
                self._write([b"0\r\n\r\n"])
        finally:
            await parts.aclose()
        return num_bytes

    def _head(self, response: Response, num_bytes: int, *, keep_alive: bool) -> bytes:
        framing: Header | None = None
        if response.status not in BODILESS:
            framing = (b"content-length", b"%d" % num_bytes)
        return head_of(response, date=self._site.date, keep_alive=keep_alive, framing=framing)

    def _write(self, buffers: Sequence[Buffer]) -> None:
        if not self._transport.is_closing():
            self._transport.writelines(buffers)

    # --- the server's side ---------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Called about once a second: give up what takes too long."""
        self._reading.look(now)
        unsent = self._transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since > STALL_S:
            self._transport.abort()
        if self._is_serving:
            return
        if self._reading.is_amid and not self._closing:
            if now > self._reading.deadline:
                self._reading.refuse(refusal(408, "the request did not arrive in time"))
                self._go_on()
        elif now > self._idle_until:
            self._transport.close()

    def drain(self) -> None:
        """Take no further request; an idle connection is closed now, another with its answer."""
        if not self._is_serving and not self._reading.is_amid and not self._reading.waiting:
            self._transport.close()

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way, or an answer of it unsent."""
        return self._is_serving or bool(self._transport.get_write_buffer_size())
