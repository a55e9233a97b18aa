"""Compressed bodies: gzip and deflate (RFC 9110, 8.4.1), in and out. What comes in is bounded as it unfolds."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Final

from orch_gateway.messages import Buffer
from orch_gateway.refusals import Refused

GZIP, DEFLATE = "gzip", "deflate"
# zlib's window, with gzip's or zlib's own wrapping; negative: none, which some clients send as deflate.
WBITS: Final = {GZIP: 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, DEFLATE: zlib.MAX_WBITS}
# The fastest: it already takes most of the redundancy, and a host's own network is faster than any other level.
LEVEL: Final = 1
# Below this the headers of the reply outweigh what is saved.
WORTH_BYTES: Final = 1024


def unfold(body: bytes | memoryview, encoding: str, limit: int) -> bytes | memoryview:
    """The body that `encoding` (of Content-Encoding) stands for, of at most `limit` bytes.

    Raises:
        Refused: 415 for another encoding, 413 for one that unfolds to more, 400 for what is no such data.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    wbits = WBITS.get(encoding)
    if wbits is None:
        raise Refused(415, f"Content-Encoding {encoding[:40]!r} is not known here; use gzip or deflate")
    if encoding == DEFLATE and not _has_zlib_header(body):
        wbits = -zlib.MAX_WBITS
    pieces: list[bytes] = []
    room = limit
    while body:  # gzip may be several members, one after the other
        unfolder = zlib.decompressobj(wbits)
        try:
            piece = unfolder.decompress(body, room + 1)
        except zlib.error:
            raise Refused(400, f"the body is no {encoding} data") from None
        room -= len(piece)
        if room < 0:
            raise Refused(413, f"the body unfolds to more than {limit} bytes", "too_large")
        if not unfolder.eof:
            raise Refused(400, f"the body's {encoding} data end too soon")
        pieces.append(piece)
        body = unfolder.unused_data
    return b"".join(pieces)


def _has_zlib_header(body: bytes | memoryview) -> bool:
    """RFC 1950, 2.2: method 8, and a check that makes the first two bytes a multiple of 31."""
    return len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and (body[0] << 8 | body[1]) % 31 == 0


def chosen(accept: str) -> str:
    """gzip, deflate, or "" for neither, by Accept-Encoding. Where both are welcome: gzip."""
    welcome = set()
    for entry in accept.lower().split(","):
        name, _, parameters = entry.partition(";")
        if parameters.replace(" ", "").rstrip("0") not in ("q=", "q=0."):
            welcome.add(name.strip())
    return GZIP if GZIP in welcome or "*" in welcome else DEFLATE if DEFLATE in welcome else ""


def fold(buffers: Iterable[Buffer], encoding: str) -> bytes:
    """The same body, compressed."""
    folder = zlib.compressobj(LEVEL, zlib.DEFLATED, WBITS[encoding])
    return b"".join([*(folder.compress(each) for each in buffers), folder.flush()])
