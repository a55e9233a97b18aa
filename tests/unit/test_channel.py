"""Messages over a Unix socket, between two real ends: whole, in pieces, lied about, and after a death."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch import channel
from orch.channel import FRAME_LENGTH, MAX_HEAD_BYTES, PREFIX, READ_BYTES, SOCKET_BYTES, Channel
from orch.errors import RemoteProtocolError
from orch.wire import MAX_FRAMES

LIMIT = 1 << 20
MIB = 1 << 20
# No history below takes as many turns.
MAX_TURNS = 10_000


class Ends:
    """A channel under test, and the other end as it is: bytes."""

    def __init__(self, max_frame_bytes: int = LIMIT) -> None:
        ours, self.theirs = socket.socketpair()
        self.channel = Channel(ours, max_frame_bytes)
        self.theirs.setblocking(False)

    def hears(self, data: bytes) -> list[list[bytes]]:
        """The messages that are there when these bytes have arrived in one piece."""
        self.theirs.sendall(data)
        return self.read()

    def read(self) -> list[list[bytes]]:
        """Everything that is there to be read."""
        found: list[list[bytes]] = []
        for _ in range(MAX_TURNS):
            found += [as_bytes(each) for each in self.channel.receive()]
            if self.channel.is_dry or self.channel.closed:
                return found
        raise AssertionError("it never ran dry")

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()


def as_bytes(message: tuple[bytes, Sequence[Any]]) -> list[bytes]:
    """Head and frames."""
    head, frames = message
    return [bytes(head), *map(bytes, frames)]


def packed(head: bytes, *frames: bytes) -> bytes:
    """A message as its reader is to find it."""
    lengths = b"".join(FRAME_LENGTH.pack(len(frame)) for frame in frames)
    return PREFIX.pack(len(head), len(frames)) + lengths + head + b"".join(frames)


def resident_bytes() -> int:
    """Of this process, now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Closed at the end."""
    made = Ends()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    """Two channels that talk to each other."""
    ours, theirs = map(Channel, socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def carried(sender: Channel, receiver: Channel, count: int) -> list[list[bytes]]:
    """That many messages, while the sender writes what it could not write before."""
    found: list[list[bytes]] = []
    for _ in range(MAX_TURNS):
        found += [as_bytes(each) for each in receiver.receive()]
        sender.flush()
        if len(found) >= count:
            return found
    raise AssertionError(f"{len(found)} messages arrived, and no more")


# --- whole and in pieces


def test_a_message_arrives_as_it_was_sent(pair: tuple[Channel, Channel]) -> None:
    """With any number of frames, empty ones too; in order."""
    ours, theirs = pair
    sent = [[b"head"], [b"h", b"frame"], [b"h2", b"", b"x" * 100, b""], [b"h3", *[b"f"] * MAX_FRAMES], [b"last"]]
    for message in sent:
        assert ours.send(message)
    assert carried(ours, theirs, len(sent)) == sent
    assert theirs.receive() == []
    assert theirs.is_dry
    assert not theirs.closed


def test_frames_may_be_any_memory(pair: tuple[Channel, Channel]) -> None:
    """Whatever its items are: bytes are what travels."""
    ours, theirs = pair
    ours.send([b"h", memoryview(bytearray(b"abcdefgh")).cast("I"), bytearray(b"xyz")])
    assert carried(ours, theirs, 1) == [[b"h", b"abcdefgh", b"xyz"]]


def test_a_received_frame_can_be_sent_on(pair: tuple[Channel, Channel]) -> None:
    """As the balancer does; an empty one too."""
    ours, theirs = pair
    ours.send([b"h", b"", b"frame"])
    ((head, frames),) = theirs.receive()
    assert theirs.send([head, *frames])
    assert carried(theirs, ours, 1) == [[b"h", b"", b"frame"]]


def test_one_read_takes_in_all_messages_that_are_there(ends: Ends) -> None:
    """It is what a busy process pays for them."""
    sent = [[b"head %d" % i, *[b"frame"] * (i % 3)] for i in range(100)]
    ends.theirs.sendall(b"".join(packed(*each) for each in sent))
    assert [as_bytes(each) for each in ends.channel.receive()] == sent


def test_a_message_cut_anywhere_is_put_together(ends: Ends) -> None:
    """At each of its bytes, in two pieces; the one behind it is not touched."""
    message, next_one = [b"a head", b"frame one", b"", b"2"], [b"next"]
    data = packed(*message)
    for cut in range(1, len(data)):
        assert ends.hears(data[:cut]) == []
        assert ends.hears(data[cut:] + packed(*next_one)) == [message, next_one], cut


def test_messages_that_come_byte_by_byte_are_put_together(ends: Ends) -> None:
    """Each as soon as its last byte is there."""
    message = [b"head", b"ab", b""]
    data = packed(*message)
    for _ in range(3):
        found = [ends.hears(data[i : i + 1]) for i in range(len(data))]
        assert found == [[]] * (len(data) - 1) + [[message]]


@pytest.mark.parametrize("size", [10, 2 * READ_BYTES], ids=["in one read", "in several"])
def test_a_frame_that_was_given_out_is_its_receivers_alone(pair: tuple[Channel, Channel], size: int) -> None:
    """Its memory is free when the receiver lets go, not when the next message comes."""
    ours, theirs = pair
    ours.send([b"head", b"x" * size])
    found: list[Any] = []
    while not found:
        found += theirs.receive()
        ours.flush()
    memory = weakref.ref(found[0][1][0].obj)
    found.clear()
    assert memory() is None


def test_a_head_may_be_longer_than_a_read(pair: tuple[Channel, Channel]) -> None:
    """Up to its limit."""
    ours, theirs = pair
    sent = [[b"x" * MAX_HEAD_BYTES, b"frame"], [b"y" * (READ_BYTES + 1)], [b"z"]]
    for message in sent:
        ours.send(message)
    assert carried(ours, theirs, len(sent)) == sent


# --- more than the socket holds


def test_what_the_socket_does_not_take_waits_and_keeps_its_order(pair: tuple[Channel, Channel]) -> None:
    """Frames far larger than its buffer, with small messages behind them; both ways at once."""
    sent = [[b"large", bytes(range(256)) * (4 * MIB // 256), b"tail"], [b"small"], [b"large", b"y" * 3 * MIB], [b"end"]]
    for one in pair:
        assert [one.send(message) for message in sent] == [False] * len(sent)
        assert one.unsent_bytes > 6 * MIB - 4 * SOCKET_BYTES
    found: tuple[list[list[bytes]], ...] = ([], [])
    for _ in range(MAX_TURNS):
        for one, messages in zip(pair, found, strict=True):
            one.flush()
            messages += [as_bytes(each) for each in one.receive()]
        if all(len(messages) == len(sent) for messages in found):
            break
    assert found == (sent, sent)
    for one in pair:
        assert one.flush()
        assert one.unsent_bytes == 0
        assert one.send([b"now it fits"])


def test_unsent_bytes_are_all_that_has_not_left(ends: Ends) -> None:
    """Prefixes and all: the balancer bounds by them what a peer may let pile up."""
    messages = [[b"head", b"x" * MIB, b"y" * MIB], [b"head"], [b"head", b"", b"z" * MIB]]
    whole = b"".join(packed(*each) for each in messages)
    for each in messages:
        ends.channel.send(each)
    seen = b""
    while len(seen) < len(whole):
        with contextlib.suppress(BlockingIOError):
            seen += ends.theirs.recv(100_000)
        ends.channel.flush()
        assert ends.channel.unsent_bytes <= len(whole) - len(seen)
    assert seen == whole
    assert ends.channel.unsent_bytes == 0


def test_more_waiting_parts_than_a_call_takes_are_written(ends: Ends) -> None:
    """The system call has a limit on their number."""
    while ends.channel.send([b"x" * 60_000]):
        pass
    for _ in range(2_000):
        ends.channel.send([b"h", b"f"])
    size = 0
    while not ends.channel.flush():
        size += len(ends.theirs.recv(MIB))
    with contextlib.suppress(BlockingIOError):
        while True:
            size += len(ends.theirs.recv(MIB))
    assert (size - 2_000 * len(packed(b"h", b"f"))) % len(packed(b"x" * 60_000)) == 0


# --- what is no message


@pytest.mark.parametrize(
    "data",
    [
        PREFIX.pack(0, 0),
        PREFIX.pack(0, 1) + FRAME_LENGTH.pack(1),
        PREFIX.pack(MAX_HEAD_BYTES + 1, 0),
        PREFIX.pack(2**32 - 1, 2**32 - 1),
        PREFIX.pack(4, MAX_FRAMES + 1),
        PREFIX.pack(4, 1) + FRAME_LENGTH.pack(LIMIT + 1) + b"head",
        PREFIX.pack(4, 2) + FRAME_LENGTH.pack(5) + FRAME_LENGTH.pack(2**64 - 1) + b"head" + b"abc",
    ],
    ids=["no head", "no head but a frame", "head too long", "everything too long", "too many frames", "frame too long",
         "second frame too long"],
)  # fmt: skip
def test_what_is_no_message_ends_the_channel(ends: Ends, data: bytes) -> None:
    """Nothing behind it could be read, and nothing more is said."""
    ends.theirs.sendall(data + packed(b"behind"))
    with pytest.raises(RemoteProtocolError):
        ends.channel.receive()
    assert ends.channel.closed
    assert ends.channel.send([b"no more"])
    with pytest.raises(BlockingIOError):
        ends.theirs.recv(100)


def test_a_frame_of_exactly_the_limit_is_taken(ends: Ends) -> None:
    """The limit is the last that fits."""
    frame = b"x" * LIMIT
    data = packed(b"head", frame)
    found: list[list[bytes]] = []
    while data:
        with contextlib.suppress(BlockingIOError):
            data = data[ends.theirs.send(data) :]
        found += ends.read()
    assert found == [[b"head", frame]]


def test_a_frame_that_no_memory_holds_is_refused() -> None:
    """Where no limit was set, the machine's own is one."""
    ends = Ends(max_frame_bytes=channel.ANY_BYTES)
    try:
        with pytest.raises(RemoteProtocolError, match="no memory"):
            ends.hears(PREFIX.pack(4, 1) + FRAME_LENGTH.pack(channel.ANY_BYTES) + b"head")
        assert ends.channel.closed
    finally:
        ends.close()


