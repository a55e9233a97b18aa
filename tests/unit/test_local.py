"""A client's connection to a balancer on its own host, with a balancer that the test plays."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orch import wire
from orch.channel import PREFIX, Channel
from orch.errors import RemoteProtocolError
from orch.local import MAX_RETRY_S, LocalConnection
from orch.wire import Flag, Kind, Record

PATIENCE_S = 5.0
HELLO, FAREWELL = Record(Kind.HELLO, body=b"who I am"), Record(Kind.GOODBYE)
MIB = 1 << 20


def a_request(number: int, body: bytes = b"") -> Record:
    """Something to send."""
    return Record(Kind.REQUEST, request_id=number, body=body)


def an_answer(number: int) -> Record:
    """Something to receive."""
    return Record(Kind.RESULT, request_id=number)


class Balancer:
    """Listens where it is told, and speaks with one client at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channel: Channel | None = None
        self.listener: socket.socket | None = None

    def starts(self) -> None:
        self.dies()
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.listener.settimeout(PATIENCE_S)

    def accepts(self) -> None:
        """The next client."""
        assert self.listener is not None
        self.hangs_up()
        self.channel = Channel(self.listener.accept()[0])

    def hears(self) -> list[Record]:
        """What the client has said by now."""
        assert self.channel is not None
        return [record for head, frames in self.channel.receive() for record in wire.decode(head, frames)]

    def says(self, *records: Record) -> None:
        assert self.channel is not None
        for message in wire.messages(records):
            assert self.channel.send(message)

    def hangs_up(self) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def dies(self) -> None:
        self.hangs_up()
        if self.listener is not None:
            self.listener.close()
            self.listener = None


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Balancer]:
    """Not started."""
    made = Balancer(tmp_path / "s")
    yield made
    made.dies()


@pytest.fixture
def wake_fd() -> Iterator[int]:
    """As a driver has one."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def connect(balancer: Balancer, wake_fd: int) -> Iterator[Callable[[], LocalConnection]]:
    """Connections that are closed at the end."""
    made: list[LocalConnection] = []

    def one() -> LocalConnection:
        made.append(LocalConnection(f"unix://{balancer.path}", wake_fd, HELLO))
        return made[-1]

    yield one
    for each in made:
        each.close(FAREWELL)
        each.close(FAREWELL)


def test_it_says_hello_before_anything_else(balancer: Balancer, connect: Callable[[], LocalConnection]) -> None:
    """And goodbye behind everything else."""
    balancer.starts()
    connection = connect()
    connection.send([a_request(1), a_request(2)])
    connection.send([])
    assert connection.flush()
    connection.close(FAREWELL)
    balancer.accepts()
    assert balancer.hears() == [HELLO, a_request(1), a_request(2), FAREWELL]


def test_a_wait_ends_with_a_message(balancer: Balancer, connect: Callable[[], LocalConnection]) -> None:
    """Whose records are received, message by message."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    assert connection.receive() == []
    balancer.says(an_answer(1), an_answer(2))
    balancer.says(an_answer(3))
    assert connection.wait(PATIENCE_S)
    assert connection.receive() == [an_answer(1), an_answer(2)]
    assert connection.wait(PATIENCE_S)
    assert connection.receive() == [an_answer(3)]
    assert connection.receive() == []


def test_bundles_go_both_ways(balancer: Balancer, connect: Callable[[], LocalConnection]) -> None:
    """Among others; what is in one need not be known to who carries it."""
    balancer.starts()
    connection = connect()
    bodies = tuple(b"%d" % number * number for number in range(wire.MAX_RECORDS))
    requests = Record(Kind.REQUEST, Flag.BUNDLE, request_id=2, rows=len(bodies), frames=bodies)
    connection.send([a_request(1), requests, requests._replace(rows=1, frames=bodies[:1])])
    assert connection.flush()
    balancer.accepts()
    assert balancer.hears() == [HELLO, a_request(1), requests, requests._replace(rows=1, frames=bodies[:1])]
    results = requests._replace(kind=Kind.RESULT, deadline_ns=5)
    balancer.says(results, an_answer(1))
    heard: list[Record] = []
    while len(heard) < 2:
        assert connection.wait(PATIENCE_S)
        heard += connection.receive()
    assert heard == [results, an_answer(1)]


def test_a_wait_ends_with_a_call_to_wake_up(
    balancer: Balancer, connect: Callable[[], LocalConnection], wake_fd: int
) -> None:
    """Once for each; with a connection or without."""
    connection = connect()
    for _ in range(2):
        os.eventfd_write(wake_fd, 1)
        assert connection.wait(PATIENCE_S)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(wake_fd)
        balancer.starts()
        connection.reopen()
        balancer.accepts()


def test_a_wait_ends_with_its_time(balancer: Balancer, connect: Callable[[], LocalConnection]) -> None:
    """Not before."""
    balancer.starts()
    connection = connect()
    began = time.monotonic()
    assert connection.wait(0.02)
    assert time.monotonic() - began >= 0.02
    assert connection.wait(0.0)


def test_it_looks_for_a_balancer_until_there_is_one(balancer: Balancer, connect: Callable[[], LocalConnection]) -> None:
    """Nothing is said into the void: what is sent before is gone, and HELLO is first."""
    connection = connect()
    assert not connection.flush()
    connection.send([a_request(1)])
    began = time.monotonic()
    for _ in range(8):
        assert connection.wait(None)  # until the next try
    assert time.monotonic() - began < 8 * MAX_RETRY_S
    balancer.starts()
    deadline = time.monotonic() + PATIENCE_S
    while not connection.flush():
        assert time.monotonic() < deadline
        assert connection.wait(0.5)
    balancer.accepts()
    assert balancer.hears() == [HELLO]


