"""Bodies that are read past the parser, to where they stay."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_gateway.reading import BODY_S, LARGE_BODY_BYTES, LENT_S, MIN_BYTES_PER_S, Reading

LIMIT = 2 * LARGE_BODY_BYTES
BODY = random.Random(1).randbytes(LARGE_BODY_BYTES)
GET = b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n"


def post(body: bytes = BODY, version: str = "1.1", more: str = "") -> bytes:
    """A request with this body, or with the beginning of it."""
    return f"POST /a HTTP/{version}\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Held:
    """Bytes that are taken into account; more than `most` are too many."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.num_bytes, self.most = 0, most

    def hold(self, num_bytes: int) -> bool:
        self.num_bytes += num_bytes
        return self.num_bytes <= self.most


def receive(reading: Reading, data: bytes, sizes: list[int], now: float = 0.0) -> None:
    """As a connection does: what comes goes to `rest` if there is one, and no more than fits. sizes: of the reads."""
    for i in range(len(data)):
        if not data:
            return
        size = sizes[i % len(sizes)]
        if reading.rest is None:
            buffer = bytearray(data[:size])
            reading.feed(memoryview(buffer), now)
            size = len(buffer)
            buffer[:] = bytes(size)  # which the next connection overwrites
        else:
            size = min(size, len(reading.rest))
            reading.rest[:size] = data[:size]
            reading.filled(size, now)
        data = data[size:]


@given(st.lists(st.integers(1, 2 * LARGE_BODY_BYTES), min_size=1, max_size=5))
def test_large_requests_are_the_same_however_they_are_cut(sizes: list[int]) -> None:
    """Two of them, and small ones between and behind."""
    sizes = [max(size, LARGE_BODY_BYTES // 50) for size in sizes]
    held = Held()
    reading = Reading("-", LIMIT, held.hold)
    receive(reading, post() + GET + post(BODY[::-1] + b"x") + GET, sizes)
    found = [(request.method, request.path, bytes(request.body)) for request, _ in reading.waiting]
    assert found == [("POST", "/a", BODY), ("GET", "/b", b""), ("POST", "/a", BODY[::-1] + b"x"), ("GET", "/b", b"")]
    assert all(stays for _, stays in reading.waiting)
    assert (reading.rest, reading.refusal, reading.is_amid, reading.deadline) == (None, None, False, math.inf)
    assert held.num_bytes == 2 * len(BODY) + 1


@pytest.mark.parametrize(
    ("version", "more", "stays", "is_old"),
    [
        ("1.1", "", True, False),
        ("1.1", "Connection: close\r\n", False, False),
        ("1.0", "", False, True),
        ("1.0", "Connection: keep-alive\r\n", True, True),
    ],
)
def test_whether_the_client_stays_is_known_of_a_large_request(
    version: str, more: str, stays: bool, is_old: bool
) -> None:
    """The parser never sees its end."""
    reading = Reading("-", LIMIT, Held().hold)
    receive(reading, post(version=version, more=more), [1000])
    (request, found) = reading.waiting[0]
    assert (found, request.is_old) == (stays, is_old)


def test_a_large_body_has_its_own_deadline_and_bounds() -> None:
    """At so many bytes a second; no more in all than are held."""
    reading = Reading("-", LIMIT, Held(LARGE_BODY_BYTES - 1).hold)
    whole = post()
    receive(reading, whole[:20_000], [20_000], now=5.0)
    assert reading.rest is not None
    assert reading.is_amid
    came = LARGE_BODY_BYTES - len(reading.rest)
    assert reading.deadline == 5.0 + BODY_S + came / MIN_BYTES_PER_S
    receive(reading, whole[20_000:], [10_000], now=6.0)
    assert reading.refusal is not None
    assert reading.refusal.status == 503
    assert not reading.waiting
    assert not reading.is_amid


def test_what_is_too_large_is_refused_before_it_comes() -> None:
    """Nothing is made ready for it."""
    reading = Reading("-", LIMIT, Held().hold)
    reading.feed(post(bytes(LIMIT + 1))[:200], 0.0)
    assert reading.refusal is not None
    assert reading.refusal.status == 413
    assert reading.rest is None


def test_a_large_request_that_would_change_the_protocol_is_read_as_any_other() -> None:
    """The offer is ignored, and its body is as large as it says."""
    reading = Reading("-", LIMIT, Held().hold)
    receive(reading, post(more="Upgrade: h2c\r\nConnection: Upgrade\r\n") + GET, [1000])
    assert [(request.path, bytes(request.body)) for request, _ in reading.waiting] == [("/a", BODY), ("/b", b"")]


class Lender:
    """Gives memory for bodies, and remembers it."""

    def __init__(self) -> None:
        self.lent: list[memoryview] = []

    def lend(self, num_bytes: int) -> memoryview:
        self.lent.append(memoryview(bytearray(num_bytes)))
        return self.lent[-1]


@pytest.mark.parametrize(
    ("more", "is_lent"),
    [
        ("Inference-Header-Content-Length: 0\r\n", True),
        ("Content-Type: application/octet-stream\r\n", True),
        ("Content-Type: application/octet-stream\r\nInference-Header-Content-Length: 100\r\n", False),
        ("Content-Type: application/octet-stream\r\nContent-Encoding: gzip\r\n", False),
        ("Content-Type: application/json\r\n", False),
    ],
)
def test_memory_is_lent_for_bodies_that_models_get_as_they_are(more: str, is_lent: bool) -> None:
    """The request's body is that memory; of any other request a part or none would be used."""
    lender = Lender()
    reading = Reading("-", LIMIT, Held().hold, lender.lend)
    receive(reading, post(more=more) + GET, [10_000])
    body = reading.waiting[0][0].body
    assert bytes(body) == BODY
    assert [each.obj for each in lender.lent] == ([memoryview(body).obj] if is_lent else [])


def test_what_was_lent_for_a_slow_body_goes_back() -> None:
    """After a while, and once; what has come is kept, and what comes later follows it."""
    lender = Lender()
    reading = Reading("-", LIMIT, Held().hold, lender.lend)
    whole = post(more="Inference-Header-Content-Length: 0\r\n")
    receive(reading, whole[:40_000], [10_000], now=5.0)
    (lent,) = lender.lent
    reading.look(5.0 + LENT_S)
    assert reading.rest is not None
    assert reading.rest.obj is lent.obj
    reading.look(5.1 + LENT_S)
    own = reading.rest
    assert own.obj is not lent.obj
    reading.look(7.0 + LENT_S)
    assert reading.rest is own
    lent[:] = bytes(len(lent))
    receive(reading, whole[40_000:], [10_000], now=9.0)
    assert bytes(reading.waiting[0][0].body) == BODY
    reading.look(20.0)


def test_a_client_that_is_gone_holds_nothing() -> None:
    """Neither memory nor bytes of the bound, wherever its body was."""
    held = Held()
    reading = Reading("-", LIMIT, held.hold, Lender().lend)
    receive(reading, post() + post(more="Inference-Header-Content-Length: 0\r\n")[:30_000], [10_000])
    reading.end()
    assert (reading.rest, list(reading.waiting), reading.is_amid, held.num_bytes) == (None, [], False, 0)
