"""GPUs as recorded answers of NVML tell them."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from orch.planning.cards import Gpu, GpuProcess
from orch.planning.gpu import (
    GpuReading,
    driver_version,
    process_bytes,
    read_gpu,
    read_gpu_live,
    read_gpus,
    read_live,
    session,
    why_none,
)
from orch.planning.sizes import MIB

H200_TOTAL, H200_RESERVED = 143_771 * MIB, 644_939_776


class RecordedError(Exception):
    """What NVML raises: an error with a number."""

    def __init__(self, value: int) -> None:
        super().__init__({4: "Insufficient Permissions", 9: "Driver Not Loaded", 15: "GPU is lost"}.get(value, "Error"))
        self.value = value


NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND, NO_DRIVER, NO_LIBRARY, LOST, MISMATCH, UNKNOWN = 3, 4, 6, 9, 12, 15, 18, 999
NO_LONGER_FOUND = 28


class Recorded:
    """NVML with recorded answers: {call: answer} or {(call, argument, ...): answer}; what `fails` has raises first.

    What was not recorded is "Not Supported". Unlike NVML's, its devices do not change meanwhile, except that from the
    first `lost_at` on, a call or a call with its arguments, every question about that device is answered "GPU is lost".
    """

    NVMLError = RecordedError
    NVML_ERROR_NOT_SUPPORTED = NOT_SUPPORTED
    NVML_ERROR_DRIVER_NOT_LOADED = NO_DRIVER
    NVML_ERROR_LIBRARY_NOT_FOUND = NO_LIBRARY
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_AFFINITY_SCOPE_NODE = 0
    nvmlMemory_v2 = 2  # noqa: N815 - NVML's name

    def __init__(
        self, answers: Mapping[Any, Any], fails: Mapping[Any, int] | None = None, lost_at: tuple[str, str] | None = None
    ) -> None:
        self.answers = {"nvmlInit": None, "nvmlShutdown": None, **answers}
        self.fails = fails or {}
        self.open_sessions = 0
        self.lost_at = lost_at
        self.lost = False

    def __getattr__(self, call: str) -> Any:
        if not call.startswith("nvml"):
            raise AttributeError(call)

        def answer(*args: Any, **options: Any) -> Any:
            asked = (call, *args, *options.values())
            self.lost = self.lost or asked[:2] == self.lost_at
            if self.lost and self.lost_at and asked[1:2] == self.lost_at[1:]:
                raise RecordedError(LOST)
            for key in (asked, call):
                if key in self.fails:
                    raise RecordedError(self.fails[key])
            self.open_sessions += {"nvmlInit": 1, "nvmlShutdown": -1}.get(call, 0)
            for key in (asked, call):
                if key in self.answers:
                    return self.answers[key]
            raise RecordedError(NOT_SUPPORTED)

        return answer


def a_card(
    index: int,
    uuid: str,
    name: str,
    *,
    total: int,
    reserved: int = 0,
    used: int = 0,
    capability: tuple[int, int] = (9, 0),
    cores: int = 0xFF,
) -> dict[Any, Any]:
    """The answers for one card, whose handle is its UUID; `cores` has a bit for each core near it."""
    free = total - reserved - used
    return {
        ("nvmlDeviceGetHandleByIndex", index): uuid,
        ("nvmlDeviceGetHandleByUUID", uuid): uuid,
        ("nvmlDeviceGetIndex", uuid): index,
        ("nvmlDeviceGetUUID", uuid): uuid,
        ("nvmlDeviceGetName", uuid): name,
        ("nvmlDeviceGetPciInfo", uuid): SimpleNamespace(busId=f"00000000:{index:02X}:00.0".encode()),
        ("nvmlDeviceGetMigMode", uuid): [0, 0],
        ("nvmlDeviceGetMemoryInfo", uuid): SimpleNamespace(total=total, free=free, used=used + reserved),
        ("nvmlDeviceGetMemoryInfo", uuid, 2): SimpleNamespace(total=total, reserved=reserved, free=free, used=used),
        ("nvmlDeviceGetMemoryAffinity", uuid, 16, 0): [1 << index] + [0] * 15,
        ("nvmlDeviceGetComputeRunningProcesses", uuid): [],
        ("nvmlDeviceGetMPSComputeRunningProcesses", uuid): [],
        ("nvmlDeviceGetGraphicsRunningProcesses", uuid): [],
        ("nvmlDeviceGetComputeMode", uuid): 0,
        ("nvmlDeviceGetCudaComputeCapability", uuid): capability,
        ("nvmlDeviceGetCpuAffinity", uuid, 128): [cores >> 64 * word & (2**64 - 1) for word in range(128)],
    }


def busy(uuid: str) -> dict[Any, Any]:
    """The answers of a card at work."""
    return {
        ("nvmlDeviceGetUtilizationRates", uuid): SimpleNamespace(gpu=87, memory=31),
        ("nvmlDeviceGetTemperature", uuid, 0): 54,
        ("nvmlDeviceGetPowerUsage", uuid): 412_345,
        ("nvmlDeviceGetEnforcedPowerLimit", uuid): 700_000,
        ("nvmlDeviceGetClockInfo", uuid, 1): 1980,
        ("nvmlDeviceGetClockInfo", uuid, 2): 3201,
    }


def row(pid: int, used_bytes: int | None) -> SimpleNamespace:
    """A line of a process list."""
    return SimpleNamespace(pid=pid, usedGpuMemory=used_bytes)


H200 = a_card(0, "GPU-h200", "NVIDIA H200", total=H200_TOTAL, reserved=H200_RESERVED)
RTX_4090 = a_card(1, "GPU-4090", "NVIDIA GeForce RTX 4090", total=24_564 * MIB, reserved=420 * MIB, used=900 * MIB)
TWO = {"nvmlDeviceGetCount": 2, **H200, **RTX_4090}


def the_only(gpus: tuple[Gpu, ...]) -> Gpu:
    """The one device there is."""
    (gpu,) = gpus
    return gpu


def test_an_empty_h200_reads_as_it_was_recorded() -> None:
    """Version 2 of the memory figures keeps what the driver reserves apart from what is used."""
    assert the_only(read_gpus(Recorded({"nvmlDeviceGetCount": 1, **H200}))) == Gpu(
        index=0,
        uuid="GPU-h200",
        name="NVIDIA H200",
        bus_id="00000000:00:00.0",
        total_bytes=H200_TOTAL,
        free_bytes=H200_TOTAL - H200_RESERVED,
        reserved_bytes=H200_RESERVED,
        used_bytes=0,
        numa_node=0,
        compute_mode="DEFAULT",
        compute_capability=(9, 0),
        cpu_affinity=(0, 1, 2, 3, 4, 5, 6, 7),
    )


def test_geforce_cards_of_two_generations_in_one_machine_are_read_apart() -> None:
    """Each has its own memory, its own generation, and the same cores near it on a desktop board."""
    answers = {
        "nvmlDeviceGetCount": 2,
        **a_card(0, "GPU-4090", "NVIDIA GeForce RTX 4090", total=24_564 * MIB, reserved=442 * MIB, capability=(8, 9)),
        **a_card(1, "GPU-5090", "NVIDIA GeForce RTX 5090", total=32_607 * MIB, reserved=498 * MIB, capability=(12, 0)),
    }
    first, second = read_gpus(Recorded(answers))
    assert (first.free_bytes, second.free_bytes) == (24_122 * MIB, 32_109 * MIB)
    assert (first.compute_capability, second.compute_capability) == ((8, 9), (12, 0))
    assert first.cpu_affinity == second.cpu_affinity


@pytest.mark.parametrize(
    ("told", "mode"), [(0, "DEFAULT"), (3, "EXCLUSIVE_PROCESS"), (2, "PROHIBITED"), (1, None), (77, None)]
)
def test_the_compute_mode_is_told_by_its_name(told: int, mode: str | None) -> None:
    """One that no driver of today knows is none."""
    answers = {"nvmlDeviceGetCount": 1, **H200, ("nvmlDeviceGetComputeMode", "GPU-h200"): told}
    assert the_only(read_gpus(Recorded(answers))).compute_mode == mode


def test_the_cores_near_a_card_are_numbered_through_all_words() -> None:
    """The second socket of a large machine begins in the middle of a word."""
    near = range(56, 112)
    answers = a_card(0, "GPU-b", "NVIDIA H200", total=H200_TOTAL, cores=sum(1 << core for core in near))
    assert the_only(read_gpus(Recorded({"nvmlDeviceGetCount": 1, **answers}))).cpu_affinity == tuple(near)


@pytest.mark.parametrize("error", [NO_LIBRARY, NO_DRIVER, MISMATCH, NO_PERMISSION])
def test_without_a_usable_driver_there_are_no_gpus(error: int) -> None:
    """And every question has an answer all the same."""
    nvml = Recorded(TWO, fails={"nvmlInit": error})
    assert read_gpus(nvml) == ()
    assert read_gpu("GPU-h200", nvml) is None
    assert process_bytes("GPU-h200", 1, nvml) is None
    assert why_none(nvml).startswith("the NVIDIA driver cannot be used: ")


def test_why_there_is_no_gpu_is_told() -> None:
    """A driver without cards differs from cards that nobody may use."""
    assert why_none(Recorded({"nvmlDeviceGetCount": 0})) == "there is no GPU"
    assert "lists 2 GPUs" in why_none(Recorded(TWO))


def test_a_driver_without_devices_has_no_gpus() -> None:
    """Neither a count of zero nor a failing count is an error."""
    assert read_gpus(Recorded({"nvmlDeviceGetCount": 0})) == ()
    assert read_gpus(Recorded({}, fails={"nvmlDeviceGetCount": UNKNOWN})) == ()


@pytest.mark.parametrize("call", [("nvmlDeviceGetHandleByIndex", 0), ("nvmlDeviceGetUUID", "GPU-h200")])
def test_a_card_that_fell_off_the_bus_does_not_take_the_others_with_it(call: Any) -> None:
    """The lost one is left out."""
    assert [gpu.uuid for gpu in read_gpus(Recorded(TWO, fails={call: LOST}))] == ["GPU-4090"]


def test_details_that_a_driver_does_not_tell_are_left_empty() -> None:
    """Only the UUID and the memory are needed to plan."""
    details = (
        "Name PciInfo MigMode MemoryAffinity ComputeRunningProcesses ComputeMode CudaComputeCapability CpuAffinity"
    )
    fails = {f"nvmlDeviceGet{detail}": NO_PERMISSION for detail in details.split()}
    gpu = the_only(read_gpus(Recorded({"nvmlDeviceGetCount": 1, **H200}, fails)))
    assert (gpu.name, gpu.bus_id, gpu.mig, gpu.processes) == ("unknown GPU", "", False, ())
    assert (gpu.compute_mode, gpu.compute_capability, gpu.cpu_affinity) == (None, None, ())
    assert gpu.total_bytes == H200_TOTAL


def test_a_card_near_no_node_or_several_has_no_node() -> None:
    """One bit is an answer; more are the absence of one."""
    for mask in ([0] * 16, [3] + [0] * 15):
        nvml = Recorded({"nvmlDeviceGetCount": 1, **H200, ("nvmlDeviceGetMemoryAffinity", "GPU-h200", 16, 0): mask})
        assert the_only(read_gpus(nvml)).numa_node is None
    far = Recorded({"nvmlDeviceGetCount": 1, **H200, ("nvmlDeviceGetMemoryAffinity", "GPU-h200", 16, 0): [0, 1]})
    assert the_only(read_gpus(far)).numa_node == 64


@pytest.mark.parametrize("error", [UNKNOWN, 13, 25])
def test_under_wsl_the_first_version_of_the_memory_figures_is_used(error: int) -> None:
    """Version 2 raises there, and on old drivers; version 1 counts what is reserved as used."""
    uuid = "GPU-4090"
    nvml = Recorded(
        TWO | {("nvmlDeviceGetComputeRunningProcesses", uuid): [row(77, None)]},
        fails={("nvmlDeviceGetMemoryInfo", uuid, 2): error},
    )
    gpu = read_gpus(nvml)[1]
    assert (gpu.total_bytes, gpu.reserved_bytes, gpu.used_bytes) == (24_564 * MIB, 0, 1320 * MIB)
    assert gpu.free_bytes == 24_564 * MIB - gpu.used_bytes
    assert gpu.processes == (GpuProcess(77, None),)


def test_a_card_that_shares_the_hosts_memory_has_no_total() -> None:
    """Both versions are refused there, or answer zeros: count the host's memory."""
    refused = Recorded({"nvmlDeviceGetCount": 1, **H200}, fails={"nvmlDeviceGetMemoryInfo": NOT_SUPPORTED})
    zeros = Recorded({"nvmlDeviceGetCount": 1, **a_card(0, "GPU-spark", "NVIDIA GB10", total=0)})
    for nvml in (refused, zeros):
        gpu = the_only(read_gpus(nvml))
        assert (gpu.total_bytes, gpu.free_bytes, gpu.reserved_bytes, gpu.used_bytes) == (None, 0, 0, 0)