def test_a_lie_about_a_length_costs_nothing() -> None:
    """Memory is committed as it is filled: 64 frames of a gigabyte each are announced, and none comes."""
    ends = Ends(max_frame_bytes=1 << 30)
    before = resident_bytes()
    try:
        lengths = FRAME_LENGTH.pack(1 << 30) * MAX_FRAMES
        assert ends.hears(PREFIX.pack(4, MAX_FRAMES) + lengths + b"head" + b"a piece") == []
        assert resident_bytes() - before < 32 * MIB
    finally:
        ends.close()


messages = st.lists(
    st.lists(st.binary(max_size=40), max_size=4).flatmap(
        lambda frames: st.binary(min_size=1, max_size=40).map(lambda head: [head, *frames])
    ),
    max_size=5,
)
cuts = st.lists(st.integers(0, 600), max_size=8)


def pieces(data: bytes, at: list[int]) -> Iterator[bytes]:
    """The data, cut there."""
    for start, end in itertools.pairwise([0, *sorted(cut for cut in at if cut <= len(data)), len(data)]):
        yield data[start:end]


@given(messages, cuts)
def test_however_messages_are_cut_they_arrive(sent: list[list[bytes]], at: list[int]) -> None:
    """All of them, in order, and nothing else."""
    ends = Ends()
    try:
        found = []
        for piece in pieces(b"".join(packed(*each) for each in sent), at):
            found += ends.hears(piece)
        assert found == sent
        assert not ends.channel.closed
    finally:
        ends.close()


