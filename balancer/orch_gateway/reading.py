"""From the bytes of one connection to its requests (RFC 9112), with bounds on what they may be. Pure.

httptools parses. A refusal is the last thing that a connection gives: nothing is read behind it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import httptools
import numpy as np

from orch_gateway.messages import BINARY, HEADER_LENGTH, Request, Response, split_target
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
# A body that has not come after so many seconds takes no memory that others wait for.
LENT_S: Final = 1.0

Lend = Callable[[int], memoryview | None]


def no_memory(_num_bytes: int) -> None:
    """A `lend` that has none."""


def memory_for(num_bytes: int) -> memoryview:
    """Memory of our own that nobody clears first, and that the kernel does not give before something is written."""
    return np.empty(num_bytes, np.uint8).data


def is_one_input(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a body is what a model gets, as it is: bytes, or a raw request of the Open Inference Protocol."""
    if b"content-encoding" in headers:
        return False
    length = headers.get(HEADER_LENGTH)
    return length == b"0" or (length is None and headers.get(b"content-type") == BINARY)


@dataclass(slots=True)
class _Arriving:
    """A request whose end has not come yet."""

    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    num_headers: int = 0
    head_bytes: int = 0
    head_done: bool = False
    is_large: bool = False
    is_lent: bool = False
    pieces: list[bytes] = field(default_factory=list)
    body_bytes: int = 0
    method: str = ""
    began: float = 0.0


def head_again(request: _Arriving, version: str) -> bytes:
    """A request's line and headers, as they could have been sent."""
    lines = [b"%s %s HTTP/%s" % (request.method.encode(), request.target, version.encode())]
    return b"\r\n".join([*lines, *(b"%s: %s" % each for each in request.headers.items()), b"", b""])


class Reading:
    """Owns what has been read of a connection.

    hold: takes bytes of a body into account; False: they are too many. lend: memory for a body that is one input as it
    is, from which it need not be copied any more; None: there is none.

    deadline: when more has to have come of the request that arrives; infinite while none does. wants_body: a client
    waits to be told that its body is welcome. is_over: what follows the last request is not HTTP/1.1. rest: where the
    rest of a large body is to be read to; None: nowhere, `feed` takes what comes. held_bytes: of bodies, as told to
    `hold` and not let go.
    """

    def __init__(self, peer: str, max_body_bytes: int, hold: Callable[[int], bool], lend: Lend = no_memory) -> None:
        self._peer, self._max_body_bytes, self._hold, self._lend = peer, max_body_bytes, hold, lend
        self._parser = httptools.HttpRequestParser(self)
        self._arriving: _Arriving | None = None
        self._now = 0.0
        self.waiting: deque[tuple[Request, bool]] = deque()  # with: may the connection stay
        self.refusal: Response | None = None
        self.deadline = math.inf
        self.wants_body = False
        self.is_over = False
        self.held_bytes = 0
        self.rest: memoryview | None = None
        self._body = memoryview(b"")  # of which `rest` is the end
        self._head = b""  # to be read again

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
            self._parse(data)
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
            self._make_place(arriving)

    def _parse(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as err:  # the parser thinks that the request ends with its head
                if self.refusal is not None:
                    return
                if not self._head:  # of CONNECT there is nothing that could follow
                    self.is_over = True
                    return
                data, self._head = self._head + data[err.args[0] :], b""
                self._parser = httptools.HttpRequestParser(self)
            else:
                return

    def filled(self, num_bytes: int, now: float) -> None:
        """So many bytes have come to the beginning of `rest`."""
        arriving, rest = self._arriving, self.rest
        if arriving is None or rest is None:
            return
        self._now = now
        self._count(arriving, num_bytes)
        if self.rest is None:  # they were too many
            return
        self.rest = rest[num_bytes:]
        if num_bytes == len(rest):
            self._complete(self._body)

    def look(self, now: float) -> None:
        """Called about once a second: what was lent for a body that comes slowly goes back."""
        arriving, rest = self._arriving, self.rest
        if arriving is not None and rest is not None and arriving.is_lent and now > arriving.began + LENT_S:
            arriving.is_lent = False
            come, self._body = self._body[: -len(rest)], memory_for(len(self._body))
            self._body[: len(come)] = come
            self.rest = self._body[len(come) :]

    def refuse(self, response: Response) -> None:
        """Answer what arrives with an error, after what came before it."""
        if self.refusal is None:
            self.refusal, self._arriving, self.deadline = response, None, math.inf
            self.rest, self._body = None, memoryview(b"")

    def end(self) -> None:
        """The client is gone: let go of everything now, whoever may refer to this for a while."""
        self._arriving, self.deadline = None, math.inf
        self.rest, self._body = None, memoryview(b"")
        self.waiting.clear()
        self.let_go(self.held_bytes)

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
        arriving.is_large = num_bytes >= LARGE_BODY_BYTES
        if self._parser.should_upgrade() and b"upgrade" in headers:
            # An offer to change the protocol may be ignored (RFC 9110, 7.8): the same request is read without it.
            del headers[b"upgrade"]
            self._head = head_again(arriving, self._parser.get_http_version())
        elif b"host" not in headers and self._parser.get_http_version() == "1.1":
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
        if self._arriving is not None and not self._head:
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

    def _make_place(self, arriving: _Arriving) -> None:
        """For the whole of a large body, of which the parser has given what it had."""
        begun, num_bytes = b"".join(arriving.pieces), int(arriving.headers[b"content-length"])
        lent = self._lend(num_bytes) if is_one_input(arriving.headers) else None
        arriving.is_lent = lent is not None
        self._body = memory_for(num_bytes) if lent is None else lent
        self._body[: len(begun)] = begun
        self.rest = self._body[len(begun) :]

    def _complete(self, body: bytes | memoryview) -> None:
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return
        parser = self._parser
        if self.rest is not None:  # the parser waits for what has passed it by: the next request gets another
            self.rest, self._body = None, memoryview(b"")
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