def test_a_card_whose_memory_may_not_be_read_is_left_out() -> None:
    """It is not mistaken for one that shares the host's memory."""
    assert read_gpus(Recorded(TWO, fails={"nvmlDeviceGetMemoryInfo": LOST})) == ()


def test_a_process_is_listed_once_with_the_most_that_is_told_of_it() -> None:
    """Computing, drawing and MPS clients are three lists of the same processes."""
    uuid = "GPU-h200"
    nvml = Recorded(
        TWO
        | {
            ("nvmlDeviceGetComputeRunningProcesses", uuid): [row(20, 69_206_016), row(10, 2_508_193_792)],
            ("nvmlDeviceGetMPSComputeRunningProcesses", uuid): [row(10, 2_508_193_792), row(30, 641_728_512)],
            ("nvmlDeviceGetGraphicsRunningProcesses", uuid): [row(20, None)],
        }
    )
    assert read_gpus(nvml)[0].processes == (
        GpuProcess(10, 2_508_193_792),
        GpuProcess(20, 69_206_016),
        GpuProcess(30, 641_728_512),
    )
    assert process_bytes(uuid, 10, nvml) == 2_508_193_792
    assert process_bytes(uuid, 99, nvml) is None
    assert process_bytes("GPU-gone", 10, nvml) is None


