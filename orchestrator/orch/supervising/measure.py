"""What a replica that has become READY costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orch.planning import gpu
from orch.planning.footprint import Footprint, Measurement, believe, resident
from orch.planning.host import resident_bytes

CPU = "cpu"


def free_bytes(device: str) -> int | None:
    """Free memory of a GPU now; None for the CPU, or where the driver does not tell."""
    found = gpu.read_gpu(device) if device != CPU else None
    return found.free_bytes if found is not None and found.total_bytes is not None else None


def footprint_of(pid: int, device: str, free_before: int | None, facts: Mapping[str, Any]) -> Footprint | None:
    """The cost of the worker `pid`, by the best source there is. facts: what it said at READY."""
    host_bytes = resident_bytes(pid) or int(facts.get("resident_bytes", 0))
    if device == CPU:
        return resident(host_bytes)
    free_now = free_bytes(device)
    fell = free_before - free_now if free_before is not None and free_now is not None else None
    return believe(
        Measurement(
            process_bytes=gpu.process_bytes(device, pid),
            device_fell_bytes=fell,
            torch_reserved_bytes=_bytes(facts, "torch_reserved_bytes"),
            context_bytes=_bytes(facts, "context_bytes"),
            loaded_bytes=_bytes(facts, "loaded_bytes"),
            torch_loaded_bytes=_bytes(facts, "torch_loaded_bytes"),
            warm_bytes=_bytes(facts, "warm_bytes"),
            host_bytes=host_bytes,
        )
    )


def _bytes(facts: Mapping[str, Any], name: str) -> int | None:
    """A worker leaves out what it does not know; nothing that it holds is 0 bytes large."""
    return int(facts.get(name, 0)) or None
