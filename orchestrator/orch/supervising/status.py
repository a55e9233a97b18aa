"""What `orch status`, the status page and the metrics show, gathered from those who own it."""

from __future__ import annotations

from typing import Any

from orch.link import Message
from orch.planning.footprint import explain
from orch.planning.gpu import GpuReading
from orch.planning.planner import Plan
from orch.supervising.fleet import Fleet
from orch.supervising.measure import CPU
from orch.supervising.plans import Plans
from orch.supervising.readings import Readings
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


def host_facts(readings: Readings) -> dict[str, Any]:
    """Memory and cores that this instance may use, whoever else uses them too."""
    host = readings.host()
    return {
        "memory_total_bytes": host.memory_total_bytes,
        "memory_available_bytes": host.memory_available_bytes,
        "cores": host.cores,
    }


def gpu_facts(plans: Plans, fleet: Fleet, readings: Readings, *, on: bool) -> list[dict[str, Any]]:
    """One row for each GPU of the plan: what is used there, what the plan says that will be. on: MPS runs there."""
    planned = dict(plans.plan.placement)
    found = []
    for uuid, device in plans.gpu_names.items():
        ready = [each for each in fleet.in_state(State.READY) if each.device == uuid]
        found.append(
            {
                "uuid": uuid,
                "name": plans.kind_of(uuid),
                "index": int(device.partition(":")[2]),
                "device": device,
                **_card_facts(readings.gpu(uuid)),
                "planned_bytes": plans.plan.used_bytes.get(uuid),
                "mps": on,
                "weight": fleet.weights.get(uuid, 1.0),
                "planned": planned.get(uuid, 0),
                "ready": len(ready),
            }
        )
    return found


def _card_facts(reading: GpuReading | None) -> dict[str, Any]:
    """What the driver tells of a card now; None is what it does not."""
    card = reading.gpu if reading else None
    return {
        "total_bytes": card.total_bytes if card else None,
        "used_bytes": card.used_bytes if card else None,
        "free_bytes": card.free_bytes if card else None,
        "reserved_bytes": card.reserved_bytes if card else None,
        "utilization_percent": reading.utilization_percent if reading else None,
        "temperature_c": reading.temperature_c if reading else None,
        "power_w": reading.power_w if reading else None,
        "power_limit_w": reading.power_limit_w if reading else None,
    }


def queue_facts(stats: Message) -> dict[str, Any]:
    """Requests, as the balancer counts them since its start."""
    return {**NO_QUEUE, **stats.get("queue", {})}


def replica_facts(fleet: Fleet, stats: Message, readings: Readings, now: float) -> list[dict[str, Any]]:
    """One row for each replica, by number. stats: what the balancer said last. now: monotonic seconds."""
    loads = stats.get("workers", {})
    by_number = sorted(fleet.replicas.values(), key=lambda each: each.slot)
    held = _held_bytes(fleet, readings)
    return [
        {**_facts(fleet, each, loads.get(each.id, {}), readings, now), "memory_bytes": held.get(each.id)}
        for each in by_number
    ]


def _facts(fleet: Fleet, replica: Replica, load: Message, readings: Readings, now: float) -> dict[str, Any]:
    running = fleet.running.get(replica.id)
    footprint = fleet.footprint(replica.id)
    process = readings.process(running.child.pid) if running is not None else None
    is_ready = replica.state is State.READY and replica.ready_at is not None
    return {
        "id": replica.id,
        "pid": running.child.pid if running is not None else None,
        "state": str(replica.state),
        "device": fleet.device_names.get(replica.device, replica.device),
        "gpu": replica.device if replica.device in fleet.device_names else None,
        "outstanding": load.get("outstanding", 0),
        "answered": load.get("answered", 0),
        "restarts": replica.restarts,
        "up_s": now - (replica.ready_at or 0.0) if is_ready else None,
        "starts_in_s": max(0.0, replica.start_at - now) if replica.state is State.BACKOFF else None,
        "resident_bytes": process.resident_bytes if process is not None else None,
        "cpu_s": process.cpu_s if process is not None else None,
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


def _held_bytes(fleet: Fleet, readings: Readings) -> dict[str, int | None]:
    """What each worker holds of its device's memory now, where that is told; by replica."""
    pids = {replica_id: running.child.pid for replica_id, running in fleet.running.items()}
    shares = readings.shares(fleet.pids.get(CPU, frozenset()))
    held: dict[str, int | None] = {}
    for replica_id, pid in pids.items():
        device = fleet.replicas[replica_id].device
        if device == CPU:
            held[replica_id] = shares.get(pid)
        elif reading := readings.gpu(device):
            held[replica_id] = next((each.used_bytes for each in reading.gpu.processes if each.pid == pid), None)
    return held
