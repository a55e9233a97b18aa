"""The plan in force, and the readings it is made from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from orch import runtime
from orch.config import Config
from orch.errors import DoesNotFit
from orch.planning import gpu, planner, remembered
from orch.planning.cores import share_cores
from orch.planning.devices import gpus_for
from orch.planning.footprint import Footprint, declared, explain
from orch.planning.host import read_host
from orch.planning.planner import Limit, Plan, PlanRequest
from orch.supervising.events import Event
from orch.supervising.measure import CPU


class Plans:
    """Owns the plan. The first is made before anything is measured.

    Raises:
        ConfigError, DoesNotFit: as the planner says.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        # What people call the devices, by what they are known by: {"GPU-5d2f...": "cuda:0"}.
        self.gpu_names = {each.uuid: f"cuda:{each.index}" for each in gpus_for(config)}
        self.max_clients: int | None = None  # of one GPU's MPS server, where there is one
        self._file = runtime.log_dir(config.name).parent / "footprints.json"
        self._key = self._key_of()
        self.remembered = remembered.recall(self._file, self._key) if self._key else None
        try:
            self.plan = self._make(config.replicas, self.remembered, {})
        except DoesNotFit:  # what an earlier run measured must not refuse what this one has not tried
            if self.remembered is None:
                raise
            self.remembered = None
            self.plan = self._make(config.replicas, None, {})

    def _key_of(self) -> str | None:
        """What a footprint depends on; None: nothing can be remembered of this target."""
        config, gpus = self._config, gpus_for(self._config)
        if len({each.name for each in gpus}) > 1:
            return None  # a footprint belongs to one kind of card
        return remembered.key_of(
            config.target,
            settings=config.set,
            environ=config.env,
            max_batch_size=config.max_batch_size,
            gpu_name=gpus[0].name if gpus else None,
            driver=gpu.driver_version() if gpus else None,
        )

    def verify(self, measured: Footprint) -> Event | None:
        """Keep what replica 0 was found to cost; a warning if an earlier run found something else."""
        known, self.remembered = self.remembered, measured
        if self._key:
            remembered.remember(self._file, self._key, measured)
        if known is None or remembered.agrees(known, measured):
            return None
        return Event("warning", f"a replica costs {explain(measured)}; remembered was {explain(known)}: planned anew")

    def cores(self) -> Mapping[str, tuple[int, ...]]:
        """CPU cores by replica, of the whole plan; empty where nothing is pinned."""
        devices = self.devices()
        if self._config.pin_cpus == "off" or not self.plan.placement or read_host().cores < len(devices):
            return {}
        near = {each.uuid: each.cpu_affinity for each in gpus_for(self._config)}
        names = [(f"r{i}", device) for i, device in enumerate(devices)]
        return share_cores(sorted(os.sched_getaffinity(0)), near, names) or {}

    def renew(
        self, wanted: int | Literal["auto"], measured: Footprint | None, pids: Mapping[str, frozenset[int]]
    ) -> Plan:
        """Plan again with what is free now. pids: our own workers by device, whose memory is not somebody else's."""
        self.plan = self._make(wanted, measured, pids)
        return self.plan

    def _make(
        self, wanted: int | Literal["auto"], measured: Footprint | None, pids: Mapping[str, frozenset[int]]
    ) -> Plan:
        config, gpus = self._config, gpus_for(self._config)
        footprint = measured
        if config.vram_per_replica_bytes is not None and gpus:
            footprint = declared(config.vram_per_replica_bytes, measured.host_bytes if measured else None)
        ours = {}
        if footprint is not None:
            ours = {
                each.uuid: planner.held_by_us(each, pids.get(each.uuid, frozenset()), footprint.device_bytes)
                for each in gpus
            }
        return planner.plan(
            PlanRequest(
                host=read_host(),
                gpus=gpus,
                footprint=footprint,
                wanted=wanted,
                gpu_utilization=config.gpu_utilization,
                max_clients_per_gpu=self.max_clients,
                ours_bytes=ours,
            )
        )

    def devices(self) -> list[str]:
        """One entry for each planned replica: its GPU's UUID, or "cpu"."""
        if not self.plan.placement:
            return [CPU] * self.plan.total
        return [uuid for uuid, count in self.plan.placement for _ in range(count)]

    def event(self) -> Event:
        """The plan for people."""
        plan, asked = self.plan, self._config.replicas
        is_probe = plan.limit is Limit.PROBE
        total = (None if asked == "auto" else asked) if is_probe else plan.total
        text = f"plan: {plan.total} replica{'s' if plan.total > 1 else ''} (limit: {plan.limit})"
        return Event("plan", text, data={"total": total, "limit": str(plan.limit), "because": plan.because})