@pytest.mark.parametrize("told", [None, 0, 2**64 - 1])
def test_a_container_without_figures_per_process_says_so(told: int | None) -> None:
    """None, zero and the largest number all mean that the driver does not know."""
    nvml = Recorded(TWO | {("nvmlDeviceGetComputeRunningProcesses", "GPU-h200"): [row(4242, told)]})
    assert read_gpus(nvml)[0].processes == (GpuProcess(4242, None),)
    assert process_bytes("GPU-h200", 4242, nvml) is None


def an_a100_with_mig() -> dict[Any, Any]:
    """An A100 cut in two, as a container sees it that may not look at the whole card."""
    answers = {"nvmlDeviceGetCount": 1, **a_card(0, "GPU-a100", "NVIDIA A100-SXM4-40GB", total=40_960 * MIB)}
    answers |= {("nvmlDeviceGetMigMode", "GPU-a100"): [1, 1], ("nvmlDeviceGetMaxMigDeviceCount", "GPU-a100"): 7}
    for place, (uuid, mib) in {0: ("MIG-aaaa", 19_968), 3: ("MIG-bbbb", 4_864)}.items():
        answers |= a_card(9, uuid, f"NVIDIA A100-SXM4-40GB MIG {place}", total=mib * MIB)
        answers |= {
            ("nvmlDeviceGetMigDeviceHandleByIndex", "GPU-a100", place): uuid,
            ("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", uuid): "GPU-a100",
        }
    return answers