def test_the_tries_become_rarer(connect: Callable[[], LocalConnection]) -> None:
    """A client that waits a minute for an instance does not keep a core busy."""
    connection = connect()
    began, tries = time.monotonic(), 0
    while time.monotonic() - began < 0.5:
        connection.wait(None)
        tries += 1
    assert 2 <= tries <= 12


def test_a_loss_is_told_and_the_next_connection_begins_anew(
    balancer: Balancer, connect: Callable[[], LocalConnection]
) -> None:
    """For the same session; nothing of the old one is heard or said."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    assert balancer.hears() == [HELLO]
    for _ in range(3):
        balancer.says(an_answer(7))
        connection.send([a_request(1, b"x" * 8 * MIB)])
        assert connection.is_stuck
        assert not connection.flush()
        assert connection.wait(PATIENCE_S)
        balancer.hangs_up()
        while connection.wait(PATIENCE_S):
            connection.receive()
        connection.reopen()
        assert not connection.is_stuck
        assert connection.receive() == []
        assert connection.flush()
        balancer.accepts()
        assert balancer.hears() == [HELLO]


def test_what_a_balancer_said_before_it_died_is_heard_first(
    balancer: Balancer, connect: Callable[[], LocalConnection]
) -> None:
    """All of it, however late the client looks; then the loss."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    for number in range(200):
        balancer.says(an_answer(number))
    balancer.dies()
    heard: list[Record] = []
    while connection.wait(PATIENCE_S):
        heard += connection.receive()
    assert heard == [an_answer(number) for number in range(200)]


def test_a_balancer_that_dies_leaves_its_client_looking(
    balancer: Balancer, connect: Callable[[], LocalConnection]
) -> None:
    """Its successor is found at the same path."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    balancer.dies()
    assert not connection.wait(PATIENCE_S)
    connection.reopen()
    assert not connection.flush()
    balancer.starts()
    deadline = time.monotonic() + PATIENCE_S
    while not connection.flush():
        assert time.monotonic() < deadline
        assert connection.wait(0.5)
    balancer.accepts()
    assert balancer.hears() == [HELLO]


@pytest.mark.parametrize("nonsense", [b"\xff" * 100, PREFIX.pack(5, 0) + b"hello"], ids=["no message", "no record"])
def test_nonsense_of_a_balancer_is_an_error(
    balancer: Balancer, connect: Callable[[], LocalConnection], nonsense: bytes
) -> None:
    """Behind what was right before it."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    balancer.says(an_answer(1))
    assert connection.wait(PATIENCE_S)
    assert balancer.channel is not None
    balancer.channel.socket.send(nonsense)
    connection.wait(PATIENCE_S)
    assert connection.receive() == [an_answer(1)]
    with pytest.raises(RemoteProtocolError):
        connection.receive()


def test_a_large_message_leaves_while_it_is_waited_for(
    balancer: Balancer, connect: Callable[[], LocalConnection]
) -> None:
    """A wait ends when there is room, and does not spin where there is none."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    request = Record(Kind.REQUEST, request_id=1, frames=(b"x" * 8 * MIB,))
    connection.send([request])
    assert not connection.flush()
    began = time.monotonic()
    assert connection.wait(0.05)
    assert time.monotonic() - began >= 0.05
    heard: list[Record] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(heard) < 2:
        assert time.monotonic() < deadline
        connection.flush()
        assert connection.wait(0.0)
        heard += balancer.hears()
    assert connection.flush()
    assert heard[0] == HELLO
    assert bytes(heard[1].frames[0]) == request.frames[0]
    began = time.monotonic()
    assert connection.wait(0.05)
    assert time.monotonic() - began >= 0.05, "room is not waited for any more"


def test_what_is_left_of_a_send_that_was_interrupted_goes_with_the_next_flush(
    balancer: Balancer, connect: Callable[[], LocalConnection]
) -> None:
    """Nobody looks for room that is not needed."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    with pytest.raises(TypeError):
        connection.send([a_request(1), Record(Kind.REQUEST, request_id=2, frames=("no buffer",))])
    assert connection.is_stuck
    assert connection.flush()
    assert not connection.is_stuck
    connection.send([a_request(3)])
    assert balancer.hears() == [HELLO, a_request(3)]
    began = time.monotonic()
    assert connection.wait(0.05)
    assert time.monotonic() - began >= 0.05


def test_a_connection_that_is_lost_is_not_stuck_any_more(
    balancer: Balancer, connect: Callable[[], LocalConnection]
) -> None:
    """What the old one had not sent is void."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    connection.send([Record(Kind.REQUEST, request_id=1, frames=(b"x" * 8 * MIB,))])
    assert connection.is_stuck
    balancer.dies()
    assert not connection.wait(0.0)
    connection.reopen()
    assert not connection.is_stuck
    balancer.starts()
    connection.reopen()
    balancer.accepts()
    connection.send([a_request(2)])
    assert balancer.hears() == [HELLO, a_request(2)]


def test_a_forked_childs_copy_does_not_keep_the_connection(
    balancer: Balancer, connect: Callable[[], LocalConnection]
) -> None:
    """It lets go without a word, and its parent's goes on."""
    balancer.starts()
    connection = connect()
    balancer.accepts()
    pid = os.fork()
    if not pid:
        connection.abandon()
        os.kill(os.getpid(), 19)  # stopped: it lives, and holds what it has not let go
        os._exit(0)
    try:
        os.waitpid(pid, os.WUNTRACED)
        connection.send([a_request(1)])
        assert balancer.hears() == [HELLO, a_request(1)]
        connection.close(FAREWELL)
        assert balancer.hears() == [FAREWELL]
        assert balancer.hears() == []
        assert balancer.channel is not None
        assert balancer.channel.closed
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
