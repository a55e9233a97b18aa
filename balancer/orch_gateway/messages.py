"""An HTTP request and its answer as values, and the bytes of an answer's head (RFC 9110, RFC 9112)."""

from __future__ import annotations

import functools
import http
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

JSON: Final = b"application/json"
EVENTS: Final = b"text/event-stream"
BINARY: Final = b"application/octet-stream"
TEXT: Final = b"text/plain; charset=utf-8"

# Of the Open Inference Protocol: how many bytes of a body are JSON, and the tensors' binary form behind it.
HEADER_LENGTH: Final = b"inference-header-content-length"

Header = tuple[bytes, bytes]
Buffer = bytes | bytearray | memoryview
STATUS_LINES: Final = {int(each): b"HTTP/1.1 %d %s\r\n" % (each, each.phrase.encode()) for each in http.HTTPStatus}
# An answer of these statuses has no body, and so no length (RFC 9110, 15.3.5 and 15.4.5).
BODILESS: Final = frozenset({204, 304})
# Targets, and media types, that are remembered; none is longer than a head may be.
KNOWN: Final = 128


@dataclass(slots=True)
class Request:
    """One request, its body read to the end.

    headers: names in lower case; the values of one that was repeated are joined by ", ". body: a large one is memory of
    its own, which nobody writes to any more.
    is_old: HTTP/1.0. began: when its head was complete, in monotonic seconds. request_id: the client's, or
    one made for it. key: the name of the key that it came with. route: the template that its path fits.
    """

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    body: bytes | memoryview = b""
    peer: str = ""
    is_old: bool = False
    began: float = 0.0
    request_id: str = ""
    key: str = ""
    route: str = ""

    def header(self, name: bytes) -> str:
        """A header's value as text; "" where there is none."""
        return self.headers.get(name, b"").decode("latin-1")

    def find(self, name: bytes) -> str | None:
        """The same; None where there is none."""
        found = self.headers.get(name)
        return None if found is None else found.decode("latin-1")

    @property
    def media_type(self) -> str:
        """Content-Type without its parameters, in lower case."""
        return media_type(self.headers.get(b"content-type", b""))


@dataclass(slots=True)
class Response:
    """One answer. buffers: the body, whole, in views of bytes; parts: the body, as it comes (then buffers is empty)."""

    status: int = 200
    buffers: Sequence[Buffer] = ()
    content_type: bytes = JSON
    headers: list[Header] = field(default_factory=list)
    parts: AsyncGenerator[bytes, None] | None = None

    @property
    def num_bytes(self) -> int:
        """Length of a whole body."""
        return sum(map(len, self.buffers))


def head_of(response: Response, *, date: bytes, keep_alive: bool, framing: Header | None) -> bytes:
    """Status line and headers, with the empty line that ends them. framing: how the body's end is told, if by a header.

    Values may hold no line ends: the application makes them from checked texts.
    """
    lines = [STATUS_LINES.get(response.status) or b"HTTP/1.1 %d \r\n" % response.status, b"date: ", date, b"\r\n"]
    if response.content_type and response.status not in BODILESS:
        lines += (b"content-type: ", response.content_type, b"\r\n")
    if framing is not None:
        lines += (framing[0], b": ", framing[1], b"\r\n")
    for name, value in response.headers:
        lines += (name, b": ", value, b"\r\n")
    if not keep_alive:
        lines.append(b"connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


@functools.lru_cache(KNOWN)
def media_type(content_type: bytes) -> str:
    """A Content-Type without its parameters, in lower case."""
    return content_type.decode("latin-1").partition(";")[0].strip().lower()


@functools.lru_cache(KNOWN)
def split_target(target: bytes) -> tuple[str, str]:
    """Path, decoded, and query, as it is, of a request's target (RFC 9112, 3.2).

    Raises:
        ValueError: it is none.
    """
    text = target.decode("ascii")
    if not text.startswith("/"):
        if text == "*":
            return text, ""
        whole = urlsplit(text)
        if whole.scheme not in ("http", "https"):
            raise ValueError(text)
        return unquote(whole.path or "/", errors="strict"), whole.query
    path, _, query = text.partition("?")
    return (unquote(path, errors="strict") if "%" in path else path), query
