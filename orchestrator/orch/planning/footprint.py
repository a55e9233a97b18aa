"""What one replica costs, and which of several measurements of it to believe."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from orch.errors import ConfigError
from orch.planning.sizes import MIB, format_size

# No CUDA context is smaller (an H200's is 612 MiB, a small card's a little over 100 MiB). A declared footprint below
# this is a slip of the unit, and would plan thousands of replicas.
MIN_DEVICE_BYTES = 64 * MIB

# What a process holds beside torch's own reserve when nobody measured it: 728 MB on an H200, the most we know of.
ASSUMED_CONTEXT_BYTES = 728_000_000


class How(enum.StrEnum):
    """Where a footprint comes from; the value ends the sentence "the footprint is ..."."""

    DECLARED = "declared"
    PROCESS = "what the driver counts for the process"
    DEVICE = "what the device's free memory fell by"
    TORCH = "what torch reserved, and the CUDA context"
    RESIDENT = "the process's resident memory"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one replica costs: bytes of device memory (0 on a machine without GPUs) and of the host's memory.

    `host_bytes` is None while nobody measured it; the host's memory then limits nothing yet.
    """

    device_bytes: int
    host_bytes: int | None
    how: How


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was seen of replica 0 after warm-up; None for what this machine does not tell.

    process_bytes: the driver's figure for the process.
    device_fell_bytes: the device's free memory before the process started, less its free memory now.
    disturbed: another process on the device came, went or changed its memory meanwhile.
    torch_reserved_bytes: the peak of what torch's allocator took from the device.
    context_bytes: what the device lost when the process made its CUDA context, before the model was loaded.
    host_bytes: resident memory of the process.
    """

    process_bytes: int | None = None
    device_fell_bytes: int | None = None
    disturbed: bool = False
    torch_reserved_bytes: int | None = None
    context_bytes: int | None = None
    host_bytes: int | None = None


def declared(device_bytes: int, host_bytes: int | None = None) -> Footprint:
    """The footprint the user stated. Raises ConfigError for one that no GPU process can have."""
    if device_bytes < MIN_DEVICE_BYTES:
        raise ConfigError(
            f"vram_per_replica: {format_size(device_bytes)} is less than a CUDA context alone;"
            f" allowed: {format_size(MIN_DEVICE_BYTES)} or more, for example 7GiB"
        )
    return Footprint(device_bytes, host_bytes, How.DECLARED)


def resident(host_bytes: int) -> Footprint:
    """The footprint of a replica that runs on the CPU."""
    return Footprint(0, host_bytes, How.RESIDENT)


def believe(seen: Measurement) -> Footprint | None:
    """The footprint on a GPU from what was seen, best source first; None if nothing here tells it.

    The driver's own figure for the process, else the fall of the device's free memory unless it was disturbed, else
    torch's reserve plus the context. The first two are passed over if they are below torch's reserve, which cannot
    be: a driver that translates process ids wrongly reports 0 or another process's figure.
    """
    floor = max(1, seen.torch_reserved_bytes or 0)
    if seen.process_bytes is not None and seen.process_bytes >= floor:
        return Footprint(seen.process_bytes, seen.host_bytes, How.PROCESS)
    if seen.device_fell_bytes is not None and seen.device_fell_bytes >= floor and not seen.disturbed:
        return Footprint(seen.device_fell_bytes, seen.host_bytes, How.DEVICE)
    if seen.torch_reserved_bytes is not None:
        context = ASSUMED_CONTEXT_BYTES if seen.context_bytes is None else seen.context_bytes
        return Footprint(seen.torch_reserved_bytes + context, seen.host_bytes, How.TORCH)
    return None