WHOLE_CARD_DENIED = {
    ("nvmlDeviceGetMemoryInfo", "GPU-a100"): NO_PERMISSION,
    ("nvmlDeviceGetMemoryInfo", "GPU-a100", 2): NO_PERMISSION,
    ("nvmlDeviceGetMigDeviceHandleByIndex", "GPU-a100", 1): NO_PERMISSION,
    ("nvmlDeviceGetMigDeviceHandleByIndex", "GPU-a100", 2): NOT_FOUND,
}


def test_a_card_in_mig_mode_is_its_instances() -> None:
    """Each has its own UUID and memory and the card's index; the card itself cannot run anything."""
    gpus = read_gpus(Recorded(an_a100_with_mig(), WHOLE_CARD_DENIED))
    assert [(gpu.index, gpu.uuid, gpu.total_bytes, gpu.mig) for gpu in gpus] == [
        (0, "MIG-aaaa", 19_968 * MIB, True),
        (0, "MIG-bbbb", 4_864 * MIB, True),
    ]
    assert {gpu.bus_id for gpu in gpus} == {"00000000:00:00.0"}


def test_a_mig_instance_can_be_read_again_by_its_uuid() -> None:
    """With the same answer, its card's index included."""
    nvml = Recorded(an_a100_with_mig(), WHOLE_CARD_DENIED)
    assert read_gpu("MIG-bbbb", nvml) == read_gpus(nvml)[1]