numbers = st.sampled_from([0, 1, 2, 40, MAX_FRAMES, MAX_FRAMES + 1, MAX_HEAD_BYTES, 2**32 - 1]) | st.integers(0, 60)
lies = st.builds(
    lambda head, frames, lengths, rest: PREFIX.pack(head, frames) + b"".join(map(FRAME_LENGTH.pack, lengths)) + rest,
    numbers,
    numbers,
    st.lists(st.sampled_from([0, 1, 100, LIMIT, LIMIT + 1, 2**40, 2**64 - 1]), max_size=3),
    st.binary(max_size=100),
)
noise = st.binary(max_size=200) | lies | messages.map(lambda sent: b"".join(packed(*each) for each in sent))


@settings(max_examples=500)
@given(st.lists(noise, max_size=4).map(b"".join), cuts)
def test_any_bytes_are_messages_or_a_remote_protocol_error(data: bytes, at: list[int]) -> None:
    """Nothing else is ever raised, whatever a peer sends; and what is given out is within the limits."""
    ends = Ends()
    try:
        found: list[list[bytes]] = []
        try:
            for piece in pieces(data, at):
                found += ends.hears(piece)
        except RemoteProtocolError:
            assert ends.channel.closed
        assert data.startswith(b"".join(packed(*each) for each in found))
        assert all(each[0] and len(each) <= 1 + MAX_FRAMES for each in found)
    finally:
        ends.close()


