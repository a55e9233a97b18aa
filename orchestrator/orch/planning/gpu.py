"""The GPUs of this machine as NVML tells them. No other file imports NVML.

NVML's answers differ by driver, card and container, so each is taken as far as it goes: a device that fails, or is
lost between two questions, is left out and logged; a detail that fails is left empty; neither takes the other devices
with it.

`nvml` is the module pynvml or anything that answers like it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pynvml  # type: ignore[import-untyped,unused-ignore]

from orch.planning.cards import ComputeMode, Gpu, GpuProcess

log = logging.getLogger(__name__)

Nvml = Any  # a module without types, or a recording of its answers
Handle = Any  # opaque to everyone but NVML
T = TypeVar("T")

# The kernel's own limit of NUMA nodes (CONFIG_NODES_SHIFT 10), in the words of 64 bits that NVML fills.
NUMA_WORDS = 1024 // 64
# And of cores, on the machines that have most of them (CONFIG_NR_CPUS 8192).
CPU_WORDS = 8192 // 64
# NVML_VALUE_NOT_AVAILABLE: what a process holds is not told (WDDM, and so WSL).
NOT_TOLD = 2**64 - 1
# A process is in one list or in several, with the same figure: computing, drawing, or client of an MPS server.
PROCESS_LISTS = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
)
# A device that answers so is not there any more; every other error is about the one question.
GONE = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_GPU_NOT_FOUND)
COMPUTE_MODES: Final[Mapping[int, ComputeMode]] = {
    pynvml.NVML_COMPUTEMODE_DEFAULT: "DEFAULT",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "EXCLUSIVE_PROCESS",
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "PROHIBITED",
}
MILLIWATTS = 1000


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What a device is doing at one moment; each figure is None where driver, card or container does not tell it.

    utilization_percent: how much of the last moments some kernel ran, not how much of the device it filled.
    power_limit_w: what the driver holds the card to now, which may be less than the card's own limit.
    On a MIG instance temperature, power and clocks are those of the whole card.
    """

    gpu: Gpu
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None


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
    count = _count(nvml)
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlShutdown()
    return f"the NVIDIA driver lists {count} GPUs, and none that this process may use" if count else "there is no GPU"


def driver_version(nvml: Nvml = pynvml) -> str | None:
    """The version of the NVIDIA driver, for example "580.159.03"; None where there is none that can be used."""
    with session(nvml) as usable, contextlib.suppress(nvml.NVMLError):
        return _text(nvml.nvmlSystemGetDriverVersion()) if usable else None
    return None


def read_gpus(nvml: Nvml = pynvml, visible: str | None = None) -> tuple[Gpu, ...]:
    """Every device a replica could run on, in PCI bus order: cards, and the instances of cards in MIG mode.

    `visible` limits and orders them as CUDA_VISIBLE_DEVICES does: numbers in PCI bus order (a number takes all
    instances of a card in MIG mode), UUIDs or their unambiguous beginnings; the first entry that names nothing ends
    the list. None: all of them. The tuple is empty where there is no driver.
    """
    found = _each(nvml, _read)
    return tuple(found) if visible is None else _visible(found, visible)


def read_live(nvml: Nvml = pynvml, visible: str | None = None) -> tuple[GpuReading, ...]:
    """The same devices as `read_gpus`, each with what it is doing at this moment."""
    found = _each(nvml, _read_live)
    if visible is None:
        return tuple(found)
    by_uuid = {reading.gpu.uuid: reading for reading in found}
    return tuple(by_uuid[gpu.uuid] for gpu in _visible([reading.gpu for reading in found], visible))


def read_gpu(uuid: str, nvml: Nvml = pynvml) -> Gpu | None:
    """The device with that UUID as it is now, or None if it is gone or cannot be read."""
    return _one(nvml, uuid, _read)


def read_gpu_live(uuid: str, nvml: Nvml = pynvml) -> GpuReading | None:
    """The same with what it is doing at this moment."""
    return _one(nvml, uuid, _read_live)


