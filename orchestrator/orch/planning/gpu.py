"""The GPUs of this machine as NVML tells them. No other file imports NVML.

NVML's answers differ by driver, card and container, so each is taken as far as it goes: a device that fails is left
out and logged, a detail that fails is left empty, and neither takes the other devices with it.

`nvml` is the module pynvml or anything that answers like it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pynvml  # type: ignore[import-untyped,unused-ignore]

from orch.planning.cards import Gpu, GpuProcess

log = logging.getLogger(__name__)

Nvml = Any  # a module without types, or a recording of its answers
Handle = Any  # opaque to everyone but NVML

# The kernel's own limit of NUMA nodes (CONFIG_NODES_SHIFT 10), in the words of 64 bits that NVML fills.
NUMA_WORDS = 1024 // 64
# NVML_VALUE_NOT_AVAILABLE: what a process holds is not told (WDDM, and so WSL).
NOT_TOLD = 2**64 - 1
# A process is in one list or in several, with the same figure: computing, drawing, or client of an MPS server.
PROCESS_LISTS = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
)


@contextlib.contextmanager
def session(nvml: Nvml = pynvml) -> Iterator[bool]:
    """Keep NVML initialised inside the block; True if it can be used.

    NVML counts: a process that reads often holds one session open, and those inside the functions below cost nothing.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value not in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
            # Not a machine without a GPU but one that is broken: a driver upgraded without a reboot, a locked device.
            log.warning("the NVIDIA driver cannot be used: %s", error)
        yield False
        return
    try:
        yield True
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def why_none(nvml: Nvml = pynvml) -> str:
    """What to tell a user who wants a GPU where `read_gpus` finds none."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return f"the NVIDIA driver cannot be used: {error}"
    count = _told(nvml, 0, nvml.nvmlDeviceGetCount)
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()
    return f"the NVIDIA driver lists {count} GPUs, and none that this process may use" if count else "there is no GPU"


def read_gpus(nvml: Nvml = pynvml, visible: str | None = None) -> tuple[Gpu, ...]:
    """Every device a replica could run on, in PCI bus order: cards, and the instances of cards in MIG mode.

    `visible` limits and orders them as CUDA_VISIBLE_DEVICES does: numbers in PCI bus order (a number takes all
    instances of a card in MIG mode), UUIDs or their unambiguous beginnings; the first entry that names nothing ends
    the list. None: all of them. The tuple is empty where there is no driver.
    """
    with session(nvml) as usable:
        if not usable:
            return ()
        found: list[Gpu] = []
        for index in range(_told(nvml, 0, nvml.nvmlDeviceGetCount)):
            try:
                card = nvml.nvmlDeviceGetHandleByIndex(index)
                found += [gpu for handle in _devices(nvml, card) if (gpu := _read(nvml, handle, card, index))]
            except nvml.NVMLError as error:
                log.warning("gpu %d left out: %s", index, error)
        return tuple(found) if visible is None else _visible(found, visible)


def read_gpu(uuid: str, nvml: Nvml = pynvml) -> Gpu | None:
    """The device with that UUID as it is now, or None if it is gone or cannot be read."""
    with session(nvml) as usable:
        if not usable:
            return None
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if _is_mig(uuid) else handle
            return _read(nvml, handle, card, _told(nvml, 0, nvml.nvmlDeviceGetIndex, card))
        except nvml.NVMLError as error:
            log.warning("gpu %s cannot be read: %s", uuid, error)
            return None


def process_bytes(uuid: str, pid: int, nvml: Nvml = pynvml) -> int | None:
    """Device bytes that process `pid` holds on that device, or None if the driver does not say.

    In a container the driver may list the host's process ids; then no `pid` of ours is found.
    """
    with session(nvml) as usable:
        if not usable:
            return None
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        except nvml.NVMLError:
            return None
        return next((process.used_bytes for process in _processes(nvml, handle) if process.pid == pid), None)


def _devices(nvml: Nvml, card: Handle) -> list[Handle]:
    """What CUDA can run on in one card: the card, or in MIG mode its instances, and then never the card itself."""
    mode, _pending = _told(nvml, (0, 0), nvml.nvmlDeviceGetMigMode, card)
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return [card]
    places = range(_told(nvml, 0, nvml.nvmlDeviceGetMaxMigDeviceCount, card))
    instances = (_told(nvml, None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, place) for place in places)
    return [instance for instance in instances if instance is not None]


def _read(nvml: Nvml, handle: Handle, card: Handle, index: int) -> Gpu | None:
    """One device; `card` is the handle of the whole card, which answers what an instance does not."""
    try:
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        total, free, reserved, used = _memory(nvml, handle)
    except nvml.NVMLError as error:
        log.warning("a device of gpu %d left out: %s", index, error)
        return None
    pci = _told(nvml, None, nvml.nvmlDeviceGetPciInfo, card)
    name = _told(nvml, None, nvml.nvmlDeviceGetName, handle) or _told(nvml, None, nvml.nvmlDeviceGetName, card)
    return Gpu(
        index=index,
        uuid=uuid,
        name=_text(name or "unknown GPU"),
        bus_id="" if pci is None else _text(pci.busId),
        total_bytes=total,
        free_bytes=free,
        reserved_bytes=reserved,
        used_bytes=used,
        numa_node=_numa_node(nvml, card),
        mig=_is_mig(uuid),
        processes=_processes(nvml, handle),
    )


def _memory(nvml: Nvml, handle: Handle) -> tuple[int | None, int, int, int]:
    """Total, free, reserved and used bytes; total None where the card has no memory of its own."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        reserved = memory.reserved
    except nvml.NVMLError:
        # Older drivers lack version 2 and WSL's fails with "Unknown Error". Version 1 counts the reserve as used.
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:
                raise
            return None, 0, 0, 0
        reserved = 0
    if memory.total == 0:
        return None, 0, 0, 0
    return memory.total, memory.free, reserved, memory.used


