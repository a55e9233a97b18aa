"""Reading the machine: at most once a second, however many ask."""

from __future__ import annotations

import os

from orch.supervising.readings import READ_S, Readings


class Clock:
    """A time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_within_a_second_nothing_is_read_again() -> None:
    """The same object, not an equal one."""
    clock = Clock()
    readings = Readings(clock)
    first = readings.process(os.getpid())
    assert first is not None
    assert first.resident_bytes > 0
    assert first.cpu_s > 0
    clock.now += READ_S / 2
    assert readings.process(os.getpid()) is first
    clock.now += READ_S
    assert readings.process(os.getpid()) is not first


def test_a_process_that_is_gone_has_no_reading() -> None:
    """Number 0 is nobody's."""
    readings = Readings(Clock())
    assert readings.process(2**22 + 1) is None
    assert readings.shares([2**22 + 1]) == {}


def test_shares_are_read_in_turn_where_they_take_long() -> None:
    """At least one a second, the one that waits the longest; what was read before is told meanwhile."""
    clock = Clock()

    def slow() -> float:
        clock.now += 0.02  # each look at the clock finds it later: every walk takes too long
        return clock.now

    readings = Readings(slow)
    pids = [os.getpid(), os.getppid()]
    assert list(readings.shares(pids)) == pids[:1]
    clock.now += READ_S
    assert list(readings.shares(pids)) == pids
    assert list(readings.shares(pids[1:])) == pids[1:]
