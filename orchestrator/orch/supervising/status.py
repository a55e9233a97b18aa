"""What `orch status` shows, gathered from those who own it."""

from __future__ import annotations

from typing import Any

from orch.link import Message
from orch.planning.footprint import explain
from orch.planning.planner import Plan
from orch.supervising.fleet import Fleet
from orch.supervising.replica import Replica

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
        "cores": list(fleet.cores.get(replica.id, ())),
        "reason": replica.reason,
    }
