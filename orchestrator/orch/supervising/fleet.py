"""The replicas and their processes: carries out what each replica's machine decides."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orch.config import Config
from orch.errors import Exit
from orch.link import Message
from orch.page import Phase, StatusPage
from orch.planning.footprint import Footprint
from orch.supervising import measure
from orch.supervising.events import Event
from orch.supervising.mps import Mps
from orch.supervising.output import Lines
from orch.supervising.process import INSTANCE_VARIABLE, WORKER_VARIABLE, Child, kill_marked
from orch.supervising.reactor import Reactor
from orch.supervising.replica import ALIVE, Action, Blame, Death, Replica, State

# Libraries with a thread pool of their own, each of which would take every core.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
# How often running batches are looked at: often enough that a hang is noticed within 2 % of its time-out, no oftener
# than a wake-up costs, and no rarer than a person would wait.
LOOKS_PER_TIMEOUT = 50
MIN_LOOK_S, MAX_LOOK_S = 0.05, 5.0
# A fence beyond what was measured: allocators round up, and kernels are loaded late.
FENCE_FACTOR, FENCE_MARGIN_BYTES = 1.05, 256 * 2**20


@dataclass(slots=True)
class Running:
    """One worker process, and what is known of it."""

    child: Child
    page: StatusPage
    lines: Lines
    started_at: float
    free_before: int | None
    footprint: Footprint | None = None
    timeout_s: float = 0.0
    message: str = ""
    hung: bool = False
    fence_bytes: int | None = None
    elsewhere: str = ""
    load_s: float = 0.0


class Owner(Protocol):
    """What a fleet tells its supervisor."""

    def report(self, event: Event) -> None:
        """Something that a person may want to know."""

    def printed(self, name: str, line: str) -> None:
        """A child has printed a line."""

    def became_ready(self, replica: Replica) -> None:
        """A replica opens for work; its footprint is measured."""

    def changed(self) -> None:
        """The set of workers, or who of them takes new work, is another."""

    def wants_loads(self) -> None:
        """It is time to look for workers that stand still: `look_for_stalls` waits for the balancer's figures."""

    def lost(self, replica: Replica, blame: Blame, tickets: tuple[int, ...]) -> None:
        """A worker died, with the batch of these tickets running."""


