"""What a replica that has become READY costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orch.planning import gpu
from orch.planning.footprint import Footprint, Measurement, believe, resident, was_disturbed
from orch.planning.host import resident_bytes

CPU = "cpu"


def free_bytes(device: str) -> int | None:
    """Free memory of a GPU now; None for the CPU, or where the driver does not tell."""
    found = gpu.read_gpu(device) if device != CPU else None
    return found.free_bytes if found is not None and found.total_bytes is not None else None


@dataclass(frozen=True, slots=True)
class Before:
    """A GPU when a worker is started: its free bytes (None: not told), and what others hold, by process id.

    pids: of all processes that the driver lists there, ours too.
    """

    free_bytes: int | None
    others: Mapping[int, int | None]
    pids: frozenset[int]


def look(device: str, ours: frozenset[int]) -> Before | None:
    """The device now; None for the CPU, or where the driver does not tell. ours: pids of our workers there."""
    found = gpu.read_gpu(device) if device != CPU else None
    if found is None:
        return None
    free_bytes = None if found.total_bytes is None else found.free_bytes
    others = {each.pid: each.used_bytes for each in found.processes if each.pid not in ours}
    return Before(free_bytes, others, frozenset(each.pid for each in found.processes))


def footprint_of(
    pid: int, device: str, before: Before | None, ours: frozenset[int], facts: Mapping[str, Any], *, alone: bool
) -> Footprint | None:
    """The cost of the worker `pid`, by the best source there is.

    ours: pids of all our workers there. facts: what it said at READY. alone: no other of ours loaded, or ended, on the
    device meanwhile.
    """
    host_bytes = resident_bytes(pid) or int(facts.get("resident_bytes", 0))
    if device == CPU:
        return resident(host_bytes)
    now = look(device, ours)
    # Listed before it was started: that is somebody else, who has its number in another namespace.
    is_ours = before is None or pid not in before.pids
    process_bytes = gpu.process_bytes(device, pid) if is_ours else None
    fell, disturbed = None, True
    if before is not None and now is not None and before.free_bytes is not None and now.free_bytes is not None:
        fell = before.free_bytes - now.free_bytes
        disturbed = not alone or was_disturbed(before.others, now.others, listed=is_ours and pid in now.pids)
    return believe(
        Measurement(
            process_bytes=process_bytes,
            device_fell_bytes=fell,
            disturbed=disturbed,
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
