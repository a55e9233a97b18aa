"""Workers of unequal speed behind one queue: short histories, and days of a small world."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from orch.wire import Kind, Priority, Record, repacked
from orch_balancer.admission import Limits
from orch_balancer.pool import Worker
from orch_balancer.router import Router
from tests.unit.ledger import check

LIMITS = Limits(1_000_000, 1 << 40, 1_000_000, 3)


class House:
    """A router with one client and one worker for each weight, w0, w1, ...; each step passes a millisecond."""

    def __init__(self, *weights: float, max_batch_size: int = 16) -> None:
        self.router = Router(["m"], LIMITS, epoch=7)
        self.now = 100.0
        self.session = self.router.hello(b"c" * 16, b"route")
        self.request_ids = itertools.count(1)
        self.workers: list[Worker] = []
        for number, weight in enumerate(weights):
            name = f"w{number}"
            worker = self.router.open(name, 1, name.encode(), "m", max_batch_size, self.now, weight)
            assert worker is not None
            self.workers.append(worker)
            self.step()

    def step(self) -> None:
        check(self.router)
        self.now += 0.001

    def ask(self, count: int) -> None:
        for _ in range(count):
            record = Record(Kind.REQUEST, 0, Priority.NORMAL, 0, 0, next(self.request_ids), 0, 0, 1, b"body", ())
            assert self.router.admit(self.session, [repacked(record)], self.now) == []

    def dispatch(self) -> list[tuple[str, int]]:
        """Who is given how many, one line per message."""
        made = [(worker.replica, len(entries)) for worker, entries in self.router.dispatch(self.now)]
        self.step()
        return made

    def answer(self, number: int) -> None:
        worker = self.workers[number]
        records = [repacked(Record(Kind.RESULT, ticket=each)) for each in list(worker.outstanding)]
        self.router.answers(worker, records, self.now)
        self.step()


# --- histories -----------------------------------------------------------------------------------------------------


def test_of_idle_workers_the_fastest_is_chosen_and_of_equals_the_longest_idle() -> None:
    """The slow one idles while nobody needs it."""
    house = House(0.5, 1.0, 1.0)
    for expected in ("w1", "w2", "w1", "w2"):
        house.ask(1)
        assert house.dispatch() == [(expected, 1)]
        house.answer(int(expected[1]))


def test_an_idle_worker_however_slow_is_given_work_while_the_others_are_busy() -> None:
    """Nothing waits behind a batch while a worker idles."""
    house = House(1.0, 0.05)
    house.router.pools[0].speed.batch_s = 0.001  # short enough to work ahead
    house.ask(1)
    assert house.dispatch() == [("w0", 1)]
    house.ask(1)
    assert house.dispatch() == [("w1", 1)]


def test_what_waits_is_shared_among_idle_workers_by_weight() -> None:
    """They are done together."""
    house = House(0.5, 1.0)
    house.ask(12)
    assert house.dispatch() == [("w1", 8), ("w0", 4)]


def test_of_busy_workers_the_one_that_would_be_done_first_is_given_more() -> None:
    """3 rows at half the speed are as far away as 7 at the full one."""
    house = House(1.0, 0.5)
    house.router.pools[0].speed.batch_s = 0.001
    house.ask(9)
    assert house.dispatch() == [("w0", 6), ("w1", 3)]
    house.ask(1)
    assert house.dispatch() == [("w0", 1)]


def test_a_slow_worker_is_given_no_batch_ahead_where_its_own_are_long() -> None:
    """Those of the fast one are short; a row behind the slow one's batch would wait for long."""
    house = House(1.0, 0.25, max_batch_size=2)
    house.router.pools[0].speed.batch_s = 0.02
    house.ask(20)
    assert house.dispatch() == [("w0", 2), ("w1", 2), ("w0", 2)]


def test_batches_are_learned_as_if_all_workers_were_of_weight_one() -> None:
    """40 ms at half the speed are 20 ms at the full one."""
    house = House(0.5)
    house.ask(1)
    house.dispatch()
    house.now = house.workers[0].began_at + 0.04
    house.answer(0)
    house.router.observe()
    assert house.router.pools[0].speed.batch_s == pytest.approx(0.02)


def test_what_a_worker_did_counts_by_the_weight_that_it_had_then() -> None:
    """It is weighed anew before anybody has learned of its answer."""
    house = House(0.5)
    house.ask(16)
    house.dispatch()
    house.now = house.workers[0].began_at + 0.04
    house.answer(0)
    house.router.weigh(house.workers[0], 1.0)
    house.router.observe()
    assert house.router.pools[0].speed.batch_s == pytest.approx(0.02)


def test_a_weight_that_is_measured_later_counts_at_once() -> None:
    """Before that all are taken for equal."""
    house = House(1.0, 1.0)
    house.router.weigh(house.workers[0], 0.5)
    house.step()
    house.ask(1)
    assert house.dispatch() == [("w1", 1)]
    house.answer(1)
    house.router.weigh(house.workers[1], 0.4)
    house.router.drain(house.workers[0])
    house.router.weigh(house.workers[0], 1.0)
    house.ask(1)
    assert house.dispatch() == [("w1", 1)], "a weight opens no worker that is drained"


