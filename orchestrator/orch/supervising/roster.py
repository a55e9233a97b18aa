"""Which replicas should exist: those of the plan, made anew whenever more is known, or as many as are found to pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from orch.config import Config
from orch.errors import ConfigError, DoesNotFit, OrchError
from orch.planning.footprint import Footprint
from orch.planning.planner import Limit
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
        self.search: Search | None = None
        self.rolling = Rolling(fleet, owner.report)
        self.ever_ready = False
        self.served = False  # every planned replica has had its turn
        self.waits_for_gpus = False
        self._told_short: set[str] = set()
        self._all_fit = plans.plan  # of a search: the plan for as many as fit
        fleet.launcher.threads = plans.plan.threads_per_replica
        fleet.starting_allowed = False  # until the balancer listens and the GPUs are ours to plan on
        fleet.add(plans.devices()[0])  # replica 0, by which the others are planned

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
        return {
            "state": "measuring",
            "because": [f"{len(self._fleet.staying())} of at most {self.search.most} replicas"],
        }

    def tick(self, now: float) -> None:
        """The next restart; a measurement that does not end."""
        self.rolling.tick()
        if self.search is not None:
            self.search.tick(now)

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

    # --- what happens --------------------------------------------------------------------------------------------

    def allow_starts(self) -> None:
        """The balancer listens: begin, as soon as no other instance starts on the same GPUs."""
        if self._fleet.starting_allowed:
            return
        if self._locks.acquire():
            self._fleet.starting_allowed, self.waits_for_gpus = True, False
        elif not self.waits_for_gpus:
            self.waits_for_gpus = True
            text = "another instance is starting on the same GPU; waiting until it is done"
            self._owner.report(Event("warning", text))

    def became_ready(self, replica: Replica) -> None:
        """Plan the others from what it measured: after replica 0, and whenever a replica shows something new."""
        footprint = self._fleet.footprint(replica.id)
        news = self._plans.learn(replica.device, footprint) if footprint is not None else []
        for event in news:
            self._owner.report(event)
        self._told_short.discard(replica.id)
        self._weigh()
        if not self.ever_ready:
            self.ever_ready = True
            try:
                self._plan_all()
            except DoesNotFit as err:
                self._owner.failed(err)
        elif self._plans.plan.limit is Limit.PROBE:
            self._plan_all()
        elif news:
            self._replan(f"{replica.id} is larger than planned")
        self.check()

    def lost(self, replica: Replica) -> None:
        """A replica died: what is measured meanwhile says nothing."""
        self.disturbed(f"{replica.id} died")

    def disturbed(self, why: str) -> None:
        """What is being measured is void."""
        if self.search is not None:
            self.search.disturbed(why)
            self.check()

    def ran_out(self, replica: Replica, cost: Footprint | None) -> None:
        """A replica ran out of memory while loading: plan for what it needs, and keep what runs."""
        if cost is not None:
            self._plans.expect(replica.device, cost)
        if not self.ever_ready or self._fleet.served(replica):
            return
        why = f"{replica.id} ran out of memory while loading"
        if self.search is not None:
            self._fleet.stop(replica, comes_back=False)
            self.search.cannot(why)
            return
        self._replan(why)
        if replica.state is State.QUARANTINED:  # it had its second try
            self._shrink(len(self._fleet.staying()) - 1, f"{why}, again")

    def no_room(self, replica: Replica, free_bytes: int | None) -> None:
        """A replica waits for memory that does not come: a new one is left out, one that has served goes on waiting."""
        cost = self._plans.cost_on(replica.device)
        have, need = format_size(free_bytes or 0), format_size(cost.device_bytes if cost else 0)
        why = f"{replica.id} needs {need}, and {self._plans.gpu_names[replica.device]} has {have} free"
        if not self._fleet.served(replica):
            self._replan(why)
        if replica.id in self._fleet.replicas and replica.id not in self._told_short:
            self._told_short.add(replica.id)
            self._owner.report(Event("warning", f"{why}: it waits"))

    def check(self) -> None:
        """Say once, after each plan, that every replica has had its turn."""
        fleet = self._fleet
        ready, given_up = fleet.in_state(State.READY), fleet.in_state(State.QUARANTINED)
        if self.served or not ready or len(ready) + len(given_up) < len(fleet.replicas):
            return
        if self.search is not None and given_up:
            self.search.cannot(f"{given_up[0].id} does not start: {given_up[0].reason}")
            return
        if self.search is not None:
            first = fleet.running[ready[0].id]
            self.search.settled(len(ready), first.max_batch_size, first.batch_s or 0.0)
            return
        if self._plans.plan.limit is Limit.PROBE and not given_up:
            return
        self.served = True
        self._locks.release()
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
        have = len(self._fleet.staying())
        if wanted > have:
            if not self._locks.acquire():  # let go again when every replica has had its turn
                raise ConfigError("another instance is starting on the same GPU; scale again when it is READY")
            try:
                self._set_count(wanted)
            except OrchError:
                if self.served:
                    self._locks.release()
                raise
            self.served = False
        elif wanted < have:
            self._set_count(wanted)
        return have

    def wants(self, count: int) -> None:
        """The search wants to see so many."""
        try:
            self._set_count(count)
        except DoesNotFit as err:
            if self.search is not None:
                self.search.cannot(str(err))
            return
        self.check()

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
        all_fit = self._all_fit
        self._keep(Limit.GAIN if count < all_fit.total else all_fit.limit, (*all_fit.because, *because))
        self._owner.report(self._plans.event())
        self.check()

    def _plan_all(self) -> None:
        """Plan with what was measured, and add what is missing, or find out how many of that pay."""
        plan = self._plans.renew(self._plans.wanted, self._fleet.pids)
        if self._config.replicas == "best" and self.search is None and plan.limit is not Limit.PROBE:
            self._owner.report(self._plans.event())
            self.search = self._new_search(self)
            self.search.most, self._all_fit = plan.total, plan
            self._plans.renew(len(self._fleet.staying()), self._fleet.pids)
            return
        self._carry_out()

    def _set_count(self, count: int) -> None:
        self._plans.renew(count, self._fleet.pids)
        self._leave_out(count)
        self._carry_out()

    def _carry_out(self) -> None:
        """Add the replicas that the plan has and that are missing."""
        fleet, plans = self._fleet, self._plans
        self._owner.report(plans.event())
        fleet.launcher.threads = plans.plan.threads_per_replica
        fleet.launcher.cores = plans.cores()
        missing = plans.devices()
        staying = fleet.staying()
        for existing in staying:
            if existing.device in missing:
                missing.remove(existing.device)
        for device in missing[: max(0, plans.plan.total - len(staying))]:
            fleet.add(device)

    def _leave_out(self, count: int) -> None:
        """The youngest leave first; those that do not run go before those that do."""
        staying = self._fleet.staying()
        order = sorted(staying, key=lambda each: (each.state is State.READY, -each.slot))
        for replica in order[: max(0, len(staying) - count)]:
            self._fleet.stop(replica, comes_back=False)

    def _replan(self, why: str) -> None:
        """Plan with what is known and free now. Replicas that have not run yet may be left out; what runs stays."""
        plans, fleet = self._plans, self._fleet
        try:
            total = plans.renew(plans.wanted, fleet.pids).total
        except DoesNotFit:
            try:
                total = plans.renew("auto", fleet.pids).total
            except DoesNotFit:
                total = 0
        if total < len(fleet.staying()):
            self._shrink(total, why)
        else:
            self._carry_out()

    def _shrink(self, total: int, why: str) -> None:
        staying = self._fleet.staying()
        new = [each for each in staying if each.state not in ALIVE and not self._fleet.served(each)]
        for replica in sorted(new, key=lambda each: -each.slot)[: len(staying) - total]:
            self._fleet.stop(replica, comes_back=False)
        kept = self._fleet.staying()
        if len(kept) < len(staying):
            self._keep(Limit.MEMORY, (*self._plans.plan.because, f"{why}: {len(kept)} of {len(staying)} are kept"))
            self._owner.report(Event("warning", f"{why}: {len(staying)} replicas were planned, {len(kept)} are kept"))
            self._owner.report(self._plans.event())

    def _keep(self, limit: Limit, because: tuple[str, ...]) -> None:
        self._plans.keep([each.device for each in self._fleet.staying()], limit, because)

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
