"""What `orch status` shows, gathered from those who own it."""

from __future__ import annotations

from typing import Any

from orch.link import Message
from orch.planning import gpu
from orch.planning.footprint import explain
from orch.planning.planner import Plan
from orch.supervising.fleet import Fleet
from orch.supervising.plans import Plans
from orch.supervising.replica import Replica, State

# What a queue's figures are before the balancer has said any.
NO_QUEUE = {"queued": 0, "outstanding": 0, "answered": 0, "rejected": 0, "retried": 0}


def plan_facts(plan: Plan) -> dict[str, Any]:
    """The plan in force."""
    return {
        "total": plan.total,
        "limit": str(plan.limit),
        "because": list(plan.because),
        "threads_per_replica": plan.threads_per_replica,
    }


def gpu_facts(plans: Plans, fleet: Fleet, *, on: bool) -> list[dict[str, Any]]:
    """One row for each GPU of the plan: what is used there, what the plan says that will be. on: MPS runs there."""
    planned = dict(plans.plan.placement)
    found = []
    for uuid, device in plans.gpu_names.items():
        card = gpu.read_gpu(uuid)
        ready = [each for each in fleet.in_state(State.READY) if each.device == uuid]
        found.append(
            {
                "uuid": uuid,
                "name": plans.kind_of(uuid),
                "index": int(device.partition(":")[2]),
                "device": device,
                "total_bytes": card.total_bytes if card else None,
                "used_bytes": card.used_bytes if card else None,
                "reserved_bytes": card.reserved_bytes if card else None,
                "planned_bytes": plans.plan.used_bytes.get(uuid),
                "mps": on,
                "weight": fleet.weights.get(uuid, 1.0),
                "planned": planned.get(uuid, 0),
                "ready": len(ready),
            }
        )
    return found


def queue_facts(stats: Message) -> dict[str, Any]:
    """Requests, as the balancer counts them."""
    return {**NO_QUEUE, **stats.get("queue", {})}


def replica_facts(fleet: Fleet, stats: Message) -> list[dict[str, Any]]:
    """One row for each replica, by number. stats: what the balancer said last."""
    loads = stats.get("workers", {})
    by_number = sorted(fleet.replicas.values(), key=lambda each: each.slot)
    return [_facts(fleet, replica, loads.get(replica.id, {})) for replica in by_number]


def _facts(fleet: Fleet, replica: Replica, load: Message) -> dict[str, Any]:
    running = fleet.running.get(replica.id)
    footprint = fleet.footprint(replica.id)
    return {
        "id": replica.id,
        "pid": running.child.pid if running is not None else None,
        "state": str(replica.state),
        "device": fleet.device_names.get(replica.device, replica.device),
        "gpu": replica.device if replica.device in fleet.device_names else None,
        "outstanding": load.get("outstanding", 0),
        "answered": load.get("answered", 0),
        "restarts": replica.restarts,
        "footprint_bytes": fleet.footprint_bytes(replica.id),
        "host_bytes": footprint.host_bytes if footprint is not None else None,
        "measured": str(footprint.how) if footprint is not None else None,
        "footprint": explain(footprint) if footprint is not None else None,
        "fence_bytes": running.fence_bytes if running is not None else None,
        "max_batch_size": running.max_batch_size if running is not None else None,
        "batch_s": running.batch_s if running is not None else None,
        "weight": fleet.weights.get(replica.device, 1.0),
        "cores": list(fleet.launcher.cores.get(replica.id, ())),
        "reason": replica.reason,
    }
