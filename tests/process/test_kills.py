"""The contract while processes are killed: nothing accepted is lost, and no answer goes astray."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.process.harness import ClosedLoop, Instance, Place, eventually, moment

KILL_EVERY_S = 1.0
LOAD_S = 15.0
NUM_KILLS = 10


class Killer:
    """Kills a READY worker now and then, only while another one is READY."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._next = moment() + KILL_EVERY_S
        self.killed: list[int] = []

    def turn(self) -> None:
        if moment() < self._next:
            return
        ready = self._instance.replicas("READY")
        if len(ready) >= 2:
            victim = list(ready.values())[len(self.killed) % len(ready)]["pid"]
            os.kill(victim, signal.SIGKILL)
            self.killed.append(victim)
            self._next = moment() + KILL_EVERY_S


def after(seconds: float, turn: Callable[[], object]) -> Callable[[], bool]:
    """True once the time is over; until then, each look takes a turn."""
    end = moment() + seconds

    def look() -> bool:
        turn()
        return moment() >= end

    return look


@pytest.mark.timeout(90)
def test_no_request_is_lost_while_workers_are_killed(place: Place) -> None:
    """64 outstanding, two replicas, a kill each second: every request is answered, rightly and once."""
    instance = place.up("plain.py:Steady", replicas=2)
    killer = Killer(instance)
    with ClosedLoop(instance.client(), "a") as loop:
        eventually(after(LOAD_S, killer.turn), within=60)
        eventually(lambda: killer.turn() or len(killer.killed) >= NUM_KILLS, within=30)
        served = loop.finish()
    queue = instance.queue()
    assert queue["answered"] == served  # what the balancer sent is what arrived: nothing twice
    assert queue["retried"] > 0
    assert (queue["lost"], queue["poisoned"], queue["rejected"]) == (0, 0, 0)
    print(f"served {served}, kills {len(killer.killed)}, retried {queue['retried']}, slowest {loop.slowest_s:.2f} s")


@pytest.mark.timeout(90)
def test_no_answer_goes_astray_while_the_balancer_is_killed_too(place: Place) -> None:
    """Two clients, workers killed each second, the balancer twice: each gets every answer of its own, and no other."""
    instance = place.up("plain.py:Steady", replicas=2)
    killer = Killer(instance)
    with ClosedLoop(instance.client(), "a", 32) as one, ClosedLoop(instance.client(), "b", 32) as other:
        for _ in range(2):
            eventually(after(LOAD_S / 3, killer.turn), within=60)
            old = instance.kill("balancer")
            eventually(lambda old=old: instance.pid_of("balancer") not in (None, old), within=10)
        eventually(after(LOAD_S / 3, killer.turn), within=60)
        eventually(lambda: killer.turn() or len(killer.killed) >= NUM_KILLS, within=30)
        served = one.finish(), other.finish()
    assert instance.status()["balancer"]["restarts"] == 2
    assert (instance.queue()["lost"], instance.queue()["poisoned"]) == (0, 0)
    print(f"served {served}, kills {len(killer.killed)}, slowest {one.slowest_s:.2f} and {other.slowest_s:.2f} s")
