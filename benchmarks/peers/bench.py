"""The rounds: within each, every server takes its turn, so that a slow phase of the machine hits all of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.driving import Clients, machine_s
from benchmarks.peers.figures import recovery
from benchmarks.peers.rows import Row
from benchmarks.peers.serving import Server, ServerFailed
from benchmarks.peers.workloads import KILL, Point

START_S = 60.0
WARM_UP_S = 1
KILL_AT_S = 2.0
POLL_S = 0.01
# A turn waits until others leave the machine alone: until they took less than this over LOOK_S.
QUIET_CORES, LOOK_S = 0.2, 0.25

Figures = dict[str, float | None]


@dataclass
class Bench:
    """What is measured, how, and what came of it.

    python_of: the interpreter that runs a row. after_kill_s: how long the kill workload is looked at. patience_s: how
    long it may wait, in all, for the machine to be quiet.
    """

    rows: list[Row]
    python_of: Callable[[Row], Path]
    rounds: int
    seconds: int
    after_kill_s: float
    patience_s: float
    points: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    kills: dict[str, list[Figures]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def measure(self, points: Iterable[Point]) -> None:
        """All points, those with the same workload on the same servers."""
        by_workload: dict[str, list[Point]] = {}
        for point in points:
            by_workload.setdefault(point.workload, []).append(point)
        for workload, its_points in by_workload.items():
            with ExitStack() as stack:
                up = self._up(stack, workload, max(point.clients for point in its_points))
                for point in its_points:
                    self._measure(point, up)

    def _up(self, stack: ExitStack, workload: str, clients: int) -> dict[str, Clients]:
        """Start what may stay up while others are measured."""
        up = {}
        for row in self.rows:
            if row.quiet and workload in row.workloads:
                own = ExitStack()
                try:
                    up[row.name] = self._start(own, row, workload, clients)
                except ServerFailed as err:
                    own.close()
                    self._miss(row, workload, err)
                else:
                    stack.enter_context(own)
        return up

    def _start(self, stack: ExitStack, row: Row, workload: str, clients: int) -> Clients:
        server = stack.enter_context(Server(row, workload, self.python_of(row)))
        server.wait_for_workers(START_S)
        found = stack.enter_context(Clients(server, clients))
        found.check()
        return found

    def _measure(self, point: Point, up: dict[str, Clients]) -> None:
        say(f"{point.name}:")
        for clients in up.values():
            clients.load(point, WARM_UP_S)
        found = self.points.setdefault(point.name, {})
        for _ in range(self.rounds):
            for row in self.rows:
                self._wait_for_quiet()
                try:
                    if row.name in up:
                        figures = up[row.name].load(point, self.seconds)
                        up[row.name].check()
                    elif not row.quiet and point.workload in row.workloads and row.name not in self.missing:
                        figures = self._alone(row, point)
                    else:
                        continue
                except ServerFailed as err:
                    self._miss(row, point.name, err)
                    up.pop(row.name, None)
                    continue
                found.setdefault(row.name, []).append(figures)
                shown = f"{figures['rps']:9.0f}/s  p50 {figures['p50_ms']} ms  {figures['server_us']:.0f} us"
                say(f"  {row.name:14} {shown}")

    def _wait_for_quiet(self) -> None:
        while self.patience_s > 0:
            busy_s = machine_s()
            time.sleep(LOOK_S)
            if (machine_s() - busy_s) / LOOK_S < QUIET_CORES:
                return
            self.patience_s -= LOOK_S

    def _alone(self, row: Row, point: Point) -> Figures:
        """Started for this turn only."""
        with ExitStack() as stack:
            clients = self._start(stack, row, point.workload, point.clients)
            clients.load(point, WARM_UP_S)
            return clients.load(point, self.seconds)

    def measure_kills(self) -> None:
        """A fresh server for each turn, of which one worker is killed."""
        say(f"{KILL.name}:")
        for _ in range(self.rounds):
            for row in self.rows:
                if KILL.workload not in row.workloads or row.name in self.missing:
                    continue
                try:
                    figures = self._kill(row)
                except ServerFailed as err:
                    self._miss(row, KILL.name, err)
                    continue
                self.kills.setdefault(row.name, []).append(figures)
                say(f"  {row.name:14} lost {figures['lost']:.0f}, full rate after {figures['full_rate_s']} s")

    def _kill(self, row: Row) -> Figures:
        with ExitStack() as stack:
            clients = self._start(stack, row, KILL.workload, KILL.clients)
            clients.server.wait_for_workers(START_S)
            client = clients.start_kill(KILL, KILL_AT_S + self.after_kill_s)
            time.sleep(KILL_AT_S)
            before = clients.server.workers()
            clients.server.kill_a_worker()
            killed_at = time.monotonic()
            until, new_worker_s = killed_at + self.after_kill_s, None
            while new_worker_s is None and time.monotonic() < until:
                if clients.server.workers() - before:
                    new_worker_s = time.monotonic() - killed_at
                time.sleep(POLL_S)
            told = client.hear(self.after_kill_s + START_S)
        told_recovery = recovery(told["answered_at"], told["errors"], killed_at - told["began_at"], told["took_s"])
        return {**asdict(told_recovery), "new_worker_s": new_worker_s}

    def _miss(self, row: Row, where: str, err: ServerFailed) -> None:
        say(f"  {row.name}: failed: {err}")
        self.missing.setdefault(row.name, f"{where}: {err}")

    def results(self) -> dict[str, Any]:
        """All figures, for the file."""
        return {"points": self.points, "kills": self.kills, "missing": self.missing}


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