def _processes(nvml: Nvml, handle: Handle) -> tuple[GpuProcess, ...]:
    """Who holds memory here, by process id. A figure of 0 is one that the driver could not attribute: not told."""
    used: dict[int, int] = {}
    for call in PROCESS_LISTS:
        for row in _told(nvml, (), getattr(nvml, call), handle):
            told = 0 if row.usedGpuMemory in (None, NOT_TOLD) else row.usedGpuMemory
            used[row.pid] = max(told, used.get(row.pid, 0))
    return tuple(GpuProcess(pid, num_bytes or None) for pid, num_bytes in sorted(used.items()))


def _numa_node(nvml: Nvml, card: Handle) -> int | None:
    """The one host memory node nearest to the card; None where the driver names none, or several."""
    # Not nvmlDeviceGetNumaNodeId: that is the node of the card's own memory, on machines where it is one.
    words = _told(nvml, (), nvml.nvmlDeviceGetMemoryAffinity, card, NUMA_WORDS, nvml.NVML_AFFINITY_SCOPE_NODE)
    mask = sum(word << (64 * place) for place, word in enumerate(words))
    return mask.bit_length() - 1 if mask.bit_count() == 1 else None


def _visible(found: list[Gpu], visible: str) -> tuple[Gpu, ...]:
    """The devices that a value of CUDA_VISIBLE_DEVICES names, in its order, each once."""
    chosen: dict[str, Gpu] = {}
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdecimal():
            named = [gpu for gpu in found if gpu.index == int(entry)]
        else:
            named = [gpu for gpu in found if entry and gpu.uuid.lower().startswith(entry.lower())]
            if len(named) > 1:
                break
        if not named:
            break
        chosen |= {gpu.uuid: gpu for gpu in named}
    return tuple(chosen.values())


def _told(nvml: Nvml, otherwise: Any, call: Callable[..., Any], *args: Any) -> Any:
    """What NVML answers, or `otherwise` where this driver, card or container does not answer that."""
    try:
        return call(*args)
    except nvml.NVMLError:
        return otherwise


def _is_mig(uuid: str) -> bool:
    return uuid.startswith("MIG-")


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
