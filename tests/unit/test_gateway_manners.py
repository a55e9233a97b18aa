"""Request ids, time-outs, keys and their rates, web pages, and compressed bodies."""

from __future__ import annotations

import gzip
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.errors import ConfigError
from orch.http_settings import HttpSettings, check_exposure
from orch_gateway.encoding import chosen, fold, unfold
from orch_gateway.manners import Keys, Origins, priority, request_id, timeout_s
from orch_gateway.messages import Request
from orch_gateway.refusals import Refused


def refused(status: int) -> pytest.RaisesExc[Refused]:
    """That the block ends in a refusal of this status."""
    return pytest.raises(Refused, check=lambda err: err.status == status)


def test_a_request_id_that_could_break_a_line_is_replaced() -> None:
    """Blanks, line ends, other alphabets, and what is too long for a log."""
    assert request_id("a-1", "made") == "a-1"
    for bad in ("", "a b", "a\r\nb", "ü", "x" * 129):
        assert request_id(bad, "made") == "made"


def test_time_outs_and_priorities_are_read_or_refused() -> None:
    """Nothing said is no limit and the middle one."""
    assert (timeout_s(None), timeout_s("2.5"), priority(None), priority(" High ")) == (None, 2.5, "normal", "high")
    for bad in ("", "0", "-1", "1_0", "nan", "inf", "1e9", "soon"):
        with refused(400):
            timeout_s(bad)
    for bad in ("", "urgent"):
        with refused(400):
            priority(bad)


def keys(required: bool = False) -> Keys:
    """Keys whose tokens are their digests backwards."""
    return Keys(lambda token: token[::-1], required)


def test_without_keys_everybody_may_come_unless_they_are_required() -> None:
    """An address that others can reach stays shut, however few keys there are."""
    assert keys().admit("", 0.0) == ""
    with refused(401):
        keys(required=True).admit("", 0.0)


def test_with_keys_only_their_bearers_come_in() -> None:
    """By the name of the key they are known."""
    found = keys()
    found.replace([{"name": "app", "digest": "cba", "rate": None}])
    assert found.admit("Bearer abc", 0.0) == "app"
    assert found.admit("bearer  abc", 0.0) == "app"
    for bad in ("", "abc", "Basic abc", "Bearer", "Bearer cba"):
        with refused(401):
            found.admit(bad, 0.0)


def test_a_key_may_not_ask_faster_than_its_rate() -> None:
    """A second's worth at once, then one by one; the refusal says when. Reading the file anew gives nothing extra."""
    found, row = keys(), {"name": "app", "digest": "cba", "rate": 2.0}
    found.replace([row])
    assert [found.admit("Bearer abc", 0.0) for _ in range(2)] == ["app", "app"]
    found.replace([row])
    with pytest.raises(Refused) as caught:
        found.admit("Bearer abc", 0.25)
    assert (caught.value.status, caught.value.retry_after_s) == (429, 0.25)
    assert found.admit("Bearer abc", 0.5) == "app"
    found.replace([])
    assert found.admit("", 1.0) == ""


def from_page(origin: str, method: str = "POST") -> Request:
    """What a browser sends for a page of this origin."""
    return Request(method, "/predict", "", {b"origin": origin.encode()})


def test_pages_of_other_sites_are_refused_where_the_address_is_the_only_guard() -> None:
    """A page of this host, one that is allowed, one with a key, and programs may ask."""
    origins = Origins("https://mine.example", guarded=True)
    for origin in ("http://localhost:3000", "http://127.0.0.1", "http://[::1]:8", "https://mine.example"):
        origins.check(from_page(origin), has_key=False)
    for origin in (
        "https://other.example",
        "null",
        "http://localhost.other.example",
        "http://127.0.0.1.nip.io",
        "http://[",
    ):
        with refused(403):
            origins.check(from_page(origin), has_key=False)
        origins.check(from_page(origin), has_key=True)
        Origins("", guarded=False).check(from_page(origin), has_key=False)
    origins.check(Request("POST", "/predict", "", {}), has_key=False)


def test_browsers_are_told_of_pages_that_are_allowed_and_of_no_others() -> None:
    """Nothing at all by default."""
    assert Origins().headers(from_page("https://mine.example")) == []
    mine = Origins("https://mine.example")
    assert mine.headers(from_page("https://other.example")) == []
    assert (b"access-control-allow-origin", b"https://mine.example") in mine.headers(from_page("https://mine.example"))
    assert (b"access-control-allow-methods", b"GET, POST, OPTIONS") in mine.headers(
        from_page("https://mine.example", "OPTIONS")
    )
    assert (b"access-control-allow-origin", b"*") in Origins("*").headers(from_page("https://any.example"))


def test_other_machines_need_a_key_or_the_users_word() -> None:
    """And HTTPS needs both of its files."""
    settings = HttpSettings(http="0.0.0.0:80")
    check_exposure(settings, "http", "127.0.0.9", has_keys=False)
    check_exposure(settings, "http", "10.0.0.1", has_keys=True)
    check_exposure(HttpSettings(insecure=True), "http", "::", has_keys=False)
    for host in ("0.0.0.0", "10.0.0.1", "::"):
        with pytest.raises(ConfigError, match=r"http = 0\.0\.0\.0:80 .* --insecure"):
            check_exposure(settings, "http", host, has_keys=False)
    with pytest.raises(ConfigError, match="tls_cert is given without tls_key"):
        check_exposure(HttpSettings(tls_cert="a"), "http", "127.0.0.1", has_keys=False)


# --- compressed bodies


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate"]))
def test_what_was_folded_unfolds_to_the_same(body: bytes, encoding: str) -> None:
    """Both encodings, in pieces."""
    folded = fold([body[:7], memoryview(body)[7:]], encoding)
    assert unfold(folded, encoding, len(body)) == body
    if body:
        with refused(413):
            unfold(folded, encoding, len(body) - 1)


def test_deflate_without_its_wrapping_and_gzip_in_members_are_read() -> None:
    """Some clients send the one, and logs that were appended to are the other."""
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    assert unfold(bare.compress(b"abc") + bare.flush(), "deflate", 3) == b"abc"
    assert unfold(gzip.compress(b"ab") + gzip.compress(b"c"), " GZIP ", 3) == b"abc"
    assert unfold(b"abc", "identity", 1) == b"abc"


@given(st.binary(min_size=1, max_size=100), st.sampled_from(["gzip", "deflate"]))
def test_damaged_data_are_refused_and_nothing_else(body: bytes, encoding: str) -> None:
    """Any bytes unfold within the limit, or are an error of the client's."""
    with suppress(Refused):
        assert len(unfold(body, encoding, 10)) <= 10
    with refused(400):
        unfold(fold([body], encoding)[:-1], encoding, 1000)
    with refused(415):
        unfold(body, "br", 1000)


def test_an_answer_is_compressed_as_the_client_likes_it() -> None:
    """Gzip where both are welcome; a weight of zero is a no."""
    likes = {
        "": "", "gzip": "gzip", "deflate": "deflate", "deflate, gzip;q=0.5": "gzip", "*": "gzip",
        "gzip;q=0": "", "gzip;q=0.000, deflate": "deflate", "br": "", "identity": "", "GZIP": "gzip",
    }  # fmt: skip
    assert {accept: chosen(accept) for accept in likes} == likes
