"""Sending to peers of which some do not read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import zmq

from orch import wire
from orch.wire import Kind, Record
from orch_balancer.outlet import MAX_OUTBOX_BYTES, Outlet

WAIT_MS = 5_000
# What a socket of the tests takes before it is full, in messages.
HWM = 4


class Hub:
    """A ROUTER as the balancer sets it up, with an outlet, and DEALERs as its peers. No pipe is deeper than HWM."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = self.a_socket(zmq.ROUTER)
        self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.router.bind("inproc://hub")
        self.outlet = Outlet(self.router)
        self.peers: dict[bytes, zmq.Socket[bytes]] = {}

    def a_socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, HWM)
        socket.setsockopt(zmq.RCVHWM, HWM)
        return socket

    def connect(self, route: bytes) -> bytes:
        """A peer that the router has heard of."""
        peer = self.peers[route] = self.a_socket(zmq.DEALER)
        peer.setsockopt(zmq.ROUTING_ID, route)
        peer.connect("inproc://hub")
        peer.send(b"hello")
        assert self.router.poll(WAIT_MS)
        assert self.router.recv_multipart() == [route, b"hello"]
        return route

    def disconnect(self, route: bytes) -> None:
        """The peer is gone, and the router has noticed."""
        peer = self.peers.pop(route)
        peer.disconnect("inproc://hub")
        peer.close()
        for _ in range(1_000):
            self.router.poll(1)
            try:
                self.router.send_multipart([route, b""], zmq.NOBLOCK)
            except zmq.Again:
                continue
            except zmq.ZMQError:
                return

    def read(self, route: bytes) -> list[list[Record]]:
        """The messages that have arrived at a peer."""
        peer = self.peers[route]
        arrived = []
        while peer.poll(0):
            head, *frames = peer.recv_multipart()
            arrived.append(wire.decode(head, frames))
        return arrived

    def first(self, route: bytes) -> list[Record]:
        """The next message of a peer, waited for."""
        assert self.peers[route].poll(WAIT_MS)
        head, *frames = self.peers[route].recv_multipart()
        return wire.decode(head, frames)

    def read_all(self, route: bytes, num_records: int) -> list[Record]:
        """That many records, while the outlet goes on."""
        records: list[Record] = []
        for _ in range(WAIT_MS):
            records += itertools.chain.from_iterable(self.read(route))
            assert self.outlet.flush() == []
            if len(records) >= num_records:
                return records
            self.peers[route].poll(1)
        raise AssertionError(f"{len(records)} records arrived, and no more")

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub; at the end its context terminates."""
    made = Hub()
    yield made
    made.close()


def a_record(number: int, body: bytes = b"", *frames: bytes) -> Record:
    """Something for a peer."""
    return Record(Kind.RESULT, request_id=number, body=body, frames=frames)


def stuff(hub: Hub, route: bytes, first: int = 0) -> int:
    """Send to a peer that does not read until its pipe is full; the number of the next record."""
    for number in range(first, first + 100):
        hub.outlet.put(route, a_record(number))
        assert hub.outlet.flush() == []
        if hub.outlet.blocked:
            return number + 1
    raise AssertionError("the pipe never filled")


def test_all_that_is_put_for_a_peer_in_one_pass_is_one_message(hub: Hub) -> None:
    """The price is by the message, not by the record."""
    a, b = hub.connect(b"a"), hub.connect(b"b")
    hub.outlet.put(a, a_record(1, b"one"))
    hub.outlet.put(b, a_record(2))
    hub.outlet.put_all(a, [wire.as_piece(a_record(3)), wire.as_piece(a_record(4, b"", b"frame"))])
    assert hub.outlet.flush() == []
    assert hub.first(a) == [a_record(1, b"one"), a_record(3), a_record(4, b"", b"frame")]
    assert hub.first(b) == [a_record(2)]
    assert hub.outlet.flush() == []
    assert hub.read(a) == []


def test_more_than_a_message_holds_becomes_several_in_order(hub: Hub) -> None:
    """Cut as the wire says."""
    a = hub.connect(b"a")
    hub.outlet.put_all(a, [wire.as_piece(a_record(number)) for number in range(600)])
    assert hub.outlet.flush() == []
    arrived = [hub.first(a) for _ in range(3)]
    assert [len(message) for message in arrived] == [256, 256, 88]
    assert [record.request_id for message in arrived for record in message] == list(range(600))


def test_a_peer_that_does_not_read_loses_nothing_and_holds_up_nobody(hub: Hub) -> None:
    """What its pipe does not take waits in its outbox, in order, and goes out as it reads."""
    slow, quick = hub.connect(b"slow"), hub.connect(b"quick")
    count = stuff(hub, slow)
    for _ in range(20):
        hub.outlet.put(slow, a_record(count, b"x", b"a frame"))
        hub.outlet.put(quick, a_record(count))
        assert hub.outlet.flush() == []
        assert hub.read_all(quick, 1) == [a_record(count)]
        count += 1
    records = hub.read_all(slow, count)
    assert [record.request_id for record in records] == list(range(count))
    assert records[-1].frames == (b"a frame",)
    assert not hub.outlet.blocked


def test_a_peer_that_lets_too_much_pile_up_is_given_up(hub: Hub) -> None:
    """Its route is named once, its outbox is gone, and others are not touched."""
    slow, quick = hub.connect(b"slow"), hub.connect(b"quick")
    count = stuff(hub, slow)
    large = bytes(MAX_OUTBOX_BYTES // 4)  # one buffer, however often it is sent
    failed: list[bytes] = []
    for _ in range(6):
        hub.outlet.put(slow, a_record(count, b"", large))
        hub.outlet.put(quick, a_record(count))
        failed += hub.outlet.flush()
        assert hub.first(quick) == [a_record(count)]
        if failed:
            break
    assert failed == [slow]
    assert not hub.outlet.blocked
    assert hub.outlet.flush() == []


def test_a_peer_that_is_gone_is_named(hub: Hub) -> None:
    """That is how a death is learned of; what was meant for it is dropped, and the others get theirs."""
    gone, there = hub.connect(b"gone"), hub.connect(b"there")
    hub.disconnect(gone)
    hub.outlet.put(gone, a_record(1))
    hub.outlet.put(there, a_record(2))
    assert hub.outlet.flush() == [gone]
    assert hub.first(there) == [a_record(2)]
    assert hub.outlet.flush() == []


def test_a_route_that_was_never_there_is_named_too(hub: Hub) -> None:
    """In silence it would be an answer lost."""
    hub.outlet.put(b"nobody", a_record(1))
    assert hub.outlet.flush() == [b"nobody"]


def test_a_peer_that_goes_while_its_outbox_waits_is_named_once(hub: Hub) -> None:
    """Also if more was put for it in the same pass."""
    slow = hub.connect(b"slow")
    stuff(hub, slow)
    hub.disconnect(slow)
    hub.outlet.put(slow, a_record(1))
    assert hub.outlet.flush() == [slow]
    assert not hub.outlet.blocked
    assert hub.outlet.flush() == []


def test_what_was_meant_for_a_dropped_peer_is_forgotten(hub: Hub) -> None:
    """Its client has come back on another route."""
    slow = hub.connect(b"slow")
    stuff(hub, slow)
    hub.outlet.put(slow, a_record(999))
    hub.outlet.drop(slow)
    assert not hub.outlet.blocked
    assert hub.outlet.flush() == []
    assert 999 not in [record.request_id for message in hub.read(slow) for record in message]
    hub.outlet.drop(b"unknown")