def process_bytes(uuid: str, pid: int, nvml: Nvml = pynvml) -> int | None:
    """Device bytes that process `pid` holds on that device, or None if the driver does not say.

    In a container the driver may list the host's process ids; then no `pid` of ours is found.
    """
    with session(nvml) as usable:
        if not usable:
            return None
        try:
            processes = _processes(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError:
            return None
        return next((process.used_bytes for process in processes if process.pid == pid), None)


def _each(nvml: Nvml, read: Callable[[Nvml, Handle, Handle, int], T]) -> list[T]:
    """What `read` says of every device there is, in PCI bus order."""
    found: list[T] = []
    with session(nvml) as usable:
        for index in range(_count(nvml) if usable else 0):
            try:
                card = nvml.nvmlDeviceGetHandleByIndex(index)
                devices = _devices(nvml, card)
            except nvml.NVMLError as error:
                log.warning("gpu %d left out: %s", index, error)
                continue
            for handle in devices:
                try:
                    found.append(read(nvml, handle, card, index))
                except nvml.NVMLError as error:
                    log.warning("a device of gpu %d left out: %s", index, error)
    return found


def _one(nvml: Nvml, uuid: str, read: Callable[[Nvml, Handle, Handle, int], T]) -> T | None:
    """What `read` says of the device with that UUID; None if it is gone or cannot be read."""
    with session(nvml) as usable:
        if not usable:
            return None
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle) if _is_mig(uuid) else handle
            return read(nvml, handle, card, _told(nvml, 0, nvml.nvmlDeviceGetIndex, card))
        except nvml.NVMLError as error:
            log.warning("gpu %s cannot be read: %s", uuid, error)
            return None


def _count(nvml: Nvml) -> int:
    try:
        return int(nvml.nvmlDeviceGetCount())
    except nvml.NVMLError:
        return 0


def _devices(nvml: Nvml, card: Handle) -> list[Handle]:
    """What CUDA can run on in one card: the card, or in MIG mode its instances, and then never the card itself."""
    mode, _pending = _told(nvml, (0, 0), nvml.nvmlDeviceGetMigMode, card)
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        return [card]
    places = range(_told(nvml, 0, nvml.nvmlDeviceGetMaxMigDeviceCount, card))
    instances = (_told(nvml, None, nvml.nvmlDeviceGetMigDeviceHandleByIndex, card, place) for place in places)
    return [instance for instance in instances if instance is not None]


def _read(nvml: Nvml, handle: Handle, card: Handle, index: int) -> Gpu:
    """One device; `card` is the handle of the whole card, which answers what an instance does not."""
    uuid = _text(nvml.nvmlDeviceGetUUID(handle))
    total, free, reserved, used = _memory(nvml, handle)
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
        compute_mode=COMPUTE_MODES.get(_told(nvml, None, nvml.nvmlDeviceGetComputeMode, card)),
        compute_capability=_capability(nvml, card),
        cpu_affinity=_cores(nvml, card),
    )


def _read_live(nvml: Nvml, handle: Handle, card: Handle, index: int) -> GpuReading:
    """One device and what it is doing. How busy a card in MIG mode is says nothing of one instance: not asked."""
    rates = _told(nvml, None, nvml.nvmlDeviceGetUtilizationRates, handle)
    power = _told(nvml, None, nvml.nvmlDeviceGetPowerUsage, card)
    limit = _told(nvml, None, nvml.nvmlDeviceGetEnforcedPowerLimit, card)
    return GpuReading(
        gpu=_read(nvml, handle, card, index),
        utilization_percent=None if rates is None else rates.gpu,
        temperature_c=_told(nvml, None, nvml.nvmlDeviceGetTemperature, card, pynvml.NVML_TEMPERATURE_GPU),
        power_w=None if power is None else power / MILLIWATTS,
        power_limit_w=None if limit is None else limit / MILLIWATTS,
        sm_clock_mhz=_told(nvml, None, nvml.nvmlDeviceGetClockInfo, card, pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=_told(nvml, None, nvml.nvmlDeviceGetClockInfo, card, pynvml.NVML_CLOCK_MEM),
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


def _cores(nvml: Nvml, card: Handle) -> tuple[int, ...]:
    """The numbers of the cores near the card, whether or not this process may run there."""
    words = _told(nvml, (), nvml.nvmlDeviceGetCpuAffinity, card, CPU_WORDS)
    return tuple(64 * place + bit for place, word in enumerate(words) if word for bit in range(64) if word >> bit & 1)


def _capability(nvml: Nvml, card: Handle) -> tuple[int, int] | None:
    told = _told(nvml, None, nvml.nvmlDeviceGetCudaComputeCapability, card)
    return None if told is None else (int(told[0]), int(told[1]))


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
    """What NVML answers, or `otherwise` where this driver, card or container does not answer that.

    Raises NVMLError where the device itself is gone.
    """
    try:
        return call(*args)
    except nvml.NVMLError as error:
        if error.value in GONE:
            raise
        return otherwise


def _is_mig(uuid: str) -> bool:
    return uuid.startswith("MIG-")


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
