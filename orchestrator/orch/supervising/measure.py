"""What a replica that has become READY costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from orch.planning import gpu
from orch.planning.footprint import MIN_DEVICE_BYTES, Footprint, Measurement, believe, resident, was_disturbed
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


def uses(device: str, pids: Collection[int], before: Before | None) -> bool:
    """Whether one of these processes is seen to use the device: the driver lists it, or has less memory free since.

    What cannot be read counts as used.
    """
    now = look(device, frozenset())
    if now is None or not now.pids.isdisjoint(pids):
        return True
    fell = before.free_bytes - now.free_bytes if before and before.free_bytes and now.free_bytes else None
    return fell is None or fell >= MIN_DEVICE_BYTES


def footprint_of(
    pids: frozenset[int],
    device: str,
    before: Before | None,
    ours: frozenset[int],
    facts: Mapping[str, Any],
    *,
    alone: bool,
) -> Footprint | None:
    """The cost of a worker, by the best source there is.

    pids: of its processes. ours: of all our workers there. facts: what it said at READY. alone: no other of ours
    loaded, or ended, on the device meanwhile.
    """
    host_bytes = sum(resident_bytes(pid) or 0 for pid in pids) or int(facts.get("resident_bytes", 0))
    if device == CPU:
        return resident(host_bytes)
    now = look(device, ours)
    # Listed before it was started: that is somebody else, who has its number in another namespace.
    own = pids if before is None else pids - before.pids
    held = [found for pid in own if (found := gpu.process_bytes(device, pid)) is not None]
    process_bytes = sum(held) if held else None
    fell, disturbed = None, True
    if before is not None and now is not None and before.free_bytes is not None and now.free_bytes is not None:
        fell = before.free_bytes - now.free_bytes
        disturbed = not alone or was_disturbed(before.others, now.others, listed=not own.isdisjoint(now.pids))
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
