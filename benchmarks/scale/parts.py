"""The processes of a measurement: a real balancer, and simulated peers, spoken to as the supervisor speaks to it."""

from __future__ import annotations

import mmap
import os
import resource
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from orch import page, wire
from orch.link import Message
from orch.supervising.process import Child

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
# CPUCLOCK_SCHED of the kernel: the CPU clock of a process by its pid, see clock_getcpuclockid(3).
_CLOCK = 2
# What a simulation counts, each a u64 in memory that it shares with us.
COUNTERS = ("records", "received", "sent", "errors")
# Descriptors of a process besides its connections; a balancer has one more for each worker's status page.
SPARE = 256


class PartFailed(Exception):
    """A process of the measurement ended, or does not answer; the message has what it printed last."""


class Part:
    """A child in a session of its own, with a link that carries JSON lines."""

    def __init__(self, module: str, *fds: int, **settings: Any) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
        environ["ORCH_SUPERVISOR_PID"] = str(os.getpid())
        environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)]).strip(os.pathsep)
        self.module = module
        self._child = Child(module, fds, environ)
        self._heard: list[Message] = []
        self.pid = self._child.pid
        self.say(settings=settings)

    def say(self, **message: Any) -> None:
        """Send it, all of it."""
        link = self._child.link
        link.send(**message)
        while link.unsent:
            select.select([], [link], [], PATIENCE_S)
            link.flush()

    def hear(self, event: str, within_s: float = PATIENCE_S) -> Message:
        """The next message about that event; others are dropped. Raises PartFailed."""
        deadline = time.monotonic() + within_s
        while True:
            while self._heard:
                message = self._heard.pop(0)
                if message.get("event") == event:
                    return message
            select.select([self._child.link], [], [], max(0.0, deadline - time.monotonic()))
            self._heard = self._child.link.receive()
            said = self._printed()
            if not self._heard and (self._child.link.closed or time.monotonic() > deadline):
                raise PartFailed(f"{self.module} said nothing about {event!r}; it printed: {said[-600:]}")

    def _printed(self) -> str:
        return (self._child.output.read() or b"").decode(errors="replace")

    @property
    def cpu_s(self) -> float:
        """User and system seconds of all its threads."""
        return time.clock_gettime(~self.pid << 3 | _CLOCK)

    @property
    def memory_bytes(self) -> int:
        """Its share of the memory that it has resident (PSS)."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise PartFailed(f"{self.module} has no memory")

    def end(self) -> None:
        """Kill it: nothing that it has is kept."""
        self._child.signal(signal.SIGKILL)
        self._child.reap()
        self._child.close()


class Simulation(Part):
    """Simulated workers or clients, with what they count."""

    def __init__(self, module: str, **settings: Any) -> None:
        fd = os.memfd_create("counters")
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            self._counters = counters(fd)
            super().__init__(f"benchmarks.scale.{module}", fd, **settings)
        finally:
            os.close(fd)

    @property
    def counts(self) -> dict[str, int]:
        """So far."""
        return dict(zip(COUNTERS, self._counters, strict=False))


def counters(fd: int) -> memoryview:
    """The u64s in that file; they stay when it is closed."""
    return memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")


class Instance:
    """A balancer, and as many simulated workers and clients as are asked for.

    body_bytes: of a request and of its answer. limits: settings of the balancer that replace the usual ones.
    processes: that share the clients.
    """

    def __init__(
        self,
        num_workers: int,
        num_clients: int,
        body_bytes: int,
        *,
        max_batch_size: int,
        processes: int,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        allow_connections(num_clients + 2 * num_workers)
        self.num_workers, self.num_clients = num_workers, num_clients
        self._folder = Path(tempfile.mkdtemp(prefix="osc"))
        self._parts: list[Part] = []
        back, self.front = f"{self._folder}/back", f"{self._folder}/front"
        pages_fd = page.create()
        try:
            settings = {
                "front": [f"unix://{self.front}"], "back": back, "models": ["m"],
                "queue_limit": 1_000_000, "queue_bytes": 8 << 30, "client_queue_limit": 1_000_000,
                "max_attempts": 3, "max_payload_bytes": 64 << 20,
                **(limits or {}),
            }  # fmt: skip
            self.balancer = self._started(Part("orch_balancer", pages_fd, **settings))
            self.balancer.hear("bound")
            self.workers = Simulation("workers", path=back, body_bytes=body_bytes)
            self._started(self.workers)
            expected = {"generation": 1, "pid": self.workers.pid, "accepting": True, "weight": 1.0}
            named = [{"replica": f"r{i}", "slot": i, **expected} for i in range(num_workers)]
            self.balancer.say(do="workers", workers=named)
            self.stats()  # so it knows them before they come
            self.workers.say(do="connect", count=num_workers, max_batch_size=max_batch_size)
            for _ in range(num_workers):
                self.balancer.hear("open")
            self.clients = []
            for i in range(processes):
                simulation = Simulation("clients", path=self.front, body_bytes=body_bytes)
                self.clients.append(simulation)
                self._started(simulation).say(do="connect", count=len(range(i, num_clients, processes)))
            for simulation in self.clients:
                simulation.hear("connected")
        except BaseException:
            self.end()
            raise
        finally:
            os.close(pages_fd)

    def _started(self, part: Part) -> Part:
        self._parts.append(part)
        return part

    def stats(self) -> Message:
        """The balancer's figures."""
        self.balancer.say(do="stats", seq=0)
        return self.balancer.hear("stats")

    def end(self) -> None:
        """All of it; the balancer first, which would else tell of each client that goes."""
        for part in self._parts:
            part.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def allow_connections(wanted: int) -> None:
    """As many descriptors as that for the processes that we start. Raises PartFailed."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if wanted + SPARE > hard:
        raise PartFailed(f"{wanted} descriptors are needed and {hard} allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def hello(session: bytes) -> list[Any]:
    """A client's first message."""
    return [wire.pack_head([wire.Record(wire.Kind.HELLO, body=wire.write_map(session=session, sdk="scale", window=0))])]
