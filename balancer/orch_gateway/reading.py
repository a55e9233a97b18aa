"""From the bytes of one connection to its requests (RFC 9112), with bounds on what they may be. Pure.

httptools parses. A refusal is the last thing that a connection gives: nothing is read behind it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import httptools
import numpy as np

from orch_gateway.messages import Request, Response, split_target
from orch_gateway.refusals import refusal

# A request line with all headers; what nginx (4 x 8 KiB) and others take is less.
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 128
# A head, and a body's first bytes, have to be there after so many seconds, and a body goes on at this rate at least.
HEAD_S: Final = 20.0
BODY_S: Final = 20.0
MIN_BYTES_PER_S: Final = 500
# A body of so many bytes, if its length is told, is read to where it stays: past the parser, which would copy it twice.
LARGE_BODY_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class _Arriving:
    """A request whose end has not come yet."""

    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    num_headers: int = 0
    head_bytes: int = 0
    head_done: bool = False
    is_large: bool = False
    pieces: list[bytes] = field(default_factory=list)
    body_bytes: int = 0
    method: str = ""
    began: float = 0.0


class Reading:
    """Owns what has been read of a connection. hold: takes bytes of a body into account; False: they are too many.

    deadline: when more has to have come of the request that arrives; infinite while none does. wants_body: a client
    waits to be told that its body is welcome. is_over: what follows the last request is not HTTP/1.1. room: where the
    rest of a large body is to be read to; None: nowhere, `feed` takes what comes. held_bytes: of bodies, as told to
    `hold` and not let go.
    """

    def __init__(self, peer: str, max_body_bytes: int, hold: Callable[[int], bool]) -> None:
        self._peer, self._max_body_bytes, self._hold = peer, max_body_bytes, hold
        self._parser = httptools.HttpRequestParser(self)
        self._arriving: _Arriving | None = None
        self._now = 0.0
        self.waiting: deque[tuple[Request, bool]] = deque()  # with: may the connection stay
        self.refusal: Response | None = None
        self.deadline = math.inf
        self.wants_body = False
        self.is_over = False
        self.held_bytes = 0
        self.room: memoryview | None = None
        self._body = memoryview(b"")  # of which `room` is the end

    @property
    def is_amid(self) -> bool:
        """Whether a request has begun to arrive."""
        return self._arriving is not None

    def feed(self, data: bytes | memoryview, now: float) -> None:
        """What has come. Whole requests are in `waiting` then."""
        if self.refusal is not None or self.is_over:
            return
        self._now = now
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # the request was read; what else it wants is not spoken here
            self.is_over = True
        except httptools.HttpParserError:
            self.refuse(refusal(400, "this is no HTTP/1.1 request"))
        arriving = self._arriving
        if arriving is None:
            return
        if not arriving.head_done:
            arriving.head_bytes += len(data)
            if arriving.head_bytes > MAX_HEAD_BYTES:
                self.refuse(refusal(431, f"the headers have more than {MAX_HEAD_BYTES} bytes"))
        elif arriving.is_large:
            self._make_room(arriving)

    def filled(self, num_bytes: int, now: float) -> None:
        """So many bytes have come to the beginning of `room`."""
        arriving, room = self._arriving, self.room
        if arriving is None or room is None:
            return
        self._now = now
        self._count(arriving, num_bytes)
        if self.room is None:  # they were too many
            return
        self.room = room[num_bytes:]
        if num_bytes == len(room):
            self._complete(self._body)

    def refuse(self, response: Response) -> None:
        """Answer what arrives with an error, after what came before it."""
        if self.refusal is None:
            self.refusal, self._arriving, self.deadline = response, None, math.inf
            self.room, self._body = None, memoryview(b"")

    def let_go(self, num_bytes: int) -> None:
        """Of what is held, so much, or all if it is less."""
        if self.held_bytes:
            num_bytes = min(num_bytes, self.held_bytes)
            self.held_bytes -= num_bytes
            self._hold(-num_bytes)

    def restart_clock(self, now: float) -> None:
        """What was read ahead of its turn gets its time anew."""
        if self._arriving is not None:
            self.deadline = now + HEAD_S

    # --- the parser's side ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.refusal is None:
            self._arriving = _Arriving()
            self.deadline = self._now + HEAD_S

    def on_url(self, piece: bytes) -> None:
        if self._arriving is not None:
            self._arriving.target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        arriving = self._arriving
        if arriving is None:
            return
        arriving.num_headers += 1
        arriving.head_bytes += len(name) + len(value)
        if arriving.num_headers > MAX_HEADERS or arriving.head_bytes > MAX_HEAD_BYTES:
            self.refuse(refusal(431, f"more than {MAX_HEADERS} headers, or {MAX_HEAD_BYTES} bytes of them"))
            return
        name = name.lower()
        known = arriving.headers.get(name)
        arriving.headers[name] = value if known is None else known + b", " + value

    def on_headers_complete(self) -> None:
        arriving = self._arriving
        if arriving is None:
            return
        arriving.head_done, arriving.began = True, self._now
        arriving.method = self._parser.get_method().decode("ascii")
        self.deadline = self._now + BODY_S
        headers = arriving.headers
        num_bytes = int(headers.get(b"content-length") or b"0")
        arriving.is_large = num_bytes >= LARGE_BODY_BYTES and b"upgrade" not in headers
        if b"host" not in headers and self._parser.get_http_version() == "1.1":
            self.refuse(refusal(400, "an HTTP/1.1 request needs a Host header"))
        elif num_bytes > self._max_body_bytes:
            self._refuse_body()
        elif headers.get(b"expect", b"").lower() == b"100-continue":
            self.wants_body = True

    def on_body(self, piece: bytes) -> None:
        arriving = self._arriving
        if arriving is None:
            return
        arriving.pieces.append(piece)
        self._count(arriving, len(piece))

    def on_message_complete(self) -> None:
        if self._arriving is not None:
            pieces = self._arriving.pieces
            self._complete(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    # --- a body --------------------------------------------------------------------------------------------------

    def _count(self, arriving: _Arriving, num_bytes: int) -> None:
        arriving.body_bytes += num_bytes
        self.deadline = arriving.began + BODY_S + arriving.body_bytes / MIN_BYTES_PER_S
        self.held_bytes += num_bytes
        if not self._hold(num_bytes):
            self.refuse(refusal(503, "too many bytes of requests are being read; try again", code="busy"))
        elif arriving.body_bytes > self._max_body_bytes:
            self._refuse_body()

    def _make_room(self, arriving: _Arriving) -> None:
        """For the whole of a large body, of which the parser has given what it had."""
        begun = b"".join(arriving.pieces)
        # Memory that nobody clears first, and that the kernel does not give before something is written to it.
        self._body = np.empty(int(arriving.headers[b"content-length"]), np.uint8).data
        self._body[: len(begun)] = begun
        self.room = self._body[len(begun) :]

    def _complete(self, body: bytes | memoryview) -> None:
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return
        parser = self._parser
        if self.room is not None:  # the parser waits for what has passed it by: the next request gets another
            self.room, self._body = None, memoryview(b"")
            self._parser = httptools.HttpRequestParser(self)
        self.deadline, self.wants_body = math.inf, False
        try:
            path, query = split_target(arriving.target)
        except ValueError:
            self.refuse(refusal(400, "the request's target is no path"))
            return
        stays = parser.should_keep_alive()
        # HTTP/1.0 stays only if it says so; to ask for the version costs more than the rest.
        is_old = (not stays or b"connection" in arriving.headers) and parser.get_http_version() == "1.0"
        request = Request(arriving.method, path, query, arriving.headers, body, self._peer, is_old, arriving.began)
        self.waiting.append((request, stays))

    def _refuse_body(self) -> None:
        limit = self._max_body_bytes
        self.refuse(refusal(413, f"the body has more than {limit} bytes (`orch up --http-max-body` raises it)"))