def test_a_card_in_mig_mode_without_instances_is_no_device() -> None:
    """CUDA finds nothing there either."""
    assert read_gpus(Recorded(an_a100_with_mig(), fails={"nvmlDeviceGetMigDeviceHandleByIndex": NOT_FOUND})) == ()


def test_one_gpu_can_be_read_again_by_its_uuid() -> None:
    """Free memory is read again before each start; a card that is gone is None."""
    nvml = Recorded(TWO)
    assert read_gpu("GPU-4090", nvml) == read_gpus(nvml)[1]
    assert read_gpu("GPU-gone", nvml) is None


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, ["GPU-h200", "GPU-4090"]),
        ("0,1", ["GPU-h200", "GPU-4090"]),
        ("1, 0", ["GPU-4090", "GPU-h200"]),
        ("1", ["GPU-4090"]),
        ("1,1", ["GPU-4090"]),
        ("GPU-4090", ["GPU-4090"]),
        ("gpu-4,GPU-h2", ["GPU-4090", "GPU-h200"]),
        ("GPU-", []),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,7,0", ["GPU-4090"]),
    ],
)
def test_cuda_visible_devices_limits_and_orders_the_gpus(visible: str | None, uuids: list[str]) -> None:
    """As CUDA reads it: the first entry that names nothing ends the list."""
    assert [gpu.uuid for gpu in read_gpus(Recorded(TWO), visible)] == uuids


def test_the_number_of_a_card_in_mig_mode_names_all_its_instances() -> None:
    """They share the card's number."""
    assert len(read_gpus(Recorded(an_a100_with_mig()), "0")) == 2
    assert [gpu.uuid for gpu in read_gpus(Recorded(an_a100_with_mig()), "MIG-b")] == ["MIG-bbbb"]


def test_a_card_at_work_is_read_with_what_it_is_doing() -> None:
    """Power in watts, though NVML counts in thousandths of them."""
    nvml = Recorded({"nvmlDeviceGetCount": 1, **H200, **busy("GPU-h200")})
    assert read_live(nvml) == (
        GpuReading(
            gpu=the_only(read_gpus(nvml)),
            utilization_percent=87,
            temperature_c=54,
            power_w=412.345,
            power_limit_w=700.0,
            sm_clock_mhz=1980,
            memory_clock_mhz=3201,
        ),
    )


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
def test_a_card_that_tells_nothing_of_its_work_is_still_shown(error: int) -> None:
    """Laptops tell no power, containers and WSL no clocks; the memory is what everyone tells."""
    questions = ("UtilizationRates", "Temperature", "PowerUsage", "EnforcedPowerLimit", "ClockInfo")
    nvml = Recorded({**TWO, **busy("GPU-h200")}, fails={f"nvmlDeviceGet{question}": error for question in questions})
    assert read_live(nvml) == tuple(GpuReading(gpu) for gpu in read_gpus(nvml))


