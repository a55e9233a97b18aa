"""The workers that serve one model, and what waits for them. Only the router changes it."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from orch_balancer import policy
from orch_balancer.entry import Entry
from orch_balancer.fairqueue import FairQueue
from orch_balancer.learned import ResultBytes, Speed
from orch_balancer.leases import Process

SLACK = 64


@dataclass(slots=True, eq=False)
class Worker:
    """One READY worker process. `outstanding` is by ticket, oldest first; weight 1.0 is the fastest kind of GPU."""

    replica: str
    generation: int
    route: Any
    pool: Pool
    max_batch_size: int
    idle_since: float
    weight: float = 1.0
    outstanding: dict[int, Entry] = field(default_factory=dict)
    rows: int = 0
    streams: int = 0  # of what is outstanding
    accepting: bool = True
    in_lane: bool = False  # runs a suspect, or is being emptied for one
    began_at: float = 0.0  # since when it could be busy with what it answers next
    version: int = 0
    process: Process = field(init=False)  # which of the replica's it is

    def __post_init__(self) -> None:
        self.process = self.replica, self.generation


class Pool:
    """Owns the choice of a worker: a heap of those with room, in which an old rank is skipped by its version.

    Who is touched is ranked anew before the next choice, or when nobody waits for the loop.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self.queue = FairQueue()
        self.suspects: deque[Entry] = deque()
        self.workers: dict[str, Worker] = {}
        self.lanes: set[str] = set()
        self.one_lane = False
        self.speed = Speed()
        self.results = ResultBytes()
        self.idle_weight = 0.0  # the sum of those in `idle`
        self._idle: dict[str, float] = {}
        self.touched: dict[Worker, None] = {}  # whose load, weight or willingness has changed
        self._awaited = 0  # rows that were just answered, and not followed by others
        self._awaited_until = 0.0
        self._heap: list[tuple[tuple[float, float], int, int, Worker]] = []
        self._serial = 0

    def add(self, worker: Worker) -> None:
        """A worker opened for work."""
        self.workers[worker.replica] = worker
        self.touched[worker] = None

    def remove(self, worker: Worker) -> None:
        """A worker is gone."""
        del self.workers[worker.replica]
        self.lanes.discard(worker.replica)
        worker.version += 1
        worker.accepting = False
        self.touched.pop(worker, None)  # another may have its name by the time
        self._count_idle(worker, is_idle=False)

    def settle(self) -> None:
        """Rank anew who was touched."""
        if not self.touched:
            return
        for worker in self.touched:
            self._rank(worker)
        self.touched.clear()
        heap = self._heap
        while heap and heap[0][2] != heap[0][3].version:
            heapq.heappop(heap)

    def _rank(self, worker: Worker) -> None:
        worker.version += 1
        willing = worker.accepting and not worker.in_lane
        is_idle = willing and not worker.outstanding
        if is_idle or worker.replica in self._idle:
            self._count_idle(worker, is_idle=is_idle)
        if not willing or self.room(worker, worker.began_at) <= 0:
            return
        self._serial += 1
        rank = policy.rank(worker.rows, worker.weight, worker.idle_since)
        heapq.heappush(self._heap, (rank, self._serial, worker.version, worker))
        if len(self._heap) > 4 * len(self.workers) + SLACK:
            self._heap = [item for item in self._heap if item[2] == item[3].version]
            heapq.heapify(self._heap)

    def _count_idle(self, worker: Worker, *, is_idle: bool) -> None:
        self.idle_weight -= self._idle.pop(worker.replica, 0.0)
        if is_idle:
            self._idle[worker.replica] = worker.weight
            self.idle_weight += worker.weight
        elif not self._idle:
            self.idle_weight = 0.0  # what a sum of floats was off by, too

    @property
    def idle(self) -> dict[str, float]:
        """The weights of those without work, by replica."""
        self.settle()
        return self._idle

    def answered(self, rows: int, now: float) -> None:
        """As many may come soon."""
        self._awaited = self.awaited(now) + rows
        self._awaited_until = now + policy.RETURN_SHARE * (self.speed.batch_s or 0.0)

    def came(self, rows: int) -> None:
        """So many have."""
        if self._awaited:
            self._awaited = max(0, self._awaited - rows)

    def awaited(self, now: float) -> int:
        """Rows that may come any moment, in place of those that were answered."""
        return self._awaited if now < self._awaited_until else 0

    def room(self, worker: Worker, now: float) -> int:
        """Rows it may still be given; none behind a stream."""
        if not worker.outstanding:
            return worker.max_batch_size
        if worker.streams:
            return 0
        busy_s = now - worker.began_at
        return policy.room(worker.rows, worker.max_batch_size, self.speed.batch_s, worker.weight, busy_s)

    def best(self, now: float) -> tuple[Worker, int] | None:
        """The worker to give work to next, and the rows it may be given; None: nobody has room."""
        if self.touched:
            self.settle()
        heap = self._heap
        while heap:
            _, _, version, worker = heap[0]
            if version == worker.version and (room := self.room(worker, now)) > 0:
                return worker, room  # one that has run too long meanwhile is ranked again when it answers
            heapq.heappop(heap)
        return None

    def enter_lane(self, worker: Worker) -> None:
        """Keep a worker for suspects: nothing else is given to it."""
        worker.in_lane = True
        self.lanes.add(worker.replica)
        self.touched[worker] = None

    def leave_lane(self, worker: Worker) -> None:
        """Back to ordinary work."""
        worker.in_lane = False
        self.lanes.discard(worker.replica)
        self.touched[worker] = None

    @property
    def num_accepting(self) -> int:
        """Workers that take new work."""
        return sum(worker.accepting for worker in self.workers.values())
