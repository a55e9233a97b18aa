"""Sending to peers of which some do not read. The routes are played by the tests; test_routes.py has the real ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from orch import payload, wire
from orch.wire import Kind, Record
from orch_balancer.entry import Entry, Session
from orch_balancer.outlet import MAX_OUTBOX_BYTES, Outlet
from orch_balancer.peers import Peer


class Route:
    """A peer that takes `room` messages, and holds the others until it `reads`."""

    def __init__(self, room: int = 1_000) -> None:
        self.peer: Peer | None = None
        self.room = room
        self.is_there = True
        self.taken: list[list[Any]] = []
        self.held: list[list[Any]] = []

    @property
    def unsent_bytes(self) -> int:
        return sum(payload.nbytes(message[0], message[1:]) for message in self.held)

    def send(self, message: Sequence[Any]) -> bool | None:
        if not self.is_there:
            return None
        fits = not self.held and len(self.taken) < self.room
        (self.taken if fits else self.held).append(list(message))
        return fits

    def reads(self) -> None:
        """All of it."""
        self.taken += self.held
        self.held = []

    def close(self) -> None:
        self.held = []

    def messages(self) -> list[list[Record]]:
        """What it has got."""
        return [wire.decode(head, frames) for head, *frames in self.taken]

    def records(self) -> list[Record]:
        """The same, not by message."""
        return list(itertools.chain.from_iterable(self.messages()))


@pytest.fixture
def outlet() -> Outlet:
    """One for each test."""
    return Outlet()


def a_record(number: int, body: bytes = b"", *frames: bytes) -> Record:
    """Something for a peer."""
    return Record(Kind.RESULT, request_id=number, body=body, frames=frames)


def test_all_that_is_put_for_a_peer_in_one_pass_is_one_message(outlet: Outlet) -> None:
    """The price is by the message, not by the record."""
    a, b = Route(), Route()
    outlet.put(a, a_record(1, b"one"))
    outlet.put(b, a_record(2))
    outlet.put_all(a, [wire.as_piece(a_record(3)), wire.as_piece(a_record(4, b"", b"frame"))])
    assert a.taken == b.taken == []
    assert outlet.flush() == []
    assert a.messages() == [[a_record(1, b"one"), a_record(3), a_record(4, b"", b"frame")]]
    assert b.messages() == [[a_record(2)]]
    assert outlet.flush() == []
    assert len(a.taken) == 1


def test_answers_go_to_the_clients_of_their_entries(outlet: Outlet) -> None:
    """As they came, beside whatever else there is for them."""
    a, b = Route(), Route()
    entries = [Entry(Session(b"", route), i, b"", (), 0, 0, 0, 1, 1, 0, 0.0) for i, route in enumerate((a, b, a))]
    sent = [a_record(i, b"body", *[b"frame"] * i) for i in range(3)]
    outlet.put(a, a_record(9))
    outlet.put_answers(zip(entries, map(wire.repacked, sent), strict=True))
    outlet.put(b, a_record(8))
    assert outlet.flush() == []
    assert a.messages() == [[a_record(9), sent[0], sent[2]]]
    assert b.messages() == [[sent[1], a_record(8)]]


def test_more_than_a_message_holds_becomes_several_in_order(outlet: Outlet) -> None:
    """Cut as the wire says."""
    a = Route()
    outlet.put_all(a, [wire.as_piece(a_record(number)) for number in range(600)])
    assert outlet.flush() == []
    assert [len(message) for message in a.messages()] == [256, 256, 88]
    assert [record.request_id for record in a.records()] == list(range(600))


def test_a_peer_that_does_not_read_loses_nothing_and_holds_up_nobody(outlet: Outlet) -> None:
    """It blocks the outlet until it reads, so that a balancer that ends can wait for it."""
    slow, quick = Route(room=2), Route()
    for number in range(20):
        outlet.put(slow, a_record(number))
        outlet.put(quick, a_record(number))
        assert outlet.flush() == []
        assert len(quick.taken) == number + 1
        assert outlet.blocked == (number >= 2)
    slow.reads()
    assert not outlet.blocked
    assert [record.request_id for record in slow.records()] == list(range(20))


def test_a_peer_that_lets_too_much_pile_up_is_given_up(outlet: Outlet) -> None:
    """Its route is named once, and others are not touched."""
    slow, quick = Route(room=0), Route()
    large = bytes(MAX_OUTBOX_BYTES // 4)  # one buffer, however often it is sent
    failed: list[Any] = []
    for number in range(6):
        outlet.put(slow, a_record(number, b"", large))
        outlet.put(quick, a_record(number))
        failed += outlet.flush()
        assert len(quick.taken) == number + 1
        if failed:
            break
    assert failed == [slow]
    assert len(slow.held) == 3
    assert slow.unsent_bytes <= MAX_OUTBOX_BYTES
    assert not outlet.blocked
    assert outlet.flush() == []


def test_what_is_larger_than_an_outbox_still_goes_to_who_reads(outlet: Outlet) -> None:
    """The bound is on what piles up, not on what one answer may have."""
    slow = Route(room=0)
    large = bytes(MAX_OUTBOX_BYTES)
    outlet.put(slow, a_record(1, b"", large))
    assert outlet.flush() == []
    slow.reads()
    outlet.put(slow, a_record(2, b"", large))
    assert outlet.flush() == []
    outlet.put(slow, a_record(3))
    assert outlet.flush() == [slow]


def test_a_peer_that_is_gone_is_named(outlet: Outlet) -> None:
    """In silence it would be an answer lost; what was meant for it is dropped, and the others get theirs."""
    gone, there = Route(), Route()
    gone.is_there = False
    outlet.put(gone, a_record(1))
    outlet.put(there, a_record(2))
    assert outlet.flush() == [gone]
    assert there.records() == [a_record(2)]
    assert outlet.flush() == []


def test_a_peer_that_goes_while_something_waits_for_it_is_named_once(outlet: Outlet) -> None:
    """Also if more was put for it in the same pass."""
    slow = Route(room=0)
    outlet.put(slow, a_record(1))
    assert outlet.flush() == []
    assert outlet.blocked
    slow.is_there = False
    outlet.put_all(slow, [wire.as_piece(a_record(number)) for number in range(600)])
    assert outlet.flush() == [slow]
    assert not outlet.blocked
    assert outlet.flush() == []


def test_what_was_meant_for_a_dropped_peer_is_forgotten(outlet: Outlet) -> None:
    """Its client has come back on another route."""
    slow = Route(room=0)
    outlet.put(slow, a_record(1))
    assert outlet.flush() == []
    outlet.put(slow, a_record(2))
    outlet.drop(slow)
    assert not outlet.blocked
    assert outlet.flush() == []
    slow.reads()
    assert slow.records() == [a_record(1)]
    outlet.drop(Route())
