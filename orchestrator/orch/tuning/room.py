"""How many replicas of what runs now would fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orch.config import Config
from orch.errors import DoesNotFit
from orch.planning import planner
from orch.planning.devices import gpus_for
from orch.planning.footprint import Footprint, How, declared
from orch.planning.host import read_host
from orch.supervising.mps import MAX_CLIENTS


def room_for(config: Config, status: Mapping[str, Any], mps: bool) -> int:
    """By the planner, from the costs that a settled instance shows in its status; at least what it has."""
    replicas = status["replicas"]
    gpus = gpus_for(config)
    host_bytes = max((each.get("host_bytes") or 0 for each in replicas), default=0) or None
    device_bytes = max((each.get("footprint_bytes") or 0 for each in replicas if each.get("gpu")), default=0)
    if config.vram_per_replica_bytes is not None and gpus:
        footprint = declared(config.vram_per_replica_bytes, host_bytes)
    else:
        footprint = Footprint(device_bytes, host_bytes, How.PROCESS if gpus else How.RESIDENT)
    pids = {one.uuid: frozenset(each["pid"] for each in replicas if each.get("gpu") == one.uuid) for one in gpus}
    request = planner.PlanRequest(
        host=read_host(),
        gpus=gpus,
        footprint=footprint,
        gpu_utilization=config.gpu_utilization,
        max_clients_per_gpu=MAX_CLIENTS if mps else None,
        ours_bytes={one.uuid: planner.held_by_us(one, pids[one.uuid], footprint.device_bytes) for one in gpus},
    )
    try:
        return max(len(replicas), planner.plan(request).total)
    except DoesNotFit:  # somebody else has taken what was free: what runs, runs
        return len(replicas)
