"""A queue of a million small requests: filled, worked at, cancelled, expired, emptied."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from benchmarks.scale.grid import BATCH, counts
from benchmarks.scale.parts import Instance

from orch.wire import MAX_RECORDS

CLIENTS, WORKERS = 10, 10
LOOK_S = 0.02
# Records outstanding beside what is queued, while it is measured what one costs.
LOAD = 2_048
PART = 10  # a tenth of them is cancelled, or has a deadline; and tenths of a phase are compared

# Where a request that was admitted is counted.
PLACES = ("queued", "outstanding", "answered", "expired", "cancelled")


class Look(NamedTuple):
    """At the balancer. took_s: until it answered, which is how long its loop was busy with something else."""

    at: float
    cpu_s: float
    took_s: float
    queue: dict[str, int]


class Phase(NamedTuple):
    """cpu_us: for each request; first_us and last_us: in the first and the last tenth of them.

    stall_ms: the longest time in which the balancer's loop did not come to us.
    """

    name: str
    num: int
    rate: float
    cpu_us: float
    first_us: float
    last_us: float
    stall_ms: float


class Deep:
    """One instance, in whose balancer `total` requests are queued."""

    def __init__(self, instance: Instance, total: int) -> None:
        self._instance = instance
        self._clients = instance.clients[0]
        self._total = total
        self.phases: list[Phase] = []
        self.bytes_each = 0.0

    def through(self, seconds: float) -> None:
        """Filled, worked at, a tenth cancelled, emptied."""
        self._load("both, queue empty", seconds)
        self._clients.say(do="stop")
        self._clients.hear("idle")
        self._fill(self._total)
        self._load("both, queue full", seconds)
        self._clients.say(do="stop")
        self._work(None)
        time.sleep(10 * LOOK_S)
        fewer = self._look().queue["queued"] - self._whole(self._total // PART)
        cancel = {"do": "cancel", "count": self._total // PART}
        self._until("cancel", "cancelled", lambda queue: queue["queued"] <= fewer, cancel)
        self._work(0.0)
        self._until("empty", "answered", lambda queue: not queue["queued"])

    def expire(self) -> None:
        """Filled, with a tenth that has one and the same deadline; then the clients leave."""
        ours = self._total // PART
        self._fill(self._total - ours)
        expired = self._reaches("expired", ours)
        self._pour("admit, with a deadline", ours, 4.0)
        self._until("expire", "expired", expired)
        self._until("leave", "cancelled", lambda queue: not queue["clients"], {"do": "leave"})

    # --- inside

    def _whole(self, count: int) -> int:
        """What the clients make of it: whole messages."""
        return count // CLIENTS // MAX_RECORDS * MAX_RECORDS * CLIENTS

    def _work(self, batch_s: float | None) -> None:
        self._instance.workers.say(do="work", batch_s=batch_s)

    def _fill(self, count: int) -> None:
        """With requests that nobody works at."""
        self._work(None)
        before = self._instance.balancer.memory_bytes
        self._pour("admit", count, 0.0)
        self.bytes_each = (self._instance.balancer.memory_bytes - before) / self._whole(count)

    def _pour(self, name: str, count: int, deadline_s: float) -> None:
        pour = {"do": "pour", "count": count, "deadline_s": deadline_s}
        self._until(name, "admitted", self._reaches("admitted", count), pour)

    def _load(self, name: str, seconds: float) -> None:
        """Admission, dispatch and answers at a time, the queue as long as it is."""
        load = {"active": CLIENTS, "records": BATCH, "outstanding": LOAD // CLIENTS // BATCH * BATCH, "turn": 8}
        self._work(0.0)
        self._clients.say(do="load", **load)
        time.sleep(seconds / 2)
        until = time.monotonic() + seconds
        self._until(name, "answered", lambda _: time.monotonic() >= until)

    def _reaches(self, field: str, more: int) -> Callable[[dict[str, int]], bool]:
        wanted = self._look().queue[field] + self._whole(more)
        return lambda queue: queue[field] >= wanted

    def _until(
        self, name: str, field: str, done: Callable[[dict[str, int]], bool], begin: dict[str, Any] | None = None
    ) -> None:
        """A phase, which ends when that many are `field`. begin: what makes the clients begin it."""
        looks = [self._look()]
        if begin is not None:
            self._clients.say(**begin)
        deadline = time.monotonic() + 60.0
        while not done(looks[-1].queue):
            assert time.monotonic() < deadline, f"{name}: {looks[-1].queue}"
            time.sleep(LOOK_S)
            looks.append(self._look())
        self.phases.append(_phase(name, field, looks))

    def _look(self) -> Look:
        began_at = time.perf_counter()
        queue = self._instance.stats()["queue"]
        queue["admitted"] = sum(queue[name] for name in PLACES)
        now = time.perf_counter()
        return Look(now, self._instance.balancer.cpu_s, now - began_at, queue)


def _phase(name: str, field: str, looks: list[Look]) -> Phase:
    first, last = looks[0], looks[-1]
    while len(looks) > 2 and looks[1].queue[field] == first.queue[field]:
        first = looks.pop(1)  # nothing has happened yet
    while len(looks) > 2 and looks[-2].queue[field] == last.queue[field]:
        last = looks.pop(-2)
    looks = [first, *looks[1:-1], last]
    num = last.queue[field] - first.queue[field]
    assert num, f"{name}: nothing was {field}"

    def cost_us(begin: float, end: float) -> float:
        """Between two shares of them, as near as was looked."""
        inside = [look for look in looks if begin <= (look.queue[field] - first.queue[field]) / num <= end]
        done = inside[-1].queue[field] - inside[0].queue[field] if inside else 0
        return (inside[-1].cpu_s - inside[0].cpu_s) / done * 1e6 if done else float("nan")

    return Phase(
        name,
        num,
        num / (last.at - first.at),
        (last.cpu_s - first.cpu_s) / num * 1e6,
        cost_us(0, 1 / PART),
        cost_us(1 - 1 / PART, 1),
        max(look.took_s for look in looks) * 1e3,
    )


def measure(total: int, rounds: int, seconds: float, body_bytes: int) -> tuple[list[list[Phase]], list[float]]:
    """The phases of each round, and the bytes of memory that a queued request takes."""
    found, memory = [], []
    limits = dict.fromkeys(("queue_limit", "client_queue_limit"), 2 * total)
    for _ in range(rounds):
        phases = []
        for way in ("through", "expire"):
            with Instance(WORKERS, CLIENTS, body_bytes, max_batch_size=BATCH, processes=1, limits=limits) as instance:
                deep = Deep(instance, total)
                deep.through(seconds) if way == "through" else deep.expire()
                phases += deep.phases if way == "through" else deep.phases[1:]
                errors = counts(instance)["errors"]
                memory.append(deep.bytes_each)
            assert way == "expire" or not errors, f"{errors} errors"
        found.append(phases)
    return found, memory


def table(rounds: list[list[Phase]], memory: list[float], body_bytes: int) -> str:
    """Medians."""
    head = f"{'phase':<24}{'requests':>9}{'req/s':>9}{'CPU us':>8}{'first':>7}{'last':>7}{'stall ms':>10}"
    lines = [head]
    for phases in zip(*rounds, strict=True):
        _, *figures = (_median(each) for each in zip(*phases, strict=True))
        num, rate, cpu_us, first_us, last_us, stall_ms = figures
        lines.append(
            f"{phases[0].name:<24}{num:>9.0f}{rate:>9.0f}{cpu_us:>8.2f}{first_us:>7.2f}{last_us:>7.2f}{stall_ms:>10.0f}"
        )
    lines.append(f"memory for each queued request of {body_bytes} bytes: {statistics.median(memory):.0f} bytes")
    return "\n".join(lines)


def _median(values: Iterable[Any]) -> Any:
    every = list(values)
    return every[0] if isinstance(every[0], str) else statistics.median(every)
