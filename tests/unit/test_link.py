"""JSON lines between the supervisor, its children and the command line."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from orch import link as module
from orch.link import Link, Message


class Ends:
    """A link, and the plain socket at its other end."""

    def __init__(self) -> None:
        self.link, self.other = module.pair()
        self.other.settimeout(5.0)

    def close(self) -> None:
        self.link.close()
        self.other.close()

    def lines(self, count: int) -> list[bytes]:
        """What the link has written so far, flushed where the socket was full."""
        data = b""
        while data.count(b"\n") < count:
            data += self.other.recv(1 << 20)
            self.link.flush()
        return data.splitlines()


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A connected pair."""
    made = Ends()
    yield made
    made.close()


def test_a_message_is_a_line_of_json(ends: Ends) -> None:
    """Readable in a trace; nothing needs a decoder of ours."""
    ends.link.send(do="drain", replica="r0", text="zwei\nZeilen, ü")
    (line,) = ends.lines(1)
    assert line == b'{"do":"drain","replica":"r0","text":"zwei\\nZeilen, \\u00fc"}'


def test_messages_arrive_whole_and_in_order(ends: Ends) -> None:
    """However many pieces the socket cuts them into."""
    ends.other.sendall(b'{"a": 1}\n{"b": ')
    assert ends.link.receive() == [{"a": 1}]
    assert ends.link.receive() == []
    ends.other.sendall(b'[2, 3]}\n{"c": 4}\n')
    assert ends.link.receive() == [{"b": [2, 3]}, {"c": 4}]
    assert not ends.link.closed


def test_a_line_may_arrive_byte_by_byte(ends: Ends) -> None:
    """Nothing is read before its end is there."""
    received: list[Message] = []
    for byte in b'{"text": "\xc3\xbc"}\n':
        ends.other.sendall(bytes([byte]))
        received += ends.link.receive()
    assert received == [{"text": "ü"}]


def test_what_arrived_before_the_end_is_still_delivered(ends: Ends) -> None:
    """A child's last words count; half a line does not."""
    ends.other.sendall(b'{"last": "words"}\n{"half')
    ends.other.close()
    assert ends.link.receive() == [{"last": "words"}]
    assert ends.link.closed
    assert ends.link.receive() == []


@pytest.mark.parametrize(
    "junk",
    [b"GET / HTTP/1.1\r\n", b"\n", b"[1, 2]\n", b'"text"\n', b"null\n", b"\xff\xfe\n", b"{\n", b"[" * 100_000 + b"\n"],
)
def test_junk_closes_the_link(ends: Ends, junk: bytes) -> None:
    """Whoever sends it is not one of ours; what came before it counts."""
    ends.other.sendall(b'{"good": 1}\n')
    ends.other.sendall(junk)
    assert ends.link.receive() == [{"good": 1}]
    assert ends.link.closed


def test_a_line_without_an_end_closes_the_link(ends: Ends) -> None:
    """Before it has filled memory."""
    ends.other.settimeout(0.0)
    block = bytes(1 << 20)
    for _ in range(1_000):
        try:
            ends.other.sendall(block)
        except (BlockingIOError, BrokenPipeError):
            pass
        assert ends.link.receive() == []
        if ends.link.closed:
            return
    pytest.fail("a line without an end was taken for ever")


def test_a_peer_that_reads_slowly_gets_everything(ends: Ends) -> None:
    """`send` never blocks; what the socket does not take goes with `flush`."""
    for number in range(100):
        ends.link.send(number=number, padding="x" * 10_000)
    assert ends.link.unsent
    lines = ends.lines(100)
    assert len(lines) == 100
    assert lines[99].startswith(b'{"number":99')
    assert not ends.link.unsent


def test_a_peer_that_never_reads_is_given_up(ends: Ends) -> None:
    """What waits for it is bounded."""
    for _ in range(40):
        ends.link.send(padding="x" * (1 << 20))
    assert ends.link.closed
    assert not ends.link.unsent
    assert ends.link.fileno() >= 0, "whoever waits for the descriptor has to let go of it first"


def test_a_peer_that_is_gone_closes_the_link(ends: Ends) -> None:
    """On writing as on reading; and nothing is raised."""
    ends.other.close()
    ends.link.send(hello=1)
    ends.link.send(hello=2)
    assert ends.link.closed


def test_a_link_takes_over_any_stream_socket() -> None:
    """It reports that socket's descriptor, for pollers."""
    ours, theirs = socket.socketpair()
    with theirs:
        link = Link(ours)
        assert link.fileno() == ours.fileno()
        assert ours.getblocking() is False
        link.close()
        assert link.closed
        link.close()
