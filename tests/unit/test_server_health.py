"""When somebody else's server is ready, and when it is given up."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator

import pytest

from orch_worker.health import LOADING_LOOK_S, LONG_S, MAX_FAILURES, SLOW_LOOK_S, Answer, Health, of_status
from orch_worker.probe import CONNECTS, HANGS_UP, REFUSES, Probe

WHERE = "127.0.0.1:9100/v1/health"


def a_ready_one() -> Health:
    """It was well once."""
    health = Health(WHERE, timeout_s=300.0)
    health.heard(of_status(200), 0.0)
    return health


def test_only_a_good_answer_makes_ready() -> None:
    """Whatever it says before, it is waited for; what it says is told to whoever waits."""
    health = Health(WHERE, timeout_s=300.0)
    assert health.waiting_for == f"no answer at {WHERE} yet"
    for answer in (REFUSES, REFUSES, REFUSES, REFUSES, of_status(503), of_status(404)):
        health.heard(answer, 0.0)
        assert (health.ready, health.why_ill(silent_s=1000.0)) == (False, None)
    assert health.waiting_for == f"it answers 404 at {WHERE}"
    health.heard(of_status(302), 0.0)
    assert (health.ready, "--health takes the path behind it" in health.waiting_for) == (False, True)
    health.heard(of_status(204), 0.0)
    assert health.ready


def test_who_answers_alike_for_long_is_asked_less_often() -> None:
    """Each look may be a line in its log; where nobody listens yet, or the answer changes, it is asked as before."""
    health = Health(WHERE, timeout_s=300.0)
    for answer, since in ((REFUSES, 0.0), (of_status(404), 100.0), (of_status(503), 200.0), (HANGS_UP, 300.0)):
        health.heard(answer, since)
        health.heard(answer, since + LONG_S - 0.1)
        assert (health.is_stuck(since + LONG_S - 0.1), health.loading_look_s(since)) == (False, LOADING_LOOK_S)
        health.heard(answer, since + LONG_S)
        slow = answer != REFUSES
        assert health.is_stuck(since + LONG_S) is slow
        assert health.loading_look_s(since + LONG_S) == (SLOW_LOOK_S if slow else LOADING_LOOK_S)
    health.heard(of_status(200), 400.0)
    health.heard(of_status(404), 401.0)
    assert not health.is_stuck(500.0), "it was well: that is no question of loading any more"


def test_failures_in_a_row_are_its_end() -> None:
    """One good answer between them, and they begin anew."""
    health = a_ready_one()
    for answer in [*[of_status(500)] * (MAX_FAILURES - 1), of_status(200), *[REFUSES] * (MAX_FAILURES - 1)]:
        health.heard(answer, 0.0)
        assert health.why_ill(silent_s=0.0) is None
    health.heard(REFUSES, 0.0)
    assert health.why_ill(silent_s=0.0) == f"the server refuses connections at {WHERE}, 3 times in a row"


def test_busy_is_not_hung() -> None:
    """A server that runs one request at a time answers when it is done with it."""
    health = a_ready_one()
    assert health.why_ill(silent_s=299.0) is None
    assert "has not answered" in (health.why_ill(silent_s=300.1) or "")


def test_an_answer_that_is_no_error_of_the_server_is_life() -> None:
    """A health path that was protected meanwhile ends nobody."""
    health = a_ready_one()
    for status in (401, 404, 302, 429):
        health.heard(of_status(status), 0.0)
    assert health.why_ill(silent_s=0.0) is None


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that does what the test makes it do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def result(probe: Probe, listener: socket.socket | None = None, answer: bytes | None = None) -> Answer | None:
    """What a probe shows of a server that gives this answer, and then hangs up."""
    with selectors.DefaultSelector() as selector:
        for turn in range(10):
            key = selector.register(probe, probe.events)
            selector.select(1.0)
            selector.unregister(key.fileobj)
            if (found := probe.advance()) is not None:
                probe.close()
                return found
            if turn == 0 and listener is not None and answer is not None:
                connection, _ = listener.accept()
                with connection:
                    assert connection.recv(4096).startswith(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1:")
                    connection.sendall(answer)
    return None


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nfine", of_status(200)),
        (b"HTTP/1.0 503 Busy\r\n\r\n", of_status(503)),
        (b"", HANGS_UP),
        (b"SSH-2.0\r\n", HANGS_UP),
        (b"HTTP/1.1 999 \r\n", HANGS_UP),
    ],
)
def test_a_look_shows_the_status(listener: socket.socket, answer: bytes, shown: Answer) -> None:
    """Or that it is no HTTP at all."""
    port = listener.getsockname()[1]
    assert result(Probe("127.0.0.1", port, "/v1/health"), listener, answer) == shown


def test_without_a_path_a_connection_is_enough(listener: socket.socket) -> None:
    """And its refusal is one."""
    port = listener.getsockname()[1]
    assert result(Probe("127.0.0.1", port, None)) == CONNECTS
    listener.close()
    assert result(Probe("127.0.0.1", port, None)) == REFUSES