class Fleet:
    """Owns replicas, their machines and their processes."""

    def __init__(
        self,
        config: Config,
        worker_spec: Mapping[str, Any],
        pages_fd: int,
        environ: Mapping[str, str],
        reactor: Reactor,
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        self._config, self._worker_spec = config, worker_spec
        self._pages_fd, self._environ = pages_fd, environ
        self._reactor, self._owner, self._clock = reactor, owner, clock
        self.threads = 1
        self.mps: Mps | None = None
        self.cores: Mapping[str, tuple[int, ...]] = {}
        self.device_names: Mapping[str, str] = {}
        self.starting_allowed = True
        self._last_look = 0.0
        self.replicas: dict[str, Replica] = {}
        self.running: dict[str, Running] = {}
        self._footprints: dict[str, Footprint] = {}
        self._told: dict[str, State] = {}

    # --- the set -------------------------------------------------------------------------------------------------

    def add(self, device: str) -> Replica:
        """Plan one more replica, under the lowest free number."""
        slot = next(i for i in range(len(self.replicas) + 1) if f"r{i}" not in self.replicas)
        replica = Replica(f"r{slot}", slot, device, self._config.load_timeout_s, self._config.drain_timeout_s)
        self.replicas[replica.id] = replica
        return replica

    def stop(self, replica: Replica, *, comes_back: bool, drain_timeout_s: float | None = None) -> None:
        """Take a replica down its ladder."""
        before = replica.state
        now = self._clock()
        self._perform(replica, replica.stop(now, comes_back=comes_back, drain_timeout_s=drain_timeout_s))
        self._tell(replica, before)
        self._forget_stopped()

    def hurry(self) -> None:
        """Everything that is stopping takes its next rung."""
        for replica in list(self.replicas.values()):
            self._perform(replica, replica.hurry(self._clock()))

    def drained(self, replica_id: str, generation: int) -> None:
        """The balancer has nothing more with that worker."""
        replica = self.replicas.get(replica_id)
        if replica is not None and replica.generation == generation:
            self._perform(replica, replica.drained(self._clock()))

    def staying(self) -> list[Replica]:
        """Replicas that are to serve, now or when they are back."""
        return [replica for replica in self.replicas.values() if replica.comes_back]

    def give_up(self, replica_id: str, generation: int) -> None:
        """The balancer cannot reach a worker that lives: only a new one can serve."""
        running = self.running.get(replica_id)
        if running is not None and self.replicas[replica_id].generation == generation:
            self._give_up(replica_id, running, "the balancer cannot reach it")

    def in_state(self, *states: State) -> list[Replica]:
        """Replicas in one of these states."""
        return [replica for replica in self.replicas.values() if replica.state in states]

    def workers(self) -> list[Message]:
        """The snapshot for the balancer."""
        return [
            {
                "replica": replica_id,
                "generation": self.replicas[replica_id].generation,
                "pid": running.child.pid,
                "slot": self.replicas[replica_id].slot,
                "accepting": self.replicas[replica_id].state is not State.DRAINING,
            }
            for replica_id, running in self.running.items()
        ]

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Deadlines, hangs, and the next start: one replica loads at a time, so each sees what the last one took."""
        for replica in list(self.replicas.values()):
            self._perform(replica, replica.tick(now))
        if now - self._last_look >= self._look_s():
            self._last_look = now
            self._look_for_hangs(now)
            if self.in_state(State.READY):
                self._owner.wants_loads()
        if self.starting_allowed and not self.in_state(State.STARTING, State.LOADING):
            falling = {self.replicas[each].device for each, running in self.running.items() if running.elsewhere}
            waiting = [
                replica
                for replica in self.replicas.values()
                if replica.may_start(now)
                and replica.device not in falling  # the server takes nobody until all are gone
            ]
            if waiting:
                replica = waiting[0]
                before = replica.state
                self._perform(replica, replica.start(now))
                self._tell(replica, before)

    def next_deadline(self) -> float | None:
        """When `tick` has something to do; a replica that waits for its turn does so without a clock."""
        loads = bool(self.in_state(State.STARTING, State.LOADING))
        times = [
            at
            for replica in self.replicas.values()
            if (at := replica.next_deadline()) is not None and not (replica.state is State.BACKOFF and loads)
        ]
        if self.in_state(State.READY, State.DRAINING):
            times.append(self._last_look + self._look_s())
        return min(times, default=None)

    def _look_s(self) -> float:
        shortest = min((running.timeout_s for running in self.running.values() if running.timeout_s), default=0.0)
        return min(MAX_LOOK_S, max(MIN_LOOK_S, shortest / LOOKS_PER_TIMEOUT)) if shortest else MAX_LOOK_S

    def _look_for_hangs(self, now: float) -> None:
        for replica_id, running in self.running.items():
            if not running.timeout_s or running.page.phase is not Phase.RUNNING:
                continue
            age_s = now - running.page.progress_at_ns / 1e9
            if age_s > running.timeout_s:
                self._give_up(
                    replica_id, running, f"its batch runs for {age_s:.1f} s (--timeout {running.timeout_s:g})"
                )

    def look_for_stalls(self, loads: Mapping[str, Mapping[str, float]]) -> None:
        """A worker that has requests and begins none of them: stopped, or stuck outside of the model's batches."""
        for replica_id, running in self.running.items():
            busy_s = loads.get(replica_id, {}).get("busy_s", 0.0)
            if running.timeout_s and busy_s > running.timeout_s and running.page.phase is Phase.IDLE:
                self._give_up(
                    replica_id,
                    running,
                    f"it has had requests for {busy_s:.1f} s and runs none (--timeout {running.timeout_s:g})",
                )

    def _give_up(self, replica_id: str, running: Running, why: str) -> None:
        if not running.hung:
            running.hung = True
            text = f"{replica_id}: {why}; killed"
            self._owner.report(Event("warning", text, replica_id))
            self._kill(running)

    # --- processes -----------------------------------------------------------------------------------------------

    def _perform(self, replica: Replica, actions: list[Action]) -> None:
        running = self.running.get(replica.id)
        for action in actions:
            if action is Action.SPAWN:
                self._spawn(replica)
            elif action is Action.TERMINATE and running is not None:
                running.child.signal(signal.SIGTERM)
            elif action is Action.KILL and running is not None:
                self._kill(running)
        if Action.SPAWN in actions or Action.DRAIN in actions:
            self._owner.changed()

    def unfenced(self) -> list[str]:
        """Replicas that MPS lets take all the memory there is, among several on their GPU."""
        if self.mps is None or len(self.replicas) == 1:
            return []
        return [
            replica_id
            for replica_id, running in self.running.items()
            if running.fence_bytes is None and self.replicas[replica_id].device != measure.CPU
        ]

    def _kill(self, running: Running) -> None:
        if self.mps is not None:
            self.mps.terminate_client(running.child.pid)
        running.child.signal(signal.SIGKILL)

    def _fence(self, replica: Replica) -> int | None:
        """Device memory that MPS lets a replica have: what the largest so far costs, and a margin. None: unmeasured."""
        footprint = self.largest_footprint()
        if self.mps is None or replica.device == measure.CPU or footprint is None:
            return None
        return int(footprint.device_bytes * FENCE_FACTOR) + FENCE_MARGIN_BYTES

    def sacrifice(self, device: str, why: str) -> None:
        """A fault has taken every client of a GPU along: end them all, so that the server recovers."""
        for replica_id, running in self.running.items():
            if self.replicas[replica_id].device == device and not running.elsewhere:
                running.elsewhere = why
                running.child.signal(signal.SIGKILL)

    def _spawn(self, replica: Replica) -> None:
        page = StatusPage(self._pages_fd, replica.slot)
        page.clear()
        on_gpu = replica.device != measure.CPU
        fence_bytes = self._fence(replica)
        environ = {
            **self._environ,
            **dict.fromkeys(THREAD_VARIABLES, str(len(self.cores.get(replica.id, ())) or self.threads)),
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": replica.device if on_gpu else "",
            **(self.mps.environ(fence_bytes, self._config.mps_thread_percentage) if self.mps and on_gpu else {}),
            **self._config.env,
            WORKER_VARIABLE: self._mark(replica),
        }
        free_before = measure.free_bytes(replica.device)
        try:
            child = Child("orch_worker", [self._pages_fd], environ)
        except OSError as err:  # no descriptor, process or memory to be had: a death like others, tried again later
            page.close()
            death = Death(Exit.BUG, message=f"could not be started: {err.strerror}")
            replica.died(death, self._clock(), is_last=not self.in_state(State.READY), jitter=random.random())
            return
        cores = self.cores.get(replica.id)
        if cores:
            os.sched_setaffinity(child.pid, cores)  # before it has more than one thread
        lines = Lines(child.output.read, lambda line: self._owner.printed(replica.id, line))
        self.running[replica.id] = Running(child, page, lines, self._clock(), free_before, fence_bytes=fence_bytes)
        self._reactor.add_lines(child.output, lines)
        self._reactor.add(child.link, lambda: self._read(replica))
        self._reactor.add(child.pidfd, lambda: self._died(replica))
        child.link.send(
            spec={
                **self._worker_spec,
                "replica": replica.id,
                "generation": replica.generation,
                "slot": replica.slot,
                "device": "cuda:0" if on_gpu else "cpu",
            }
        )

    def _mark(self, replica: Replica) -> str:
        return f"{self._environ[INSTANCE_VARIABLE]}.{replica.id}.{replica.generation}"

    def _read(self, replica: Replica) -> None:
        running = self.running.get(replica.id)
        if running is None:
            return
        now, before = self._clock(), replica.state
        for message in running.child.link.receive():
            match message.get("event"):
                case "loading":
                    self._perform(replica, replica.loading(now))
                case "ready" if not self._is_attached(replica, running):
                    running.message = "it is no client of the MPS server, and would run in turns with the others"
                    running.child.signal(signal.SIGKILL)
                case "ready":
                    self._measure(replica, running, message)
                    self._perform(replica, replica.ready(now))
                case "failed":
                    running.message = str(message.get("message"))
        if running.child.link.closed:
            self._reactor.remove(running.child.link)
        self._tell(replica, before)
        if before is not State.READY and replica.state is State.READY:
            self._owner.became_ready(replica)

    def _is_attached(self, replica: Replica, running: Running) -> bool:
        if self.mps is None or replica.device == measure.CPU:
            return True
        return self.mps.is_attached(running.child.pid)

    def _measure(self, replica: Replica, running: Running, facts: Message) -> None:
        running.load_s = self._clock() - running.started_at
        running.timeout_s = facts.get("timeout_s") or self._config.timeout_s
        running.footprint = measure.footprint_of(running.child.pid, replica.device, running.free_before, facts)
        if running.footprint is not None:
            self._footprints[replica.id] = running.footprint

    def _died(self, replica: Replica) -> None:
        running = self.running[replica.id]
        self._read(replica)  # its last words
        code = running.child.reap()
        kill_marked(WORKER_VARIABLE, self._mark(replica))
        running.lines.drain()
        for fileobj in (running.child.link, running.child.output, running.child.pidfd):
            self._reactor.remove(fileobj)
        running.child.close()
        del self.running[replica.id]
        tickets = running.page.running()
        answered = running.page.batch_number - bool(tickets) > 0
        running.page.close()
        before = replica.state
        if code == Exit.DEVICE_LOST and not running.elsewhere and self.mps is not None and self.mps.has_fault():
            running.elsewhere = "a fault on the GPU, which MPS reports to all of its clients"
            self.sacrifice(replica.device, running.elsewhere)
        is_last = not [other for other in self.in_state(State.READY) if other is not replica]
        death = Death(code, answered=answered, hung=running.hung, message=running.message, elsewhere=running.elsewhere)
        blame = replica.died(death, self._clock(), is_last=is_last, jitter=random.random())
        self._owner.lost(replica, blame, tickets)
        self._tell(replica, before)
        self._forget_stopped()
        self._owner.changed()

    def _forget_stopped(self) -> None:
        for replica in self.in_state(State.STOPPED):
            del self.replicas[replica.id]
            self._footprints.pop(replica.id, None)
            self._told.pop(replica.id, None)

    def _tell(self, replica: Replica, before: State) -> None:
        """One line for every change of state, here and nowhere else."""
        if replica.state in (before, self._told.get(replica.id)):
            return
        self._told[replica.id] = replica.state
        if replica.state is State.STARTING:  # says nothing that LOADING will not say
            return
        running = self.running.get(replica.id)
        data: dict[str, Any] = {
            "state": str(replica.state),
            "device": self.device_names.get(replica.device, replica.device),
            "restarts": replica.restarts,
            "footprint_bytes": self.footprint_bytes(replica.id),
            "load_s": running.load_s if running else None,
        }
        text = f"{replica.id} {replica.state}: {replica.reason}"
        if replica.state is State.BACKOFF:
            text += f"; starts again in {max(0.0, replica.start_at - self._clock()):.1f} s"
        if replica.state is State.QUARANTINED:
            text += f"; `orch restart {replica.id} --name {self._config.name}` tries again"
        self._owner.report(Event("replica", text, replica.id, data))

    def footprint_bytes(self, replica_id: str) -> int | None:
        """Bytes of the device, or of the host's memory for a replica on the CPU."""
        footprint = self._footprints.get(replica_id)
        return None if footprint is None else footprint.device_bytes or footprint.host_bytes

    def footprint(self, replica_id: str) -> Footprint | None:
        """What was measured when it became READY."""
        return self._footprints.get(replica_id)

    def largest_footprint(self) -> Footprint | None:
        """What to plan with: the most that any of them costs."""
        return max(self._footprints.values(), key=lambda each: (each.device_bytes, each.host_bytes or 0), default=None)

    @property
    def pids(self) -> dict[str, frozenset[int]]:
        """Worker processes by device."""
        found: dict[str, set[int]] = {}
        for replica_id, running in self.running.items():
            found.setdefault(self.replicas[replica_id].device, set()).add(running.child.pid)
        return {device: frozenset(pids) for device, pids in found.items()}

    @property
    def all_gone(self) -> bool:
        """No process is left."""
        return not self.running and not self.in_state(*ALIVE)
