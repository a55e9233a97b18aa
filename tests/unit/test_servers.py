"""The servers that proxies are told, and how one of them leaves."""

from __future__ import annotations

import dataclasses

import pytest

from orch.supervising.servers import APPLY_S, CPU_WINDOW_S, DOUBT_S, QUIET_S, Computing, Connection, Server, Servers

R0, R1 = Server("r0", "127.0.0.1:9100"), Server("r1", "127.0.0.1:9101")
R1_LEAVES = dataclasses.replace(R1, draining=True)


def test_every_change_is_a_revision_and_nothing_else_is() -> None:
    """A watcher that has seen a revision knows the whole set."""
    servers = Servers("command")
    assert servers.facts == {"kind": "command", "revision": 0, "servers": []}
    assert servers.set([R0], now=1.0)
    assert not servers.set([R0], now=2.0)
    assert servers.set([R0, R1], now=3.0)
    assert servers.facts == {
        "kind": "command",
        "revision": 2,
        "servers": [
            {"id": "r0", "address": "127.0.0.1:9100", "draining": False},
            {"id": "r1", "address": "127.0.0.1:9101", "draining": False},
        ],
    }


def test_a_server_has_left_when_every_watcher_routes_without_it() -> None:
    """The word for an earlier set does not count, that for a later one does."""
    servers = Servers("command")
    servers.set([R0, R1], now=0.0)
    servers.watch("nginx")
    servers.watch("haproxy")
    servers.applied("nginx", 1)
    servers.set([R0, R1_LEAVES], now=10.0)
    assert not servers.has_left("r1", now=10.0)
    servers.applied("nginx", 2)
    assert not servers.has_left("r1", now=10.1)
    servers.set([R1_LEAVES], now=10.2)  # another change meanwhile asks for no second word
    servers.applied("haproxy", 3)
    assert servers.has_left("r1", now=10.3)


def test_nobody_waits_for_a_watcher_that_is_stuck_gone_or_not_there() -> None:
    """Whoever writes no proxy's file cannot hold up a stop."""
    servers = Servers("command")
    servers.set([R1_LEAVES], now=0.0)
    assert servers.has_left("r1", now=0.0), "no watcher, no wait"
    servers.watch("nginx")
    assert not servers.has_left("r1", now=APPLY_S - 0.1)
    assert servers.has_left("r1", now=APPLY_S)
    servers.forget("nginx")
    assert servers.has_left("r1", now=0.1)


def test_a_server_that_comes_back_leaves_anew() -> None:
    """Words for its last leaving say nothing of this one."""
    servers = Servers("command")
    servers.watch("nginx")
    servers.set([R1_LEAVES], now=0.0)
    servers.applied("nginx", 1)
    servers.set([R1], now=5.0)
    servers.set([R1_LEAVES], now=9.0)
    assert not servers.has_left("r1", now=9.0 + APPLY_S / 2)
    servers.applied("nginx", 1)  # late, and about the past
    assert not servers.has_left("r1", now=9.0 + APPLY_S / 2)


def test_words_of_whoever_does_not_watch_are_nobodys() -> None:
    """A command line that answers has no say."""
    servers = Servers("command")
    servers.set([R1_LEAVES], now=0.0)
    servers.applied("a stranger", 1)
    assert servers.watchers == []


LONG = QUIET_S + 1


@pytest.mark.parametrize(
    ("connection", "busy", "why"),
    [
        (Connection(0, 0), True, "a kernel that tells nothing of its use"),
        (Connection(10, 0, 1, 0, LONG, LONG), True, "a request that nobody has read"),
        (Connection(0, 10, 1, 1, LONG, LONG), True, "an answer that is not all taken"),
        (Connection(0, 0, 1, 0, 600.0, 600.0), True, "a first request, ten minutes ago"),
        (Connection(0, 0, 9, 8, 600.0, 601.0), True, "a request after an answer"),
        (Connection(0, 0, 9, 9, 1.0, 0.5), True, "an answer just now, which may go on"),
        (Connection(0, 0, 9, 9, 60.0, LONG, LONG), False, "an answer, and silence"),
        (Connection(0, 0, 9, 9, LONG, LONG, LONG), True, "a request and an answer at once, whichever was first"),
        (Connection(0, 0, 9, 9, DOUBT_S, DOUBT_S, DOUBT_S), False, "the same, and a longer silence"),
        (Connection(0, 0, 9, 9, LONG, LONG, LONG - 0.04), False, "the same, but the answer was acknowledged later"),
        (Connection(0, 0, 0, 0, LONG, LONG), False, "opened, and never used"),
        (Connection(0, 0, 0, 0, 0.1, 0.1), True, "opened just now"),
    ],
)
def test_a_connection_is_idle_only_when_that_is_seen(connection: Connection, busy: bool, why: str) -> None:
    """In doubt a request is under way."""
    assert connection.is_busy(computes=False) is busy, why
    assert connection.is_busy(computes=True), "a pause of an answer, in a server that computes, is no end"


def test_a_server_computes_until_it_is_seen_not_to() -> None:
    """A window of rest; what it did before that window is forgotten, and new work is seen at once."""
    computing = Computing()
    assert computing.now, "nobody has looked yet"
    computing.look(10.0, used_s=100.0)
    computing.look(10.0 + CPU_WINDOW_S / 2, used_s=101.0)
    assert computing.now
    computing.look(11.0 + CPU_WINDOW_S / 2, used_s=101.0)
    assert computing.now, "it did, within the window"
    computing.look(11.5 + CPU_WINDOW_S, used_s=101.01)
    assert not computing.now
    computing.look(11.6 + CPU_WINDOW_S, used_s=101.3)
    assert computing.now


def test_a_process_that_ends_hides_no_computing() -> None:
    """Its time goes with it: what is left is watched anew."""
    computing = Computing()
    computing.look(10.0, used_s=100.0)
    computing.look(10.0 + CPU_WINDOW_S, used_s=100.0)
    assert not computing.now
    computing.look(10.1 + CPU_WINDOW_S, used_s=60.0)
    assert computing.now
    computing.look(10.1 + 2 * CPU_WINDOW_S, used_s=60.0)
    assert not computing.now