# --- ends


def test_the_end_of_a_peer_closes_the_channel(ends: Ends) -> None:
    """Nothing is there but the end."""
    ends.theirs.close()
    assert ends.read() == []
    assert ends.channel.closed
    assert not ends.channel.is_dry


@pytest.mark.parametrize("cut", [1, 8, 20, 27, 40], ids=["prefix", "lengths", "lengths' end", "head", "frame"])
def test_half_a_message_is_lost_with_its_sender(ends: Ends, cut: int) -> None:
    """What came before it is not."""
    last = packed(b"the last head", b"a frame", b"another frame")
    ends.theirs.sendall(packed(b"first", b"frame") + last[:cut])
    ends.theirs.close()
    assert ends.read() == [[b"first", b"frame"]]
    assert ends.channel.closed


def test_what_a_peer_said_before_it_died_can_still_be_read(pair: tuple[Channel, Channel]) -> None:
    """Also by who learns of the death by speaking to it first."""
    ours, theirs = pair
    theirs.send([b"answer", b"frame"])
    theirs.close()
    assert ours.send([b"are you there?"])
    assert ours.send([b"hello?", b"x" * MIB])
    assert ours.unsent_bytes == 0
    assert not ours.closed
    assert [as_bytes(each) for each in ours.receive()] == [[b"answer", b"frame"]]
    assert ours.receive() == []
    assert ours.closed


def test_what_waits_for_a_peer_that_dies_is_dropped(pair: tuple[Channel, Channel]) -> None:
    """Its memory is free, and nobody waits for room."""
    ours, theirs = pair
    assert not ours.send([b"large", b"x" * (8 * MIB)])
    theirs.close()
    assert ours.flush()
    assert ours.unsent_bytes == 0
    assert ours.send([b"more"])


def test_a_peer_that_was_reset_has_ended(pair: tuple[Channel, Channel]) -> None:
    """It died with something unread: the kernel says so by an error."""
    ours, theirs = pair
    ours.send([b"unread"])
    theirs.close()
    assert ours.receive() == []
    assert ours.closed


def test_a_closed_channel_takes_anything_and_says_nothing(pair: tuple[Channel, Channel]) -> None:
    """However often it is closed."""
    ours, theirs = pair
    ours.close()
    ours.close()
    assert ours.send([b"into the void"])
    assert ours.flush()
    assert theirs.receive() == []
    assert theirs.closed


def test_nobody_at_a_path_is_an_error_and_leaves_no_descriptor(tmp_path: Path) -> None:
    """Whoever calls tries again later."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            channel.connect(f"{tmp_path}/nobody")
    assert descriptors() == before
