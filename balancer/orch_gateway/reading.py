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

from orch_gateway.messages import Request, Response, split_target
from orch_gateway.refusals import refusal

# A request line with all headers; what nginx (4 x 8 KiB) and others take is less.
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 128
# A head, and a body's first bytes, have to be there after so many seconds, and a body goes on at this rate at least.
HEAD_S: Final = 20.0
BODY_S: Final = 20.0
MIN_BYTES_PER_S: Final = 500


@dataclass(slots=True)
class _Arriving:
    """A request whose end has not come yet."""

    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    num_headers: int = 0
    head_bytes: int = 0
    head_done: bool = False
    pieces: list[bytes] = field(default_factory=list)
    body_bytes: int = 0
    method: str = ""
    began: float = 0.0


class Reading:
    """Owns what has been read of a connection. hold: takes bytes of a body into account; False: they are too many.

    deadline: when more has to have come of the request that arrives; infinite while none does. wants_body: a client
    waits to be told that its body is welcome. is_over: what follows the last request is not HTTP/1.1.
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

    @property
    def is_amid(self) -> bool:
        """Whether a request has begun to arrive."""
        return self._arriving is not None

    def feed(self, data: bytes, now: float) -> None:
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
        if arriving is not None and not arriving.head_done:
            arriving.head_bytes += len(data)
            if arriving.head_bytes > MAX_HEAD_BYTES:
                self.refuse(refusal(431, f"the headers have more than {MAX_HEAD_BYTES} bytes"))

    def refuse(self, response: Response) -> None:
        """Answer what arrives with an error, after what came before it."""
        if self.refusal is None:
            self.refusal, self._arriving, self.deadline = response, None, math.inf

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
        if b"host" not in headers and self._parser.get_http_version() == "1.1":
            self.refuse(refusal(400, "an HTTP/1.1 request needs a Host header"))
        elif int(headers.get(b"content-length") or b"0") > self._max_body_bytes:
            self._refuse_body()
        elif headers.get(b"expect", b"").lower() == b"100-continue":
            self.wants_body = True

    def on_body(self, piece: bytes) -> None:
        arriving = self._arriving
        if arriving is None:
            return
        arriving.pieces.append(piece)
        arriving.body_bytes += len(piece)
        self.deadline = arriving.began + BODY_S + arriving.body_bytes / MIN_BYTES_PER_S
        if not self._hold(len(piece)):
            self.refuse(refusal(503, "too many bytes of requests are being read; try again", code="busy"))
        elif arriving.body_bytes > self._max_body_bytes:
            self._refuse_body()

    def on_message_complete(self) -> None:
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return
        self.deadline, self.wants_body = math.inf, False
        try:
            path, query = split_target(arriving.target)
        except ValueError:
            self.refuse(refusal(400, "the request's target is no path"))
            return
        pieces = arriving.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        is_old = self._parser.get_http_version() == "1.0"
        request = Request(arriving.method, path, query, arriving.headers, body, self._peer, is_old, arriving.began)
        self.waiting.append((request, self._parser.should_keep_alive()))

    def _refuse_body(self) -> None:
        limit = self._max_body_bytes
        self.refuse(refusal(413, f"the body has more than {limit} bytes (`orch up --http-max-body` raises it)"))
