"""The contract while processes are killed: nothing accepted is lost, and no answer goes astray."""

from __future__ import annotations

import logging
import os
import signal

import pytest

from tests.process.harness import ClosedLoop, Instance, Place, elapse, eventually, moment

log = logging.getLogger(__name__)

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

    def work(self, seconds: float) -> None:
        elapse(seconds, self.turn)

    def work_until(self, count: int) -> None:
        """Until it has killed so many."""

        def done() -> bool:
            self.turn()
            return len(self.killed) >= count

        eventually(done, within=30)


@pytest.mark.timeout(90)
def test_no_request_is_lost_while_workers_are_killed(place: Place) -> None:
    """64 outstanding, two replicas, a kill each second: every request is answered, rightly and once."""
    instance = place.up("plain.py:Steady", replicas=2)
    killer = Killer(instance)
    with ClosedLoop(instance.client(), "a") as loop:
        killer.work(LOAD_S)
        killer.work_until(NUM_KILLS)
        served = loop.finish()
    queue = instance.queue()
    assert queue["answered"] == served  # what the balancer sent is what arrived: nothing twice
    assert queue["retried"] > 0
    assert (queue["lost"], queue["poisoned"], queue["rejected"]) == (0, 0, 0)
    log.info("served %d, %d kills, %s, slowest %.2f s", served, len(killer.killed), queue, loop.slowest_s)


@pytest.mark.timeout(90)
def test_no_answer_goes_astray_while_the_balancer_is_killed_too(place: Place) -> None:
    """Two clients, workers killed each second, the balancer twice: each gets every answer of its own, and no other."""
    instance = place.up("plain.py:Steady", replicas=2)
    killer = Killer(instance)
    with ClosedLoop(instance.client(), "a", 32) as one, ClosedLoop(instance.client(), "b", 32) as other:
        for _ in range(2):
            killer.work(LOAD_S / 3)
            instance.await_successor("balancer", instance.kill("balancer"))
        killer.work(LOAD_S / 3)
        killer.work_until(NUM_KILLS)
        served = one.finish(), other.finish()
    assert instance.status()["balancer"]["restarts"] == 2
    assert (instance.queue()["lost"], instance.queue()["poisoned"]) == (0, 0)
    slowest_s = max(one.slowest_s, other.slowest_s)
    log.info("served %d and %d, %d kills of workers, slowest %.2f s", *served, len(killer.killed), slowest_s)
