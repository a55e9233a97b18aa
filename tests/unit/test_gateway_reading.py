"""Bytes of a connection as requests: split anywhere, one behind the other, too large, too slow, and no HTTP at all."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_gateway.messages import Response, head_of, split_target
from orch_gateway.reading import BODY_S, HEAD_S, MAX_HEAD_BYTES, MAX_HEADERS, MIN_BYTES_PER_S, Reading

LIMIT = 100
POST = b"POST /a%20b?q=%20 HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Held:
    """Bytes that are taken into account; more than `most` are too many."""

    def __init__(self, most: int = 10_000) -> None:
        self.num_bytes, self.most = 0, most

    def hold(self, num_bytes: int) -> bool:
        self.num_bytes += num_bytes
        return self.num_bytes <= self.most


def reading(held: Held | None = None) -> Reading:
    """A connection of which nothing was read."""
    return Reading("1.2.3.4", LIMIT, (held or Held()).hold)


def refused(data: bytes, held: Held | None = None) -> int:
    """The status with which these bytes are refused."""
    found = reading(held)
    found.feed(data, 0.0)
    assert found.refusal is not None
    assert not found.waiting
    return found.refusal.status


@given(st.lists(st.integers(0, len(POST + GET)), max_size=8))
def test_requests_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    """A network promises nothing about where one piece ends and the next begins."""
    data, found = POST + GET, reading()
    for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(data)], strict=True):
        found.feed(data[begin:end], 1.0)
    (post, stays), (get, _) = found.waiting
    assert (post.method, post.path, post.query, post.body, stays) == ("POST", "/a b", "q=%20", b"hello", True)
    assert (post.header(b"x-a"), post.peer, post.began) == ("1, 2", "1.2.3.4", 1.0)
    assert (get.method, get.body) == ("GET", b"")
    assert (found.refusal, found.is_amid, found.deadline) == (None, False, math.inf)


def test_a_client_may_want_to_close() -> None:
    """It says so, or speaks HTTP/1.0."""
    for data in (GET[:-2] + b"Connection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"):
        found = reading()
        found.feed(data, 0.0)
        assert not found.waiting[0][1]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET \xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (POST.replace(b": 5", b": 5\r\nContent-Length: 6"), 400),
        (POST.replace(b": 5", b": 101"), 413),
        (POST.replace(b": 5", b": 99999999999999999999999"), 400),
        (CHUNKED + b"65\r\n" + b"x" * 101 + b"\r\n", 413),
        (GET[:-2] + b"X: " + b"x" * MAX_HEAD_BYTES, 431),
        (GET[:-2] + b"X: 1\r\n" * MAX_HEADERS + b"\r\n", 431),
        (b"GET /" + b"x" * MAX_HEAD_BYTES, 431),
    ],
)
def test_what_is_malformed_or_too_large_is_refused(data: bytes, status: int) -> None:
    """Each with its status, and nothing of it is served."""
    assert refused(data) == status


@given(st.binary(max_size=300))
def test_any_bytes_are_requests_or_a_refusal(data: bytes) -> None:
    """No exception leaves the reader, whoever talks to it."""
    found = reading()
    found.feed(data, 0.0)
    found.feed(GET, 1.0)


def test_nothing_is_read_behind_a_refusal() -> None:
    """What a request that was not understood hides is never taken for another one."""
    found = reading()
    found.feed(GET + b"junk\r\n\r\n" + GET, 0.0)
    found.feed(GET, 1.0)
    assert len(found.waiting) == 1
    assert found.refusal is not None


def test_bodies_count_as_they_come_and_too_many_are_refused() -> None:
    """The bound is on all connections together."""
    held = Held(most=3)
    assert refused(POST, held) == 503
    assert held.num_bytes == 5


def test_each_part_of_a_request_has_its_time() -> None:
    """A head has its seconds; a body has its own, and gains more with what has come."""
    found = reading()
    assert found.deadline == math.inf
    found.feed(POST[:20], 10.0)
    assert found.deadline == 10 + HEAD_S
    found.feed(POST[20:30], 12.0)
    assert found.deadline == 10 + HEAD_S, "a byte now and then does not lengthen it"
    found.feed(POST[30:-3], 13.0)
    assert found.deadline == 13 + BODY_S + 2 / MIN_BYTES_PER_S
    found.restart_clock(50.0)
    assert found.deadline == 50 + HEAD_S
    found.feed(POST[-3:], 51.0)
    assert found.deadline == math.inf


def test_who_waits_to_be_welcome_is_told_so_once_its_head_is_there() -> None:
    """Not when its body is too large; then the refusal is what it is told."""
    asks = POST[:-5].replace(b"Host", b"Expect: 100-continue\r\nHost")
    found = reading()
    found.feed(asks, 0.0)
    assert found.wants_body
    found.feed(b"hello", 0.0)
    assert not found.wants_body
    assert refused(asks.replace(b": 5", b": 500")) == 413


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nHost"


@given(st.integers(1, 400))
def test_a_client_that_offers_another_protocol_is_answered_in_this_one(size: int) -> None:
    """Whatever the body, and however it is cut: the offer is ignored, and the connection goes on."""
    found = reading()
    in_pieces = CHUNKED.replace(b"Host", OFFER) + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    data = GET.replace(b"Host", OFFER) + POST.replace(b"Host", OFFER) + in_pieces + GET
    for begin in range(0, len(data), size):
        found.feed(data[begin : begin + size], 0.0)
    bodies = [(request.method, request.path, bytes(request.body)) for request, _ in found.waiting]
    assert bodies == [("GET", "/", b""), ("POST", "/a b", b"hello"), ("POST", "/", b"abc"), ("GET", "/", b"")]
    assert all(b"upgrade" not in request.headers and stays for request, stays in found.waiting)
    assert (found.is_over, found.refusal, found.is_amid) == (False, None, False)


def test_an_offer_opens_no_way_round_the_limits() -> None:
    """A body that is too large is refused as any other, a request without a host too."""
    assert refused(POST.replace(b"Host", OFFER).replace(b": 5", b": 101")) == 413
    assert refused(POST.replace(b"Host: x", OFFER[:-6])) == 400


def test_behind_a_tunnel_nothing_is_read() -> None:
    """There is none, and what would go through it is no HTTP."""
    found = reading()
    found.feed(b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n" + GET, 0.0)
    assert found.refusal is not None or found.is_over
    assert not found.waiting


def test_targets_are_paths_in_any_of_their_forms() -> None:
    """As a path, as a whole URL, and as a star; nothing else."""
    assert split_target(b"/a%2Fb?x=1?y") == ("/a/b", "x=1?y")
    assert split_target(b"http://host:80/a?b") == ("/a", "b")
    assert split_target(b"*") == ("*", "")
    for junk in (b"ftp://x/", b"a/b", b"/%ff"):
        with pytest.raises(ValueError):  # noqa: PT011  any
            split_target(junk)


def test_a_head_tells_how_its_body_ends() -> None:
    """By a length, in chunks, or, where a status has no body, not at all."""
    whole = Response(200, (b"ab",), b"text/plain", [(b"x-a", b"1")])
    head = head_of(whole, date=b"now", keep_alive=False, framing=(b"content-length", b"2"))
    assert head.split(b"\r\n") == [
        *(b"HTTP/1.1 200 OK", b"date: now", b"content-type: text/plain", b"content-length: 2", b"x-a: 1"),
        *(b"connection: close", b"", b""),
    ]
    empty = head_of(Response(204), date=b"now", keep_alive=True, framing=None)
    assert empty == b"HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n"
