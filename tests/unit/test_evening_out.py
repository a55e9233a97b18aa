"""Clients that keep so many requests under way at two workers: router and batchers in a simulated time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from orch import wire
from orch.wire import Kind, Record
from orch_balancer.admission import Limits
from orch_balancer.pool import Worker
from orch_balancer.router import Router
from orch_worker.batching import Batcher, Item

MAX_BATCH, MAX_WAIT_S = 32, 0.002
HOP_S = 0.00015  # from one process to the next
SIM_S = 5.0

Answers = list[tuple[int, int]]  # tickets and request ids


def batch_s(rows: int) -> float:
    """What a batch takes: most of it whatever its size."""
    return 0.005 + 0.0001 * rows


class World:
    """The client answers each lump with as many new requests; what arrives while it is busy becomes one lump."""

    def __init__(self, lumps: Iterable[int]) -> None:
        self.router = Router(["m"], Limits(1_000, 1 << 30, 1_000, 3), epoch=1)
        self.session = self.router.hello(b"s" * 16, None)
        self.batchers = {name: Batcher(MAX_BATCH, MAX_WAIT_S) for name in "ab"}
        self.running = dict.fromkeys("ab", False)
        self.sizes: Counter[int] = Counter()
        self._workers = {name: self._open(name) for name in "ab"}
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._serial = itertools.count(1)
        self._random = random.Random(1)
        self._arrived = self._asks_at = 0
        for i, lump in enumerate(lumps):
            self._at(0.0002 * i, self._ask, lump)

    def _open(self, name: str) -> Worker:
        worker = self.router.open(name, 1, name, "m", MAX_BATCH, 0.0)
        assert worker is not None
        return worker

    def run(self) -> None:
        """The second half of the time is what counts."""
        now = 0.0
        while now < SIM_S:
            now, _, what, given = heapq.heappop(self._events)
            if now < SIM_S / 2:
                self.sizes.clear()
            what(now, given)

    def _at(self, when: float, what: Callable[..., None], given: Any) -> None:
        heapq.heappush(self._events, (when, next(self._serial), what, given))

    def _hop_s(self) -> float:
        return HOP_S * self._random.uniform(0.8, 1.3)

    def _ask(self, now: float, lump: int) -> None:
        records = [wire.repacked(Record(Kind.REQUEST, request_id=next(self._serial))) for _ in range(lump)]
        self.router.admit(self.session, records, now)
        self._dispatch(now)

    def _dispatch(self, now: float) -> None:
        for worker, entries in self.router.dispatch(now):
            given = worker.replica, [(entry.ticket, entry.request_id) for entry in entries]
            self._at(now + self._hop_s(), self._arrive, given)

    def _arrive(self, now: float, given: tuple[str, Answers]) -> None:
        name, requests = given
        self.batchers[name].add([Item(each, 1, False, now) for each in requests], now)
        self._go(now, name)

    def _go(self, now: float, name: str) -> None:
        wait_s = self.batchers[name].wait_s(now)
        if self.running[name] or wait_s is None:
            return
        if wait_s > 0:
            self._at(now + wait_s + 1e-6, self._go, name)
            return
        requests = self.batchers[name].take()
        self.running[name] = True
        self.sizes[len(requests)] += 1
        self._at(now + batch_s(len(requests)) * self._random.uniform(1.0, 1.02), self._done, (name, requests))

    def _done(self, now: float, given: tuple[str, Answers]) -> None:
        name, requests = given
        self.running[name] = False
        self.batchers[name].ran(len(requests), batch_s(len(requests)), now)
        self._at(now + self._hop_s(), self._answer, given)
        self._at(now + 1e-5, self._go, name)

    def _answer(self, now: float, given: tuple[str, Answers]) -> None:
        name, requests = given
        records = [Record(Kind.RESULT, request_id=number, ticket=ticket) for ticket, number in requests]
        self.router.answers(self._workers[name], [wire.repacked(each) for each in records], now)
        self._at(now + self._hop_s(), self._hear, len(requests))
        self._dispatch(now)

    def _hear(self, now: float, rows: int) -> None:
        self._arrived += rows
        if not self._asks_at:
            self._asks_at = 1
            self._at(now + self._hop_s(), self._ask_again, None)

    def _ask_again(self, now: float, _: None) -> None:
        lump, self._arrived, self._asks_at = self._arrived, 0, 0
        self._at(now + self._hop_s(), self._ask, lump)


@pytest.mark.parametrize("lumps", [(16,), (1, 15), (2, 14), (3, 13), (5, 11), (1, 1, 14), (4, 4, 8), (2, 3, 5, 6)])
def test_two_workers_come_to_share_what_is_under_way_evenly(lumps: tuple[int, ...]) -> None:
    """However it began: neither waits for the other, and no third group waits behind both."""
    world = World(lumps)
    world.run()
    assert world.sizes[8] > 0.95 * sum(world.sizes.values()), sorted(world.sizes.items())
