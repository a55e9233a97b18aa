"""The plan in force, and the readings it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from orch.config import Config
from orch.planning import planner
from orch.planning.devices import gpus_for
from orch.planning.footprint import Footprint, declared
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
        self.plan = self._make(config.replicas, None, {})

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
