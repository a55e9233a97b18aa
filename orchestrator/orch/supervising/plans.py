"""The plan in force, and the readings it is made from."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from orch import runtime
from orch.config import Config
from orch.errors import DoesNotFit
from orch.planning import gpu, planner, remembered
from orch.planning.cards import Gpu
from orch.planning.cores import share_cores
from orch.planning.devices import gpus_for
from orch.planning.footprint import Footprint, How, declared, explain
from orch.planning.host import read_host
from orch.planning.planner import Limit, Plan, PlanRequest, Wanted
from orch.supervising.events import Event
from orch.supervising.measure import CPU


class Plans:
    """Owns the plan, and what a replica costs on each kind of card. The first is made before anything is measured.

    read: the GPUs to use as they are now. file: where footprints are remembered, by default beside the logs.

    Raises:
        ConfigError, DoesNotFit: as the planner says.
    """

    def __init__(
        self, config: Config, read: Callable[[Config], tuple[Gpu, ...]] = gpus_for, file: Path | None = None
    ) -> None:
        self._config, self._read = config, read
        self._max_clients: int | None = None  # of one GPU's MPS server, where there is one
        self.gpus = read(config)
        # What people call the devices, by what they are known by: {"GPU-5d2f...": "cuda:0"}.
        self.gpu_names = {each.uuid: f"cuda:{each.index}" for each in self.gpus}
        self._kinds = {each.uuid: each.name for each in self.gpus}
        self._file = file or runtime.log_dir(config.name).parent / "footprints.json"
        self._keys = {kind: self._key_of(kind) for kind in set(self._kinds.values()) or {CPU}}
        # By kind: what earlier runs measured, and what is planned with.
        self.remembered = {
            kind: found for kind, key in self._keys.items() if key and (found := remembered.recall(self._file, key))
        }
        self.costs: dict[str, Footprint] = dict(self.remembered)
        self._seen: set[str] = set()  # kinds that this run has measured
        try:
            self.plan = self._make(config.replicas, {})
        except DoesNotFit:  # what an earlier run measured must not refuse what this one has not tried
            if not self.remembered:
                raise
            self.remembered, self.costs = {}, {}
            self.plan = self._make(config.replicas, {})

    def share(self, max_clients: int | None) -> None:
        """Before anything runs: whether the replicas of a GPU share an MPS server, which takes so many at most."""
        if max_clients is not None:
            self._max_clients = max_clients
            self.plan = self._make(self._config.replicas, {})

    def kind_of(self, device: str) -> str:
        """The kind of card; a footprint and a speed belong to one."""
        return self._kinds.get(device, CPU)

    def cost_on(self, device: str) -> Footprint | None:
        """What a replica is planned to cost there; None: not known yet."""
        return self._declared() or self.costs.get(self.kind_of(device))

    def learn(self, device: str, measured: Footprint) -> list[Event]:
        """A replica has shown what it costs there. Returns what a person should know of it."""
        kind = self.kind_of(device)
        planned, first = self.costs.get(kind), kind not in self._seen
        self._seen.add(kind)
        if first:
            self.costs[kind] = measured
            self._remember(kind)
            if planned is not None and not remembered.agrees(planned, measured):
                said = f"a replica costs {explain(measured)}; remembered was {explain(planned)}: planned anew"
                return [Event("warning", said)]
        elif planned is not None and planned.how is How.OUT_OF_MEMORY:  # that was a guess
            self.costs[kind] = measured
        elif planned is not None and measured.device_bytes > planned.device_bytes:
            self.costs[kind] = measured
            if not remembered.agrees(planned, measured):
                self._remember(kind)
                said = f"a replica costs {explain(measured)}; planned was {explain(planned)}: planned anew"
                return [Event("warning", said)]
        return []

    def expect(self, device: str, cost: Footprint) -> None:
        """A replica was seen to need more than is planned with."""
        self.costs[self.kind_of(device)] = cost

    def cores(self, replicas: Sequence[tuple[str, str]]) -> Mapping[str, tuple[int, ...]]:
        """CPU cores by replica, of all that there are to be, each with its device; empty where nothing is pinned."""
        if self._config.pin_cpus == "off" or not self.gpus or read_host().cores < len(replicas):
            return {}
        near = {each.uuid: each.cpu_affinity for each in self.gpus}
        return share_cores(sorted(os.sched_getaffinity(0)), near, replicas) or {}

    def renew(self, wanted: Wanted, pids: Mapping[str, frozenset[int]]) -> Plan:
        """Plan again with what is free now. pids: our own workers by device, whose memory is not somebody else's.

        Raises:
            DoesNotFit: not as many as are wanted. The plan stays.
        """
        self.gpus = self._read(self._config)
        self.plan = self._make(wanted, pids)
        return self.plan

    def keep(self, devices: Sequence[str], limit: Limit, because: tuple[str, ...]) -> None:
        """Settle for the replicas that there are, one entry for the device of each, as experience has shown."""
        placement = tuple(Counter(device for device in devices if device != CPU).items())
        self.plan = dataclasses.replace(
            self.plan, total=len(devices), placement=placement, limit=limit, because=because
        )

    def devices(self) -> list[str]:
        """One entry for each planned replica: its GPU's UUID, or "cpu"."""
        if not self.plan.placement:
            return [CPU] * self.plan.total
        return [uuid for uuid, count in self.plan.placement for _ in range(count)]

    def event(self) -> Event:
        """The plan for people."""
        plan = self.plan
        is_probe = plan.limit is Limit.PROBE
        asked = self._config.replicas
        total = (asked if isinstance(asked, int) else None) if is_probe else plan.total
        text = f"plan: {plan.total} replica{'s' if plan.total != 1 else ''} (limit: {plan.limit})"
        return Event("plan", text, data={"total": total, "limit": str(plan.limit), "because": plan.because})

    def _declared(self) -> Footprint | None:
        """What the user says that a replica costs, with the host's memory as measured."""
        if self._config.vram_per_replica_bytes is None or not self._kinds:
            return None
        host_bytes = max((each.host_bytes or 0 for each in self.costs.values()), default=0)
        return declared(self._config.vram_per_replica_bytes, host_bytes or None)

    def _make(self, wanted: Wanted, pids: Mapping[str, frozenset[int]]) -> Plan:
        declared_cost = self._declared()
        footprint = declared_cost if self._kinds else self.costs.get(CPU)
        return planner.plan(
            PlanRequest(
                host=read_host(),
                gpus=self.gpus,
                footprint=footprint,
                measured={} if declared_cost else self.costs,
                wanted=wanted,
                gpu_utilization=self._config.gpu_utilization,
                max_clients_per_gpu=self._max_clients,
                ours_bytes={each.uuid: self._held_by_us(each, pids) for each in self.gpus},
            )
        )

    def _held_by_us(self, card: Gpu, pids: Mapping[str, frozenset[int]]) -> int:
        cost = self.cost_on(card.uuid)
        return planner.held_by_us(card, pids.get(card.uuid, frozenset()), cost.device_bytes) if cost else 0

    def _key_of(self, kind: str) -> str | None:
        """What a footprint depends on; None: nothing can be remembered of this target."""
        config = self._config
        if config.command:  # of which nobody knows what files it reads
            return None
        return remembered.key_of(
            config.target,
            settings=config.set,
            environ=config.env,
            max_batch_size=config.max_batch_size,
            gpu_name=None if kind == CPU else kind,
            driver=None if kind == CPU else gpu.driver_version(),
        )

    def _remember(self, kind: str) -> None:
        if key := self._keys[kind]:
            remembered.remember(self._file, key, self.costs[kind])
