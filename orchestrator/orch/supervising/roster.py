"""Which replicas should exist: those of the plan, made anew whenever more is known, or as many as are found to pay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from orch.config import Config
from orch.errors import ConfigError, DoesNotFit, OrchError
from orch.planning.footprint import Footprint
from orch.planning.planner import Limit, Wanted
from orch.planning.sizes import format_size
from orch.planning.weights import weights
from orch.supervising.events import Event
from orch.supervising.fleet import Fleet
from orch.supervising.gpulock import GpuLocks
from orch.supervising.plans import Plans
from orch.supervising.replica import ALIVE, Replica, State
from orch.supervising.rolling import Rolling
from orch.supervising.search import Search


class Owner(Protocol):
    """What the roster tells its supervisor."""

    def report(self, event: Event) -> None:
        """Something that a person may want to know."""

    def printed(self, name: str, line: str) -> None:
        """The process that makes the load of a search has printed a line."""

    def failed(self, error: OrchError) -> None:
        """The instance cannot start."""

    def changed(self) -> None:
        """The set of workers, or what is known of one, is another."""

    def all_served(self, num_ready: int) -> None:
        """Every planned replica has had its turn."""


class Roster:
    """Owns the set of replicas; the fleet owns their processes. search: not None while the count is being found."""

    def __init__(
        self,
        config: Config,
        plans: Plans,
        fleet: Fleet,
        locks: GpuLocks,
        owner: Owner,
        new_search: Callable[[Roster], Search],
    ) -> None:
        self._config, self._plans, self._fleet, self._locks, self._owner = config, plans, fleet, locks, owner
        self._new_search = new_search
        self._wanted: Wanted = config.replicas
        self._finds = config.replicas == "best"  # as long as the count is still to be found
        self.search: Search | None = None
        self._all_fit = plans.plan  # of a search: the plan for as many as fit
        self._ended_by: str | None = None  # why a search could not go on
        self.rolling = Rolling(fleet, owner.report)
        self.ever_ready = False
        self.served = False  # every planned replica has had its turn
        self.waits_for_gpus = False
        self._told_short: set[str] = set()
        fleet.weights = dict.fromkeys(plans.gpu_names, 1.0)
        fleet.launcher.threads = plans.plan.threads_per_replica
        fleet.starting_allowed = False  # until the balancer listens and the GPUs are ours to plan on
        fleet.add(plans.devices()[0])  # replica 0, by which the others are planned

    # --- facts ---------------------------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether every replica serves, and none is about to leave or to come."""
        ready = self._fleet.in_state(State.READY)
        return self.served and self.rolling.idle and len(ready) == len(self._fleet.replicas)

    @property
    def search_facts(self) -> dict[str, Any] | None:
        """Of a search that goes on."""
        if self.search is None:
            return None
        return {"state": "measuring", "because": [f"{len(self._staying)} of at most {self.search.most} replicas"]}

    @property
    def _staying(self) -> list[Replica]:
        return self._fleet.staying()

    # --- time ----------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Begin, as soon as no other instance starts on the same GPUs; then whatever has become due."""
        self._allow_starts()
        if self.search is not None:
            self.search.tick(now)
        else:
            self.rolling.tick()
        moving = self._fleet.in_state(State.PLANNED, State.STARTING, State.LOADING, State.DRAINING)
        if self.served and self.rolling.idle and not moving:
            self._locks.release()

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return None if self.search is None else self.search.next_deadline()

    def close(self) -> None:
        """Nothing is added any more."""
        self._fleet.starting_allowed = False
        self.end_search()

    def end_search(self) -> None:
        """Where it is: the instance is stopping."""
        if self.search is not None:
            self.search.close()
            self.search = None

    def _allow_starts(self) -> None:
        if self._fleet.starting_allowed:
            return
        if self._locks.acquire():
            self._fleet.starting_allowed, self.waits_for_gpus = True, False
        elif not self.waits_for_gpus:
            self.waits_for_gpus = True
            text = "another instance is starting on the same GPU; waiting until it is done"
            self._owner.report(Event("warning", text))

    # --- what happens --------------------------------------------------------------------------------------------

    def became_ready(self, replica: Replica) -> None:
        """Plan the others from what it measured: after replica 0, and whenever a replica shows something new."""
        footprint = self._fleet.footprint(replica.id)
        news = self._plans.learn(replica.device, footprint) if footprint is not None else []
        for event in news:
            self._owner.report(event)
        self._told_short.discard(replica.id)
        first, self.ever_ready = not self.ever_ready, True
        if self._plans.cost_on(replica.device) is None:
            why = f"what {replica.id} costs on the GPU cannot be measured (--vram-per-replica declares it)"
            self._owner.report(Event("warning", f"{why}: no more replicas are added"))
            self._finds = False
            self._keep(Limit.MEMORY, (why,))
        elif first:
            try:
                self._plan()
            except DoesNotFit as err:
                self.ever_ready = False
                self._owner.failed(err)
        elif self._plans.plan.limit is Limit.PROBE:
            self._replan(f"{replica.id} was measured")
        elif news:
            self._replan(f"{replica.id} is larger than planned")
        self._weigh()

    def lost(self, replica: Replica) -> None:
        """A replica died: what is measured meanwhile says nothing."""
        self.disturbed(f"{replica.id} died")

    def disturbed(self, why: str) -> None:
        """What is being measured is void."""
        if self.search is not None:
            self.search.disturbed(why)

    def ran_out(self, replica: Replica, cost: Footprint | None) -> None:
        """A replica ran out of memory while loading: plan for what it needs, and keep what runs."""
        if cost is not None:
            self._plans.expect(replica.device, cost)
        if self.ever_ready and not self._fleet.served(replica):
            why = f"{replica.id} ran out of memory while loading"
            self._replan(why, replica)
            if replica.state is State.QUARANTINED:  # it had its second try
                self._shrink(len(self._staying) - 1, f"{why}, again", replica)

    def no_room(self, replica: Replica, free_bytes: int | None) -> None:
        """A replica waits for memory that does not come: a new one is left out, one that has served goes on waiting."""
        cost = self._plans.cost_on(replica.device)
        have, need = format_size(free_bytes or 0), format_size(cost.device_bytes if cost else 0)
        why = f"{replica.id} needs {need}, and {self._plans.gpu_names[replica.device]} has {have} free"
        if not self.ever_ready:
            self._owner.failed(DoesNotFit(f"{why}; free memory on the GPU, or choose another with --device"))
        elif not self._fleet.served(replica):
            self._replan(why, replica)
            if replica.id in self._fleet.replicas:  # by the sum it would fit, but the memory is not there
                self._shrink(len(self._staying) - 1, why, replica)
        elif replica.id not in self._told_short:
            self._told_short.add(replica.id)
            self._owner.report(Event("warning", f"{why}: it waits"))

    def check(self) -> None:
        """Whether all that is wanted runs: then measure it, or say once, after each plan, that it serves."""
        fleet = self._fleet
        ready, given_up = fleet.in_state(State.READY), fleet.in_state(State.QUARANTINED)
        if self.served or not self.ever_ready or not ready or len(ready) + len(given_up) < len(fleet.replicas):
            return
        if self.search is not None:
            if given_up:
                self._cannot(f"{given_up[0].id} does not start: {given_up[0].reason}")
            else:
                first = fleet.running[ready[0].id]
                self.search.settled(len(ready), first.max_batch_size, first.batch_s or 0.0)
            return
        self.served = True
        # Replica 0 ran before anybody knew what it costs: now it gets its fence like the others.
        self.rolling.ask(fleet.unfenced())
        self._owner.all_served(len(ready))

    # --- the count -----------------------------------------------------------------------------------------------

    def scale(self, wanted: int) -> int:
        """Run `wanted` replicas from now on. Returns how many there were.

        Raises:
            DoesNotFit: not as many fit.
            ConfigError: another instance plans on the same GPU just now.
        """
        have = len(self._staying)
        if wanted > have:
            if not self._locks.acquire():  # let go again when every replica has had its turn
                raise ConfigError("another instance is starting on the same GPU; scale again when it is READY")
            self._plans.renew(wanted, self._fleet.pids)
            self.served = False
            self._carry_out()
        elif wanted < have:
            self._leave_out(wanted)
            self._keep(Limit.ASKED, (*self._plans.plan.because, f"asked for: {wanted} of {have}"))
        self._wanted = wanted
        return have

    def wants(self, count: int) -> None:
        """The search wants to see so many."""
        try:
            self._plans.renew(count, self._fleet.pids)
        except DoesNotFit as err:
            self._cannot(str(err))
            return
        self._leave_out(count)
        self._carry_out()

    def unsearchable(self, error: ConfigError) -> None:
        """No load can be made of this model."""
        self._owner.failed(error)

    def report(self, event: Event) -> None:
        """Of the search."""
        self._owner.report(event)

    def printed(self, name: str, line: str) -> None:
        """Of the search's load."""
        self._owner.printed(name, line)

    def found(self, count: int, because: Sequence[str]) -> None:
        """The search is over."""
        self.end_search()
        self._leave_out(count)
        fits = self._all_fit
        limit = Limit.MEMORY if self._ended_by else Limit.GAIN if count < fits.total else fits.limit
        self._wanted = count
        self._keep(limit, (*fits.because, *because))
        self._owner.report(self._plans.event())

    def _cannot(self, why: str) -> None:
        if self.search is not None:
            self._ended_by = why
            self.search.cannot(why)

    def _plan(self) -> None:
        """Plan with what was measured; add what is missing, or find out how many of that pay.

        Raises:
            DoesNotFit: as the planner says.
        """
        plan = self._plans.renew(self._wanted, self._fleet.pids)
        if not self._finds:
            self._carry_out()
        elif plan.limit is Limit.PROBE:
            self._add([device for device in self._missing() if self._plans.cost_on(device) is None])
        else:
            self._finds = False
            self._owner.report(self._plans.event())
            self._all_fit = plan
            self.search = self._new_search(self)
            self.search.most = plan.total
            self.wants(1)

    def _carry_out(self) -> None:
        """Add the replicas that the plan has and that are missing."""
        if self.search is None:  # which tells its steps itself
            self._owner.report(self._plans.event())
        self._add(self._missing())

    def _missing(self) -> list[str]:
        """The devices of those replicas; no more than the plan's total lacks."""
        missing = self._plans.devices()
        for existing in self._staying:
            if existing.device in missing:
                missing.remove(existing.device)
        return missing[: max(0, self._plans.plan.total - len(self._staying))]

    def _add(self, devices: Sequence[str]) -> None:
        fleet = self._fleet
        fleet.launcher.threads = self._plans.plan.threads_per_replica
        for device in devices:
            fleet.add(device)
        fleet.pin(self._plans.cores([(each.id, each.device) for each in self._staying]))

    def _leave_out(self, count: int) -> None:
        """The youngest leave first; those that do not run go before those that do."""
        order = sorted(self._staying, key=lambda each: (each.state is State.READY, -each.slot))
        for replica in order[: max(0, len(self._staying) - count)]:
            self._fleet.stop(replica, comes_back=False)

    def _replan(self, why: str, culprit: Replica | None = None) -> None:
        """Plan with what is known and free now. Replicas that have not run yet may be left out; what runs stays."""
        plans, pids = self._plans, self._fleet.pids
        try:
            if plans.plan.limit is Limit.PROBE and self.search is None:
                self._plan()
                return
            total = plans.renew("best" if self.search is not None else self._wanted, pids).total
        except DoesNotFit as err:
            self._owner.report(Event("warning", f"{why}: {err}"))
            try:
                total = plans.renew("auto", pids).total
            except DoesNotFit:
                total = 0
        if self.search is not None:
            self.search.most = max(1, total)
        if total < len(self._staying) or (culprit is not None and self.search is not None):
            self._shrink(min(total, len(self._staying) - (culprit is not None)), why, culprit)
        elif not self.served and self.search is None:
            self._carry_out()
        if self.search is None and plans.plan.total != len(self._staying):
            self._keep(plans.plan.limit, plans.plan.because)

    def _shrink(self, total: int, why: str, culprit: Replica | None) -> None:
        """Leave out replicas that have never run, the one that is the reason first; what runs stays."""
        staying = self._staying
        placed = dict(self._plans.plan.placement)
        planned = Counter({device: placed.get(device, 0) for device in {each.device for each in staying}})
        over = Counter(each.device for each in staying) - planned
        new = [each for each in staying if each.state not in ALIVE and not self._fleet.served(each)]
        new.sort(
            key=lambda each: (
                each is not culprit,
                each.state is not State.QUARANTINED,
                not over[each.device],
                -each.slot,
            )
        )
        for replica in new[: len(staying) - total]:
            self._fleet.stop(replica, comes_back=False)
        kept = len(self._staying)
        if kept < len(staying):
            self._keep(Limit.MEMORY, (*self._plans.plan.because, f"{why}: {kept} of {len(staying)} are kept"))
            self._owner.report(Event("warning", f"{why}: of {len(staying)} replicas {kept} are kept"))
            self._owner.report(self._plans.event())
            self._cannot(why)

    def _keep(self, limit: Limit, because: tuple[str, ...]) -> None:
        self._plans.keep([each.device for each in self._staying], limit, because)

    def _weigh(self) -> None:
        """Unequal cards: each replica counts by the speed that its kind was measured to have."""
        speeds: dict[str, list[float]] = {}
        for device, found in self._fleet.speeds().items():
            speeds.setdefault(self._plans.kind_of(device), []).extend(found)
        kinds = weights(speeds)
        by_device = {uuid: kinds.get(self._plans.kind_of(uuid), 1.0) for uuid in self._plans.gpu_names}
        if by_device != self._fleet.weights:
            self._fleet.weights = by_device
            self._owner.changed()
