"""The replicas and their processes: carries out what each replica's machine decides."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from orch.config import Config
from orch.errors import Exit
from orch.link import Message
from orch.page import Phase
from orch.planning.footprint import Footprint, after_out_of_memory
from orch.supervising import liveness, measure
from orch.supervising.events import Event
from orch.supervising.launch import Launcher, Running, fence_of, pin
from orch.supervising.mps import Mps
from orch.supervising.output import Lines
from orch.supervising.process import WORKER_VARIABLE, kill_all, kill_marked, session
from orch.supervising.reactor import Reactor
from orch.supervising.replica import ALIVE, Action, Blame, Death, Replica, State
from orch.supervising.turns import Turn, turns

# Memory of a process that has just died may be freed late: so long a replica waits for room, looking this often,
# before the plan is made anew.
ROOM_WAIT_S, ROOM_POLL_S = 10.0, 0.2
SHOWN_S = 0.05  # what is shorter is shown as no time


class Owner(Protocol):
    """What a fleet tells its supervisor."""

    def report(self, event: Event) -> None:
        """Something that a person may want to know."""

    def printed(self, name: str, line: str) -> None:
        """A child has printed a line."""

    def became_ready(self, replica: Replica) -> None:
        """A replica opens for work; its footprint is measured."""

    def cost_on(self, device: str) -> Footprint | None:
        """What a replica is planned to cost there; None: not measured yet."""

    def ran_out(self, replica: Replica, cost: Footprint | None) -> None:
        """A replica ran out of memory while loading. cost: what to plan with from now on; None: as before."""

    def no_room(self, replica: Replica, free_bytes: int | None) -> None:
        """A replica has waited for ROOM_WAIT_S, and its device still has less free than it is planned to cost."""

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
        launcher: Launcher,
        reactor: Reactor,
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self.launcher = launcher
        self._reactor, self._owner, self._clock = reactor, owner, clock
        self.mps: Mps | None = None
        self.device_names: Mapping[str, str] = {}
        self.weights: Mapping[str, float] = {}  # by device
        self.starting_allowed = True
        self._next_look = 0.0
        self._short_since: float | None = None  # replicas wait for nothing but memory
        self.replicas: dict[str, Replica] = {}
        self.running: dict[str, Running] = {}
        self.declared: Message = {}  # what the model said of itself when a replica last became READY
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
        """The balancer cannot reach a worker that lives: only a new one can serve, and one that leaves has left."""
        running, replica = self.running.get(replica_id), self.replicas.get(replica_id)
        if running is None or replica is None or replica.generation != generation:
            return
        if replica.state is State.DRAINING:  # as does one that hangs up long before its process has let go of a GPU
            self.drained(replica_id, generation)
        else:
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
                "weight": self.weights.get(self.replicas[replica_id].device, 1.0),
            }
            for replica_id, running in self.running.items()
        ]

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Deadlines, hangs, and whose turn to load it is."""
        for replica in list(self.replicas.values()):
            self._perform(replica, replica.tick(now))
        if now >= self._next_look:
            self._look_for_hangs(now)
            if self.in_state(State.READY):
                self._owner.wants_loads()
        if self.starting_allowed:
            self._start_waiting(now)

    def _start_waiting(self, now: float) -> None:
        falling = {self.replicas[each].device for each, running in self.running.items() if running.elsewhere}
        waiting = [
            self._turn(replica)
            for replica in self.replicas.values()
            if replica.may_start(now) and replica.device not in falling  # the server takes nobody until all are gone
        ]
        loading = [self._turn(replica) for replica in self.in_state(State.STARTING, State.LOADING)]
        chosen = turns(waiting, loading, measure.free_bytes, parallelism=self._config.load_parallelism)
        for replica_id in chosen.start:
            replica = self.replicas[replica_id]
            self._perform(replica, replica.start(now))
            self._tell(replica, State.STARTING)
        if not chosen.short or chosen.start or loading:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        elif now - self._short_since >= ROOM_WAIT_S:
            self._short_since = now
            replica = self.replicas[chosen.short[0]]
            self._owner.no_room(replica, measure.free_bytes(replica.device))

    def _turn(self, replica: Replica) -> Turn:
        cost = self._owner.cost_on(replica.device)
        return Turn(replica.id, replica.device, cost.device_bytes if cost else None, replica.id in self._footprints)

    def next_deadline(self) -> float | None:
        """When `tick` has something to do; a replica that waits for its turn does so without a clock."""
        loads = bool(self.in_state(State.STARTING, State.LOADING))
        times = [
            at
            for replica in self.replicas.values()
            if (at := replica.next_deadline()) is not None and not (replica.state is State.BACKOFF and loads)
        ]
        if self.in_state(State.READY, State.DRAINING):
            times.append(self._next_look)
        if self._short_since is not None:
            times.append(self._clock() + ROOM_POLL_S)
        return min(times, default=None)

    def _look_for_hangs(self, now: float) -> None:
        left_s = []
        for replica_id, running in self.running.items():
            age_s = now - running.page.progress_at_ns / 1e9 if running.page.phase is Phase.RUNNING else 0.0
            why = liveness.hung(running.timeout_s, age_s)
            if why is not None:
                self._give_up(replica_id, running, why)
            elif running.timeout_s:
                left_s.append(running.timeout_s - age_s)
        self._next_look = now + liveness.look_s(left_s)

    def _look_within(self, seconds: float) -> None:
        self._next_look = min(self._next_look, self._clock() + liveness.look_s([seconds]))

    def look_for_stalls(self, loads: Mapping[str, Mapping[str, float]]) -> None:
        """A worker that has requests and begins none of them: stopped, or stuck outside of the model's batches."""
        for replica_id, running in self.running.items():
            if running.page.phase is Phase.IDLE and running.timeout_s:
                busy_s = loads.get(replica_id, {}).get("busy_s", 0.0)
                why = liveness.stalled(running.timeout_s, busy_s)
                if why is not None:
                    self._give_up(replica_id, running, why)
                else:
                    self._look_within(running.timeout_s - busy_s)

    def _give_up(self, replica_id: str, running: Running, why: str) -> None:
        if not running.hung:
            running.hung = True
            text = f"{replica_id}: {why}; killed"
            self._owner.report(Event("warning", text, replica_id))
            self._kill(self.replicas[replica_id], running)

    # --- processes -----------------------------------------------------------------------------------------------

    def _perform(self, replica: Replica, actions: list[Action]) -> None:
        running = self.running.get(replica.id)
        for action in actions:
            if action is Action.SPAWN:
                self._spawn(replica)
            elif action is Action.TERMINATE and running is not None:
                running.child.signal(signal.SIGTERM)
            elif action is Action.KILL and running is not None:
                self._kill(replica, running)
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

    def _kill(self, replica: Replica, running: Running) -> None:
        if self.mps is not None:
            self.mps.terminate_client(self.family(replica.id, anew=True))
        running.child.signal(signal.SIGKILL)

    def sacrifice(self, device: str, why: str) -> None:
        """A fault has taken every client of a GPU along: end them all, so that the server recovers."""
        for replica_id, running in self.running.items():
            if self.replicas[replica_id].device == device and not running.elsewhere:
                running.elsewhere = why
                running.child.signal(signal.SIGKILL)

    def _spawn(self, replica: Replica) -> None:
        before = measure.look(replica.device, self.pids.get(replica.device, frozenset()))
        fence_bytes = None
        if self.mps is not None and replica.device != measure.CPU:
            fence_bytes = fence_of(self._owner.cost_on(replica.device))
        page = None
        try:
            page = self.launcher.page(replica)
            child = self.launcher.start(replica, self.mps, fence_bytes)
        except OSError as err:  # no descriptor, process or memory to be had: a death like others, tried again later
            if page is not None:
                page.close()
            death = Death(Exit.BUG, message=f"could not be started: {err.strerror}")
            replica.died(death, self._clock(), is_last=not self.in_state(State.READY), jitter=random.random())
            self._told.pop(replica.id, None)  # each time is news
            return
        if told := self.launcher.told():
            self._owner.report(Event("warning", f"{replica.id} {told}", replica.id))
        lines = Lines(child.output.read, lambda line: self._owner.printed(replica.id, line))
        self.running[replica.id] = Running(child, page, lines, self._clock(), before, fence_bytes)
        self._moved(replica)
        self._reactor.add_lines(child.output, lines)
        self._reactor.add(child.link, lambda: self._read(replica))
        self._reactor.add(child.pidfd, lambda: self._died(replica))

    def _moved(self, replica: Replica) -> None:
        """What the device's free memory falls by while several load or end there tells nothing of one of them."""
        loading = [other for other in self.in_state(State.STARTING, State.LOADING) if other.device == replica.device]
        for other in loading:
            if (running := self.running.get(other.id)) and (other is not replica or len(loading) > 1):
                running.alone = False

    def _read(self, replica: Replica) -> None:
        running = self.running.get(replica.id)
        if running is None:
            return
        now, before = self._clock(), replica.state
        for message in running.child.link.receive():
            match message.get("event"):
                case "loading":
                    self._perform(replica, replica.loading(now))
                case "started":
                    running.server_pid = message["pid"]
                case "waiting":
                    running.note = str(message.get("message"))
                    if for_s := message.get("for_s"):
                        text = (
                            f"{replica.id} is not READY: for {for_s:g} s {running.note} (--health says what to ask for)"
                        )
                        self._owner.report(Event("loading", text, replica.id))
                case "ready" if not self._is_attached(replica, running):
                    running.message = "it is no client of the MPS server, and would run in turns with the others"
                    running.child.signal(signal.SIGKILL)
                case "ready":
                    self._measure(replica, running, message)
                    self.launcher.is_ready(replica)
                    self._perform(replica, replica.ready(now))
                case "ran_out":
                    running.held_bytes = message["held_bytes"]
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
        family = self.family(replica.id, anew=True)
        if self.launcher.runs_command and not measure.uses(replica.device, family, running.before):
            text = f"{replica.id} uses nothing of its GPU yet; if it never does, --device cpu runs it without"
            self._owner.report(Event("warning", text, replica.id))
            return True
        return self.mps.is_attached(family)

    def _measure(self, replica: Replica, running: Running, facts: Message) -> None:
        self.declared = facts
        running.load_s = self._clock() - running.started_at
        running.timeout_s = facts.get("timeout_s") or self._config.timeout_s
        self._look_within(running.timeout_s)
        running.max_batch_size, running.batch_s = facts.get("max_batch_size", 1), facts.get("batch_s")
        ours = self.pids.get(replica.device, frozenset())
        running.footprint = measure.footprint_of(
            self.family(replica.id, anew=True), replica.device, running.before, ours, facts, alone=running.alone
        )
        if running.footprint is not None:
            self._footprints[replica.id] = running.footprint

    def _died(self, replica: Replica) -> None:
        running = self.running[replica.id]
        self._read(replica)  # its last words
        code = running.child.reap()
        kill_marked(WORKER_VARIABLE, self.launcher.mark(replica))
        if running.server_pid is not None:
            kill_all(session(running.server_pid))
        running.lines.drain()
        for fileobj in (running.child.link, running.child.output, running.child.pidfd):
            self._reactor.remove(fileobj)
        running.child.close()
        del self.running[replica.id]
        self._moved(replica)
        tickets = running.page.running()
        answered = running.page.batch_number - bool(tickets) > 0
        running.page.close()
        before = replica.state
        may_be_fault = code == Exit.DEVICE_LOST or (self.launcher.runs_command and code != Exit.OK)
        if may_be_fault and not running.elsewhere and self.mps is not None and self.mps.has_fault():
            running.elsewhere = "a fault on the GPU, which MPS reports to all of its clients"
            self.sacrifice(replica.device, running.elsewhere)
        is_last = not [other for other in self.in_state(State.READY) if other is not replica]
        death = Death(
            code,
            answered=answered,
            hung=running.hung,
            message=running.message,
            elsewhere=running.elsewhere,
            note=running.note,
        )
        blame = replica.died(death, self._clock(), is_last=is_last, jitter=random.random())
        self._owner.lost(replica, blame, tickets)
        if replica.id not in self.replicas:  # the owner has no use for it any more
            self._owner.changed()
            return
        self._tell(replica, before)
        if code == Exit.OUT_OF_MEMORY and replica.ready_at is None and before in (State.STARTING, State.LOADING):
            self._owner.ran_out(replica, self._cost_after(replica, running))
        self._forget_stopped()
        self._owner.changed()

    def _cost_after(self, replica: Replica, running: Running) -> Footprint | None:
        known = self._owner.cost_on(replica.device)
        free = running.before.free_bytes if running.before else None
        held = running.held_bytes if running.alone else None  # else it may be what the neighbours took
        return after_out_of_memory(known, held, running.fence_bytes, free) if known else None

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
            wait_s = replica.start_at - self._clock()
            text += f"; starts again in {wait_s:.1f} s" if wait_s >= SHOWN_S else "; starts again now"
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

    def pin(self, cores: Mapping[str, tuple[int, ...]]) -> None:
        """Cores by replica; those that run move to theirs now."""
        changed = {each: own for each, own in cores.items() if own != self.launcher.cores.get(each)}
        self.launcher.cores = cores
        for replica_id, own in changed.items():
            for pid in self.family(replica_id) if replica_id in self.running else ():
                pin(pid, own)

    def served(self, replica: Replica) -> bool:
        """Whether it was READY before, now or in an earlier life."""
        return replica.id in self._footprints

    def speeds(self) -> dict[str, list[float]]:
        """Rows a second that replicas ran at warm-up, by device."""
        found: dict[str, list[float]] = {}
        for replica_id, running in self.running.items():
            if running.batch_s:
                rate = running.max_batch_size / running.batch_s
                found.setdefault(self.replicas[replica_id].device, []).append(rate)
        return found

    @property
    def pids(self) -> dict[str, frozenset[int]]:
        """Processes of replicas by device."""
        found: dict[str, set[int]] = {}
        for replica_id in self.running:
            found.setdefault(self.replicas[replica_id].device, set()).update(self.family(replica_id))
        return {device: frozenset(pids) for device, pids in found.items()}

    def family(self, replica_id: str, *, anew: bool = False) -> frozenset[int]:
        """Processes of a replica that runs. anew: now, not a second ago."""
        return self.launcher.family(self.replicas[replica_id], self.running[replica_id], anew=anew)

    @property
    def all_gone(self) -> bool:
        """No process is left."""
        return not self.running and not self.in_state(*ALIVE)
