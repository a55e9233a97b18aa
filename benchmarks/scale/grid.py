"""What a request costs the balancer, by the number of workers and of clients."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from benchmarks.scale.parts import Instance

FOREVER = 1 << 60
ACTIVE = 10  # clients at a time
BATCH = 16  # of the workers, and records of a message where many travel in one
RATE = 40_000  # requests/s: half of what the balancer can do, so that its passes are as long at all points
CUSHION = 8  # batches that are queued, so that no worker idles
AHEAD_S = 0.05  # workers whose batches are shorter get one ahead


class Point(NamedTuple):
    """How many are connected."""

    workers: int
    clients: int


class Mode(NamedTuple):
    """A load. records: of a client's message. active: clients at a time. turn: messages until the next takes over.

    rate: requests/s that all workers together can answer; 0: as many as they get. outstanding: requests, of all clients
    together; 0: as many as keep all workers busy, so that the latency says no more than how many workers there are.
    """

    name: str
    what: str
    records: int
    active: int
    turn: int = FOREVER
    rate: int = 0
    outstanding: int = 0

    def batch_s(self, workers: int) -> float:
        """How long a batch takes."""
        return BATCH * workers / self.rate if self.rate else 0.0

    def under_way(self, workers: int) -> int:
        """Records outstanding in all: what workers are given, and a few batches more."""
        if self.outstanding:
            return self.outstanding
        ahead = 1 if self.batch_s(workers) < AHEAD_S else 0
        return BATCH * ((1 + ahead) * workers + CUSHION)


MODES = (
    Mode(
        "packed", f"{BATCH} records a message; workers busy, {RATE} requests/s; one client active", BATCH, 1, rate=RATE
    ),
    Mode("turns", f"the same; all clients active in turns of {16 * BATCH} requests", BATCH, 1, turn=16, rate=RATE),
    Mode("single", f"one record a message; {ACTIVE} clients active for one each", 1, ACTIVE, 1, outstanding=ACTIVE),
    Mode(
        "spread", f"{BATCH} records a client's message, for idle workers", BATCH, ACTIVE, 1, outstanding=ACTIVE * BATCH
    ),
    Mode("flood", f"as fast as it goes; {ACTIVE} clients active in turns of {8 * BATCH}", BATCH, ACTIVE, turn=8),
)
POINTS = tuple(Point(workers, clients) for workers in (10, 100, 1_000) for clients in (10, 1_000, 10_000))


class Figures(NamedTuple):
    """Of one turn. cpu_us: of the balancer, for each request. to_*, from_*: records in a message."""

    cpu_us: float
    rate: float
    cores: float
    p50_ms: float
    p99_ms: float
    to_worker: float
    to_client: float


def measure(
    points: Sequence[Point], modes: Sequence[Mode], rounds: int, seconds: float, body_bytes: int, processes: int
) -> dict[tuple[Point, str], list[Figures]]:
    """All points are up at a time, and all but one idle: in each round each has a turn of each load."""
    found: dict[tuple[Point, str], list[Figures]] = {(point, mode.name): [] for point in points for mode in modes}
    with ExitStack() as stack:
        up = {}
        for point in points:
            instance = Instance(*point, body_bytes, max_batch_size=BATCH, processes=processes)
            up[point] = stack.enter_context(instance)
        for _ in range(rounds):
            for mode in modes:
                for point, instance in up.items():
                    found[point, mode.name].append(turn(instance, mode, seconds))
    return found


def turn(instance: Instance, mode: Mode, seconds: float) -> Figures:
    """Begin the load, let it settle, measure, and let it run out."""
    under_way = mode.under_way(instance.num_workers)
    instance.workers.say(do="work", batch_s=mode.batch_s(instance.num_workers))
    simulations = instance.clients[: mode.active]
    for simulation in simulations:
        outstanding = under_way // mode.active // mode.records * mode.records
        active = mode.active // len(simulations)
        simulation.say(do="load", active=active, records=mode.records, outstanding=outstanding, turn=mode.turn)
    settle(instance, under_way, seconds / 2)
    balancer, workers = instance.balancer, instance.workers
    before, began_at, began_cpu_s = counts(instance), time.perf_counter(), balancer.cpu_s
    worker_before = workers.counts
    time.sleep(seconds)
    after, took_s, cpu_s = counts(instance), time.perf_counter() - began_at, balancer.cpu_s - began_cpu_s
    worker_after = workers.counts
    latencies_s: list[float] = []
    for simulation in simulations:
        simulation.say(do="stop")
    for simulation in simulations:
        latencies_s += simulation.hear("idle")["latencies_s"]
    moved = {name: after[name] - before[name] for name in after}
    answered = {name: worker_after[name] - worker_before[name] for name in worker_after}
    assert not moved["errors"], f"{moved['errors']} errors"
    assert moved["records"] > 100, f"{moved['records']} answers in {took_s:.1f} s"
    latencies_s.sort()
    return Figures(
        cpu_s / moved["records"] * 1e6,
        moved["records"] / took_s,
        cpu_s / took_s,
        latencies_s[len(latencies_s) // 2] * 1e3,
        latencies_s[int(len(latencies_s) * 0.99)] * 1e3,
        answered["records"] / answered["received"],
        moved["records"] / moved["received"],
    )


def settle(instance: Instance, under_way: int, seconds: float) -> None:
    """Until twice as much as is under way was answered, and so long."""
    first, until = counts(instance)["records"], time.monotonic() + seconds
    while time.monotonic() < until or counts(instance)["records"] - first < 2 * under_way:
        assert time.monotonic() < until + 30.0, "it does not get going"
        time.sleep(0.02)


def counts(instance: Instance) -> dict[str, int]:
    """Of all clients."""
    each = [simulation.counts for simulation in instance.clients]
    return {name: sum(counted[name] for counted in each) for name in each[0]}


def medians(turns: Iterable[Figures]) -> Figures:
    """Of each figure."""
    return Figures(*(statistics.median(each) for each in zip(*turns, strict=True)))


def table(found: dict[tuple[Point, str], list[Figures]], modes: Sequence[Mode]) -> str:
    """A page of all that was found; the ratio is the median of the rounds' ratios to the first point."""
    lines = []
    for mode in modes:
        rows = {point: turns for (point, name), turns in found.items() if name == mode.name}
        first = next(iter(rows.values()))
        lines += ["", f"{mode.name}: {mode.what}", HEAD]
        for point, turns in rows.items():
            ratio = statistics.median(each.cpu_us / base.cpu_us for each, base in zip(turns, first, strict=True))
            lines.append(_row(point, medians(turns), ratio))
    return "\n".join(lines)


HEAD = (
    f"{'workers':>8}{'clients':>8}{'CPU us':>9}{'ratio':>7}{'req/s':>9}{'cores':>7}{'p50 ms':>9}{'p99 ms':>9}"
    f"{'to worker':>11}{'to client':>11}"
)


def _row(point: Point, each: Figures, ratio: float) -> str:
    return (
        f"{point.workers:>8}{point.clients:>8}{each.cpu_us:>9.2f}{ratio:>7.2f}{each.rate:>9.0f}{each.cores:>7.2f}"
        f"{each.p50_ms:>9.2f}{each.p99_ms:>9.2f}{each.to_worker:>11.1f}{each.to_client:>11.1f}"
    )
