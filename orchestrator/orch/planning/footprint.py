"""What one replica costs, and which of several measurements of it to believe."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from orch.errors import ConfigError
from orch.planning.sizes import MIB, format_size

# No CUDA context is smaller (an H200's is 612 MiB, a small card's a little over 100 MiB). A declared footprint below
# this is a slip of the unit, and would plan thousands of replicas.
MIN_DEVICE_BYTES = 64 * MIB

# What a process holds beside torch's own reserve when nobody measured it: 728 MB on an H200, the most we know of.
ASSUMED_CONTEXT_BYTES = 728_000_000


# A context measured bare grows with the first kernels of a library: from 642 MB to 765 MB on an H200.
LIBRARY_FACTOR = 1.2

# A process that came, went or changed by less than this disturbs no measurement: the MPS server itself is 66 MiB.
DISTURBANCE_BYTES = 128 * MIB
# What is tried after a replica ran out of memory, in parts of what it had.
OUT_OF_MEMORY_FACTOR = 1.25
# A replica that held this part of its fence was stopped by it; one that held less ran out of something else.
NEAR_FENCE = 0.6


class How(enum.StrEnum):
    """Where a footprint comes from; the value ends the sentence "the footprint is ..."."""

    DECLARED = "declared"
    PROCESS = "what the driver counts for the process"
    DEVICE = "what the device's free memory fell by"
    TORCH = "what torch reserved, and the CUDA context"
    RESIDENT = "the process's resident memory"
    OUT_OF_MEMORY = "what it had when its memory ran out, and a quarter more"


@dataclass(frozen=True, slots=True)
class Parts:
    """What a footprint on a device is made of. The four add up to it.

    context_bytes: the CUDA context, before the model is loaded; 0 where nobody could tell it from the weights.
    weights_bytes: what loading added.
    activation_bytes: what warm-up at the largest batch added: activations, workspaces, kernels, graphs.
    other_bytes: what came neither before, while loading, nor in warm-up.
    """

    context_bytes: int
    weights_bytes: int
    activation_bytes: int
    other_bytes: int

    @property
    def total_bytes(self) -> int:
        """The footprint they are parts of."""
        return self.context_bytes + self.weights_bytes + self.activation_bytes + self.other_bytes


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one replica costs: bytes of device memory (0 on a machine without GPUs) and of the host's memory.

    `host_bytes` is None while nobody measured it; the host's memory then limits nothing yet. `parts` is None where the
    worker could not follow its own growth, and for what is declared.
    """

    device_bytes: int
    host_bytes: int | None
    how: How
    parts: Parts | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was seen of replica 0 after warm-up; None for what this machine does not tell.

    process_bytes: the driver's figure for the process.
    device_fell_bytes: the device's free memory before the process started, less its free memory now.
    disturbed: another process on the device came, went or changed its memory meanwhile.
    torch_reserved_bytes: the peak of what torch's allocator took from the device.
    context_bytes: what the device lost when the process made its CUDA context, before the model was loaded.
    loaded_bytes: what the process held when the model was loaded; torch_loaded_bytes: how much of it torch reserved.
    warm_bytes: what the process held after warm-up.
    host_bytes: resident memory of the process.
    """

    process_bytes: int | None = None
    device_fell_bytes: int | None = None
    disturbed: bool = False
    torch_reserved_bytes: int | None = None
    context_bytes: int | None = None
    loaded_bytes: int | None = None
    torch_loaded_bytes: int | None = None
    warm_bytes: int | None = None
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
        return _of(seen.process_bytes, How.PROCESS, seen)
    if seen.device_fell_bytes is not None and seen.device_fell_bytes >= floor and not seen.disturbed:
        return _of(seen.device_fell_bytes, How.DEVICE, seen)
    if seen.torch_reserved_bytes is not None:
        bare = seen.context_bytes
        context = ASSUMED_CONTEXT_BYTES if bare is None else int(bare * LIBRARY_FACTOR)
        return _of(seen.torch_reserved_bytes + context, How.TORCH, seen)
    return None


def was_disturbed(before: Mapping[int, int | None], after: Mapping[int, int | None], *, listed: bool) -> bool:
    """Whether somebody else on the device came, went or changed memory while a worker loaded.

    before, after: what the driver says that each process held, by process id (None: not told), without those that are
    known to be ours. listed: the worker is known among ours; where not, one new process may be the worker itself, under
    a number of another namespace.
    """
    came = [pid for pid in after if pid not in before and _matters(after[pid])]
    went = [pid for pid in before if pid not in after and _matters(before[pid])]
    changed = any(_matters(abs((after[pid] or 0) - (before[pid] or 0))) for pid in before if pid in after)
    return changed or bool(went) or len(came) > (0 if listed else 1)


def after_out_of_memory(
    known: Footprint, held_bytes: int | None, fence_bytes: int | None, free_bytes: int | None
) -> Footprint | None:
    """What to plan with after a replica ran out of memory while loading; None: no more than was known.

    held_bytes: what it held then. fence_bytes: the most it was allowed; None: no fence. free_bytes: what was free on
    the device when it started. A replica that was stopped by its fence needs more than the fence; one on a device that
    had less free than a replica costs says nothing of what it needs.
    """
    held = held_bytes or 0
    near = held_bytes is None or fence_bytes is None or held >= fence_bytes * NEAR_FENCE
    if fence_bytes is not None and near and (free_bytes is None or free_bytes > fence_bytes):
        held = max(held, fence_bytes)
    if held <= known.device_bytes:
        return None
    return Footprint(int(held * OUT_OF_MEMORY_FACTOR), known.host_bytes, How.OUT_OF_MEMORY)


def _matters(num_bytes: int | None) -> bool:
    return num_bytes is None or num_bytes >= DISTURBANCE_BYTES


def explain(footprint: Footprint) -> str:
    """The sum for people, how it was measured, and what makes it smaller.

    "612.0 MiB context + 86.0 MiB weights + 700.0 MiB activations and workspaces = 1.4 GiB, measured as what the driver
    counts for the process; lower --max-batch-size for less"
    """
    total = format_size(footprint.device_bytes or footprint.host_bytes or 0)
    if footprint.how in (How.DECLARED, How.OUT_OF_MEMORY):
        return f"{total}, {footprint.how}"
    parts = footprint.parts
    if parts is None:
        return f"{total}, measured as {footprint.how}"
    named = (
        (parts.context_bytes, "context"),
        (parts.weights_bytes, "weights" if parts.context_bytes else "context and weights"),
        (parts.activation_bytes, "activations and workspaces"),
        (parts.other_bytes, "other"),
    )
    terms = " + ".join(f"{format_size(num_bytes)} {name}" for num_bytes, name in named if num_bytes)
    return f"{terms} = {total}, measured as {footprint.how}; {_knob(parts)}"


def _of(device_bytes: int, how: How, seen: Measurement) -> Footprint:
    return Footprint(device_bytes, seen.host_bytes, how, _divide(device_bytes, seen))


def _divide(total_bytes: int, seen: Measurement) -> Parts | None:
    """The total shared out in the order in which it grew; no stage takes more than those before it have left.

    The stages and the total may come from different sources, and a device's free memory moves for others' reasons.
    """
    if seen.loaded_bytes is None or seen.warm_bytes is None:
        return None
    context = seen.context_bytes
    if context is None:
        # A model that imports torch only while it loads: what is not torch's is the context and its kernels.
        context = seen.loaded_bytes - seen.torch_loaded_bytes if seen.torch_loaded_bytes else 0
    reached = [0]
    for stage_bytes in (context, seen.loaded_bytes, seen.warm_bytes):
        reached.append(min(max(reached[-1], stage_bytes), total_bytes))
    _, context, loaded, warm = reached
    return Parts(context, loaded - context, warm - loaded, total_bytes - warm)


def _knob(parts: Parts) -> str:
    largest = max(parts.context_bytes, parts.weights_bytes, parts.activation_bytes)
    if parts.activation_bytes == largest:
        return "lower --max-batch-size for less"
    if parts.weights_bytes == largest:
        return "weights of a smaller type take less, and so does a lower --max-batch-size"
    return "most of it is the price of a process, whatever the model"