# --- days ----------------------------------------------------------------------------------------------------------


@dataclass
class Day:
    """What came of the requests of one day."""

    latencies_s: list[float] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    began_at: float = 0.0
    ended_at: float = 0.0

    @property
    def per_s(self) -> float:
        """Requests answered per second."""
        return len(self.latencies_s) / (self.ended_at - self.began_at)

    @property
    def mean_s(self) -> float:
        """Of the latencies."""
        return statistics.fmean(self.latencies_s)

    def part(self, name: str) -> float:
        """Of the answers that came from that worker."""
        return self.answered.get(name, 0) / len(self.latencies_s)


def a_day(
    speeds: Sequence[float],
    told: Sequence[float],
    *,
    row_s: float = 0.01,
    max_batch_size: int = 1,
    callers: int = 0,
    per_s: float = 0.0,
    num_requests: int = 2_000,
) -> Day:
    """Workers of these speeds, and what the router is told of them.

    At speed 1 a batch takes a fixed 2 ms and row_s for each row. There are `callers`, each of whom asks again once it
    is answered, or requests arrive at random, `per_s` of them.
    """
    house = House(*told, max_batch_size=max_batch_size)
    rng, order, day = random.Random(1), itertools.count(), Day(began_at=house.now)
    pipes: dict[str, list[int]] = {worker.replica: [] for worker in house.workers}
    running: dict[str, list[int]] = {}
    asked_at: dict[int, float] = {}
    events = [(house.now, next(order), "")] * max(1, callers)

    def go_on() -> None:
        for worker, entries in house.router.dispatch(house.now):
            pipes[worker.replica] += [entry.ticket for entry in entries]
            asked_at.update((entry.ticket, entry.admitted_at) for entry in entries)
        for name, pipe in pipes.items():
            if pipe and name not in running:
                running[name], pipes[name] = pipe[:max_batch_size], pipe[max_batch_size:]
                takes_s = (0.002 + row_s * len(running[name])) / speeds[int(name[1:])]
                heapq.heappush(events, (house.now + takes_s, next(order), name))

    while len(day.latencies_s) < num_requests:
        house.now, _, name = heapq.heappop(events)
        if name:
            tickets = running.pop(name)
            records = [repacked(Record(Kind.RESULT, ticket=each)) for each in tickets]
            house.router.answers(house.workers[int(name[1:])], records, house.now)
            day.latencies_s += [house.now - asked_at.pop(each) for each in tickets]
            day.answered[name] = day.answered.get(name, 0) + len(tickets)
            for _ in tickets if callers else ():
                heapq.heappush(events, (house.now, next(order), ""))
        else:
            house.ask(1)
            if per_s:
                heapq.heappush(events, (house.now + rng.expovariate(per_s), next(order), ""))
        go_on()
    check(house.router)
    day.ended_at = house.now
    return day


@pytest.mark.parametrize("max_batch_size", [1, 8])
@pytest.mark.parametrize("told", [(1.0, 0.5), (1.0, 1.0)])
def test_saturated_workers_answer_in_proportion_to_their_speed(told: tuple[float, float], max_batch_size: int) -> None:
    """Each takes the next batch when it is free: no capacity is lost, whatever the weights say."""
    day = a_day((1.0, 0.5), told, callers=64, max_batch_size=max_batch_size)
    both_per_s = 1.5 * max_batch_size / (0.002 + 0.01 * max_batch_size)
    assert day.per_s == pytest.approx(both_per_s, rel=0.03)
    assert day.part("w0") == pytest.approx(2 / 3, abs=0.02)


def test_under_light_load_the_fast_worker_does_nearly_all() -> None:
    """A request that meets two idle workers does not go to the slow one."""
    weighed, unweighed = (a_day((1.0, 0.5), told, per_s=5.0) for told in ((1.0, 0.5), (1.0, 1.0)))
    assert weighed.part("w0") > 0.9
    assert weighed.mean_s < 0.8 * unweighed.mean_s


@pytest.mark.parametrize("speeds", [(1.0, 0.5), (1.0, 0.25), (1.0, 1.0, 0.5, 0.5)])
@pytest.mark.parametrize("load", [0.3, 0.6])
@pytest.mark.parametrize("max_batch_size", [1, 8])
def test_under_medium_load_weights_make_answers_faster(
    speeds: tuple[float, ...], load: float, max_batch_size: int
) -> None:
    """And the slow ones still do a part."""
    per_s = load * sum(speeds) * max_batch_size / (0.002 + 0.01 * max_batch_size)
    weighed, unweighed = (
        a_day(speeds, told, per_s=per_s, max_batch_size=max_batch_size) for told in (speeds, [1.0] * len(speeds))
    )
    assert weighed.mean_s < unweighed.mean_s
    assert weighed.part(f"w{len(speeds) - 1}") > 0.02


def test_two_callers_use_two_workers_however_unequal_these_are() -> None:
    """12 ms at the one and 48 ms at the other: the second caller does not queue behind the first."""
    day = a_day((1.0, 0.25), (1.0, 0.25), callers=2)
    assert day.per_s > 1.2 / 0.012