def test_the_instances_of_a_card_share_its_heat_and_not_its_load() -> None:
    """A card in MIG mode does not tell how busy it is, and its figure would not be that of an instance."""
    nvml = Recorded(an_a100_with_mig() | busy("GPU-a100"), WHOLE_CARD_DENIED)
    assert [(reading.gpu.uuid, reading.utilization_percent, reading.temperature_c) for reading in read_live(nvml)] == [
        ("MIG-aaaa", None, 54),
        ("MIG-bbbb", None, 54),
    ]


def test_live_readings_follow_cuda_visible_devices_too() -> None:
    """In the same order as the plan's GPUs."""
    nvml = Recorded({**TWO, **busy("GPU-h200")})
    assert [reading.gpu for reading in read_live(nvml, "1,0")] == list(read_gpus(nvml, "1,0"))
    assert read_live(nvml, "7") == ()


def test_one_gpu_can_be_read_live_by_its_uuid() -> None:
    """For the status: the reading of that device, and None of one that is gone."""
    nvml = Recorded({**TWO, **busy("GPU-h200")})
    assert read_gpu_live("GPU-h200", nvml) == read_live(nvml)[0]
    assert read_gpu_live("GPU-gone", nvml) is None


@pytest.mark.parametrize(
    "question",
    ["UUID", "MemoryInfo", "Name", "ComputeRunningProcesses", "CpuAffinity", "UtilizationRates", "PowerUsage"],
)
def test_a_card_that_is_lost_between_two_questions_is_left_out(question: str) -> None:
    """Half a reading of a card that is gone is worth nothing, and its neighbour is read as ever."""
    nvml = Recorded({**TWO, **busy("GPU-h200")}, lost_at=(f"nvmlDeviceGet{question}", "GPU-h200"))
    assert [reading.gpu.uuid for reading in read_live(nvml)] == ["GPU-4090"]
    assert [gpu.uuid for gpu in read_gpus(nvml)] == ["GPU-4090"]
    assert read_gpu("GPU-h200", nvml) is None
    assert process_bytes("GPU-h200", 1, nvml) is None


def test_a_card_taken_out_between_counting_and_reading_is_left_out() -> None:
    """Its number leads nowhere any more."""
    nvml = Recorded(TWO, fails={("nvmlDeviceGetHandleByIndex", 1): NO_LONGER_FOUND})
    assert [reading.gpu.uuid for reading in read_live(nvml)] == ["GPU-h200"]


def test_an_instance_that_is_destroyed_does_not_take_its_sister_with_it() -> None:
    """Whoever may configure the card may do so at any time."""
    nvml = Recorded(an_a100_with_mig(), WHOLE_CARD_DENIED, lost_at=("nvmlDeviceGetUUID", "MIG-aaaa"))
    assert [gpu.uuid for gpu in read_gpus(nvml)] == ["MIG-bbbb"]


@pytest.mark.parametrize("told", ["580.159.03", b"580.159.03"])
def test_the_drivers_version_is_told(told: str | bytes) -> None:
    """A footprint measured under another driver is not believed."""
    assert driver_version(Recorded({"nvmlSystemGetDriverVersion": told})) == "580.159.03"


def test_without_a_driver_there_is_no_version_and_nothing_live() -> None:
    """Nor where the driver does not tell."""
    assert driver_version(Recorded({})) is None
    absent = Recorded(TWO, fails={"nvmlInit": NO_LIBRARY})
    assert (driver_version(absent), read_live(absent)) == (None, ())


def test_every_session_that_was_opened_is_closed() -> None:
    """Also when devices fail; a session held open outside stays open."""
    nvml = Recorded(TWO, fails={"nvmlDeviceGetHandleByIndex": LOST})
    with session(nvml) as usable:
        assert usable
        for ask in (read_gpus, read_live, driver_version, why_none):
            ask(nvml)
        read_gpu("GPU-gone", nvml)
        process_bytes("GPU-h200", 1, nvml)
        assert nvml.open_sessions == 1
    assert nvml.open_sessions == 0


def test_a_shutdown_that_fails_is_no_error() -> None:
    """The driver may have gone in the meantime."""
    assert len(read_gpus(Recorded(TWO, fails={"nvmlShutdown": UNKNOWN}))) == 2
