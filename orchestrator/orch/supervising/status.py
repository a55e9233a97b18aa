"""What `orch status`, the status page and the metrics show, gathered from those who own it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch.config import Config
from orch.link import Message
from orch.planning.footprint import explain
from orch.planning.gpu import GpuReading
from orch.planning.planner import Plan
from orch.supervising.balancer import Balancer
from orch.supervising.connections import count
from orch.supervising.fleet import Fleet
from orch.supervising.gateway import Gateways
from orch.supervising.measure import CPU
from orch.supervising.plans import Plans
from orch.supervising.proxies import Proxies, Watchers
from orch.supervising.readings import Readings
from orch.supervising.replica import Replica, State
from orch.supervising.roster import Roster
from orch.supervising.sharing import Sharing
from orch.version import __version__

# What a queue's figures are before the balancer has said any.
NO_QUEUE = {"queued": 0, "outstanding": 0, "answered": 0, "rejected": 0, "retried": 0}


@dataclass(frozen=True, slots=True)
class Instance:
    """The parts of one instance, each of which owns facts of its own. started_at: seconds since 1970."""

    config: Config
    endpoint: str
    logs: Path
    started_at: float
    plans: Plans
    fleet: Fleet
    roster: Roster
    balancer: Balancer | Proxies
    gateways: Gateways
    sharing: Sharing
    watchers: Watchers
    readings: Readings

    def state(self, *, stopping: bool) -> str:
        """In one word."""
        if stopping:
            return "DRAINING"
        if not self.roster.served:
            return "STARTING"
        staying = self.fleet.staying()  # who leaves for good is not missed
        return "READY" if all(each.state is State.READY for each in staying) else "DEGRADED"

    def model_facts(self, *, stopping: bool) -> Message:
        """The model as the gateways know it. reason: why it does not serve now; accepts: requests may wait for it."""
        ever_ready = self.roster.ever_ready
        if stopping:
            reason = "stopping"
        elif not ever_ready:
            reason = "starting"
        else:
            reason = "" if self.fleet.in_state(State.READY) else "without a worker, until one is started again"
        declared = self.fleet.declared
        return {
            "name": self.config.title,
            "reason": reason,
            "accepts": ever_ready,
            "max_batch_size": declared.get("max_batch_size", 1),
            "max_batch_wait_s": self.config.max_batch_wait_s or 0.0,
            "inputs": declared.get("inputs", ()),
            "outputs": declared.get("outputs", ()),
            "streams": declared.get("streams", False),
        }

    def queue_facts(self, stats: Message) -> dict[str, Any]:
        """None of a command: nobody counts its requests. stats: what the balancer said last."""
        return {} if self.config.command else queue_facts(stats)

    def facts(self, stats: Message, now: float, *, stopping: bool) -> dict[str, Any]:
        """All of them. stats: what the balancer said last. now: monotonic seconds."""
        config, is_command = self.config, bool(self.config.command)
        return {
            "name": config.name,
            "version": __version__,
            "state": self.state(stopping=stopping),
            "endpoint": None if is_command else self.endpoint,
            "kind": self.watchers.servers.kind,
            "command": list(config.command),
            "servers": self.watchers.servers.rows,
            "listen": config.listen,
            "http": self.gateways.url,
            "grpc": config.grpc if config.grpc != "off" else None,
            "gateways": self.gateways.facts,
            "model": config.title,
            "target": config.target,
            "pid": os.getpid(),
            "started_at": self.started_at,
            "uptime_s": time.time() - self.started_at,
            "plan": plan_facts(self.plans.plan),
            "mps": self.sharing.facts,
            "host": host_facts(self.readings),
            "gpus": gpu_facts(self.plans, self.fleet, self.readings, on=self.sharing.mps is not None),
            "search": self.roster.search_facts,
            "balancer": None if is_command else {"pid": self.balancer.pid, "restarts": self.balancer.restarts},
            "settled": self.roster.settled,
            "restarts_next": list(self.roster.rolling.waiting),
            "replicas": replica_facts(self.fleet, stats, self.readings, now),
            "queue": self.queue_facts(stats),
            "latency": stats.get("latency", {}),
            "batch_rows": stats.get("batch_rows", {}),
            "arena": stats.get("arena", {}),
            "logs": str(self.logs),
        }


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
    address = fleet.launcher.address(replica)
    found = [readings.process(pid) for pid in fleet.family(replica.id)] if running is not None else []
    processes = [process for process in found if process is not None]
    is_ready = replica.state is State.READY and replica.ready_at is not None
    waits_for = running.note if running is not None and replica.state is State.LOADING else ""
    return {
        "id": replica.id,
        "pid": (running.server_pid or running.child.pid) if running is not None else None,
        "pids": sorted(fleet.family(replica.id)) if running is not None else [],
        "address": address,
        "connections": count(address) if address and running is not None else None,
        "state": str(replica.state),
        "device": fleet.device_names.get(replica.device, replica.device),
        "gpu": replica.device if replica.device in fleet.device_names else None,
        "outstanding": None if address else load.get("outstanding", 0),
        "answered": None if address else load.get("answered", 0),
        "restarts": replica.restarts,
        "up_s": now - (replica.ready_at or 0.0) if is_ready else None,
        "starts_in_s": max(0.0, replica.start_at - now) if replica.state is State.BACKOFF else None,
        "resident_bytes": sum(each.resident_bytes for each in processes) if processes else None,
        "cpu_s": sum(each.cpu_s for each in processes) if processes else None,
        "footprint_bytes": fleet.footprint_bytes(replica.id),
        "host_bytes": footprint.host_bytes if footprint is not None else None,
        "measured": str(footprint.how) if footprint is not None else None,
        "footprint": explain(footprint) if footprint is not None else None,
        "fence_bytes": running.fence_bytes if running is not None else None,
        "max_batch_size": running.max_batch_size if running is not None else None,
        "batch_s": running.batch_s if running is not None else None,
        "weight": fleet.weights.get(replica.device, 1.0),
        "cores": list(fleet.launcher.cores.get(replica.id, ())),
        "reason": f"{replica.reason}: {waits_for}" if waits_for else replica.reason,
    }


def _held_bytes(fleet: Fleet, readings: Readings) -> dict[str, int | None]:
    """What each worker holds of its device's memory now, where that is told; by replica."""
    shares = readings.shares(fleet.pids.get(CPU, frozenset()))
    held: dict[str, int | None] = {}
    for replica_id in fleet.running:
        pids, device = fleet.family(replica_id), fleet.replicas[replica_id].device
        if device == CPU:
            told = [share for pid in pids if (share := shares.get(pid)) is not None]
        else:
            reading = readings.gpu(device)
            listed = reading.gpu.processes if reading else ()
            told = [each.used_bytes for each in listed if each.pid in pids and each.used_bytes is not None]
        held[replica_id] = sum(told) if told else None
    return held
