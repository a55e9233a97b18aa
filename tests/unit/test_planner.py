"""How many replicas, on which GPUs, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.errors import ConfigError, DoesNotFit
from orch.planning.cards import Gpu, GpuProcess, parse_card
from orch.planning.footprint import Footprint, How, Measurement, believe, declared, resident
from orch.planning.planner import Host, Limit, Plan, PlanRequest, held_by_us, pick_gpu, plan
from orch.planning.sizes import GIB, MIB

HOST = Host(memory_total_bytes=1024 * GIB, memory_available_bytes=1000 * GIB, cores=64)
SEVEN_GIB = declared(7 * GIB)
H200_RESERVED = 644_939_776


def a_gpu(uuid: str, total_mib: int, *, used: int = 0, reserved: int = 0, name: str = "NVIDIA card") -> Gpu:
    """A card with this much memory, of which others use some."""
    total = total_mib * MIB
    return Gpu(0, uuid, name, "", total, total - used - reserved, reserved, used)


H200 = a_gpu("GPU-h200", 143_771, reserved=H200_RESERVED, name="NVIDIA H200")
RTX_4090 = a_gpu("GPU-4090", 24_564, reserved=420 * MIB, name="NVIDIA GeForce RTX 4090")


def planned(*gpus: Gpu, footprint: Footprint | None = SEVEN_GIB, host: Host = HOST, **rest: Any) -> Plan:
    """The plan for these GPUs on a host that limits nothing."""
    return plan(PlanRequest(host, gpus, footprint, **rest))


def on_cpu(cores: int, *, memory_gib: int = 1024, host_gib: int = 1, **rest: Any) -> Plan:
    """The plan for a machine without GPUs, for a replica of so many GiB."""
    host = Host(memory_gib * GIB, memory_gib * GIB, cores)
    return plan(PlanRequest(host, footprint=resident(host_gib * GIB), **rest))


# --- one GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [a_gpu("GPU-24", 24 * 1024), RTX_4090, parse_card("rtx-4090"), parse_card("x:24GiB")])
def test_a_24_gib_card_holds_three_replicas_of_7_gib(gpu: Gpu) -> None:
    """The card that is there and the one that is only planned for."""
    made = planned(gpu)
    assert (made.total, made.placement, made.limit) == (3, ((gpu.uuid, 3),), Limit.MEMORY)


def test_an_h200_holds_18_replicas_of_7_gib_by_memory() -> None:
    """0.92 of 143,771 MiB is 18.45 times 7 GiB."""
    made = planned(H200)
    assert (made.total, made.placement, made.limit) == (18, (("GPU-h200", 18),), Limit.MEMORY)


def test_the_plan_shows_the_whole_sum() -> None:
    """Every figure that went in, and last the limit that binds."""
    cost, card, verdict = planned(H200).because
    assert cost == "a replica costs 7.0 GiB of device memory (declared)"
    assert card == (
        "gpu 0 (NVIDIA H200): the smaller of 140.4 GiB x 0.92 = 129.2 GiB"
        " and 140.4 GiB - 615.1 MiB reserved - 0 B of others - 256.0 MiB headroom = 139.6 GiB;"
        " 129.2 GiB / 7.0 GiB = 18.45, so 18"
    )
    assert verdict == "the limit is memory: 18 replicas"


def test_another_tenant_shrinks_the_plan() -> None:
    """40 GiB of another process leave 14 of 18."""
    assert planned(replace(H200, used_bytes=40 * GIB)).total == 14


def test_what_our_own_replicas_hold_is_not_a_tenants() -> None:
    """A plan made while replicas run is the plan made before."""
    running = replace(H200, used_bytes=5 * 7 * GIB)
    assert planned(running, ours_bytes={"GPU-h200": 5 * 7 * GIB}) == planned(H200)


def test_the_drivers_reserve_and_the_headroom_stay_free() -> None:
    """With all of the card asked for, they still do not fit in what is free."""
    card = a_gpu("GPU-14", 14 * 1024)
    assert planned(card, gpu_utilization=1.0).total == 1
    assert planned(a_gpu("GPU-14", 14 * 1024 + 256), gpu_utilization=1.0).total == 2
    assert planned(a_gpu("GPU-14", 14 * 1024 + 256, reserved=1), gpu_utilization=1.0).total == 1


def test_the_utilization_can_be_set() -> None:
    """It replaces the card's own share."""
    assert planned(RTX_4090, gpu_utilization=0.5).total == 1


def test_the_clients_of_an_mps_server_limit_each_gpu() -> None:
    """And the plan says that they do."""
    made = planned(H200, a_gpu("GPU-2", 143_771), max_clients_per_gpu=16)
    assert (made.total, made.limit) == (32, Limit.CLIENTS)
    assert "and an MPS server takes 16" in made.because[1]
    assert planned(H200, max_clients_per_gpu=48).limit is Limit.MEMORY


def test_the_hosts_memory_limits_all_gpus_together() -> None:
    """0.8 of 100 GiB holds 8 replicas of 10 GiB."""
    footprint = Footprint(7 * GIB, 10 * GIB, How.PROCESS)
    made = planned(H200, RTX_4090, footprint=footprint, host=Host(100 * GIB, 90 * GIB, 64))
    assert (made.total, made.limit) == (8, Limit.HOST_MEMORY)
    assert "100.0 GiB x 0.8 = 80.0 GiB; 80.0 GiB / 10.0 GiB = 8.00, so 8" in made.because[-2]


def test_each_kind_of_card_is_measured_once_before_it_is_filled() -> None:
    """Replica 0 probes the roomiest card; then its kind is filled while one replica probes the other kind."""
    cards = (RTX_4090, a_gpu("GPU-second", 24_564, name=RTX_4090.name), H200)
    first = planned(*cards, footprint=None)
    assert (first.total, first.limit, first.placement) == (1, Limit.PROBE, (("GPU-h200", 1),))

    on_h200 = Footprint(20 * GIB, None, How.PROCESS)
    second = planned(*cards, footprint=None, measured={H200.name: on_h200})
    assert (second.total, second.limit) == (7, Limit.PROBE)  # floor(129.2 / 20) = 6, and one probe on the two 4090s
    assert dict(second.placement) == {"GPU-h200": 6, RTX_4090.uuid: 1}

    on_4090 = Footprint(10 * GIB, None, How.PROCESS)
    third = planned(*cards, footprint=None, measured={H200.name: on_h200, RTX_4090.name: on_4090})
    assert (third.total, third.limit) == (10, Limit.MEMORY)
    assert dict(third.placement) == {"GPU-h200": 6, RTX_4090.uuid: 2, "GPU-second": 2}
    assert third.because[0].startswith(f"a replica costs on {H200.name} 20.0 GiB")


def test_a_count_that_one_kind_holds_needs_no_other_probe() -> None:
    """And one that it does not hold is not refused before the other kind was measured."""
    known = {H200.name: Footprint(20 * GIB, None, How.PROCESS)}
    assert planned(RTX_4090, H200, footprint=None, measured=known, wanted=3).limit is Limit.ASKED
    probing = planned(RTX_4090, H200, footprint=None, measured=known, wanted=9)
    assert (probing.total, probing.limit) == (7, Limit.PROBE)


def test_the_plan_says_what_will_be_used() -> None:
    """Others' bytes, and ours."""
    tenant = a_gpu("GPU-busy", 143_771, used=40 * GIB)
    made = planned(tenant, wanted=3)
    assert made.used_bytes == {"GPU-busy": 40 * GIB + 3 * 7 * GIB}


def test_a_card_that_shares_the_hosts_memory_is_planned_with_that() -> None:
    """What a replica holds on the host comes out of the same total, and so does what others use."""
    spark = Gpu(0, "GPU-spark", "NVIDIA GB10", "", None, 0, 0, 0)
    footprint = Footprint(7 * GIB, 1 * GIB, How.TORCH)
    host = Host(memory_total_bytes=120 * GIB, memory_available_bytes=119 * GIB, cores=20)
    assert planned(spark, footprint=footprint, host=host).total == 12  # 0.8 of 120 GiB, 8 GiB each
    busy = replace(host, memory_available_bytes=40 * GIB)
    assert planned(spark, footprint=footprint, host=busy).total == 4
    ours = {"GPU-spark": 16 * GIB}
    assert planned(spark, footprint=footprint, host=busy, ours_bytes=ours).total == 6


def test_a_replica_that_holds_nothing_on_the_gpu_is_planned_with_a_context() -> None:
    """And the user is asked whether the model is there at all."""
    made = planned(RTX_4090, footprint=Footprint(0, GIB, How.DEVICE))
    assert 0 < made.total < 1000
    assert any("is the model on the GPU at all?" in sentence for sentence in made.because)


# --- several GPUs --------------------------------------------------------------------------------------------------


def test_every_card_has_its_own_count() -> None:
    """Unequal cards are each filled; the one with most room comes first."""
    made = planned(RTX_4090, H200)
    assert (made.total, made.placement) == (21, (("GPU-h200", 18), ("GPU-4090", 3)))


def test_few_replicas_go_to_the_cards_with_most_room() -> None:
    """One each on equal cards; all on the large one of an unequal pair."""
    equal = [a_gpu("GPU-a", 24_564), a_gpu("GPU-b", 24_564)]
    assert planned(*equal, wanted=2).placement == (("GPU-a", 1), ("GPU-b", 1))
    assert planned(*equal, wanted=3).placement == (("GPU-a", 2), ("GPU-b", 1))
    assert planned(RTX_4090, H200, wanted=2).placement == (("GPU-h200", 2),)


def test_a_card_without_room_gets_nothing() -> None:
    """The others go on."""
    full = a_gpu("GPU-full", 24_564, used=24_000 * MIB)
    made = planned(full, RTX_4090)
    assert made.placement == (("GPU-4090", 3),)
    assert any(", so 0" in sentence for sentence in made.because)


def test_the_next_replica_goes_where_most_is_free() -> None:
    """Among the GPUs that have fewer than planned; of equals, where fewest run, then the first."""
    planned_counts = {"a": 2, "b": 2, "c": 1}
    assert pick_gpu(planned_counts, {}, {"a": 5, "b": 9, "c": 7}) == "b"
    assert pick_gpu(planned_counts, {"b": 2}, {"a": 5, "b": 9, "c": 7}) == "c"
    assert pick_gpu(planned_counts, {"a": 1}, {"a": 5, "b": 5}) == "b"
    assert pick_gpu(planned_counts, {}, {}) == "a"
    assert pick_gpu(planned_counts, {"a": 2, "b": 2, "c": 1}, {"a": 5}) is None


# --- what was asked for --------------------------------------------------------------------------------------------


def test_a_count_that_fits_is_what_is_planned() -> None:
    """No more than asked for, and the plan says how many more would fit."""
    made = planned(H200, wanted=4)
    assert (made.total, made.limit, made.threads_per_replica) == (4, Limit.ASKED, 16)
    assert made.because[-1] == "asked for: 4 replicas, where 18 would fit"


def test_a_count_that_does_not_fit_is_refused_with_the_sum_and_the_knob() -> None:
    """The user learns how many would fit and what to change."""
    with pytest.raises(DoesNotFit) as caught:
        planned(H200, wanted=19)
    message = str(caught.value)
    assert message.startswith("19 replicas do not fit, 18 would (limit: memory)")
    for part in ("140.4 GiB x 0.92", "/ 7.0 GiB = 18.45", "--replicas", "--vram-per-replica", "gpu_utilization"):
        assert part in message


def test_not_even_one_is_refused_with_the_sum_and_the_knob() -> None:
    """A tenant took what was needed: the sum shows him."""
    with pytest.raises(DoesNotFit) as caught:
        planned(replace(RTX_4090, used_bytes=20 * GIB))
    message = str(caught.value)
    assert message.startswith("not one replica fits (limit: memory)")
    assert "20.0 GiB of others" in message
    assert "free memory on the GPU" in message


@pytest.mark.parametrize("wanted", [0, -1])
def test_no_replicas_cannot_be_planned(wanted: int) -> None:
    """Zero is a config error, not an empty plan."""
    with pytest.raises(ConfigError, match=f"replicas: {wanted}"):
        PlanRequest(HOST, wanted=wanted)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_outside_0_to_1_cannot_be_planned(share: float) -> None:
    """Nor one that is no number."""
    with pytest.raises(ConfigError, match="gpu_utilization"):
        PlanRequest(HOST, gpu_utilization=share)


# --- the probe -----------------------------------------------------------------------------------------------------


def test_before_anything_is_measured_the_plan_is_one_replica() -> None:
    """Replica 0 is the probe, on the GPU with most room."""
    made = planned(RTX_4090, H200, footprint=None)
    assert (made.total, made.placement, made.limit) == (1, (("GPU-h200", 1),), Limit.PROBE)
    assert made.because[-1] == "1 replica is started and measured"


def test_the_probe_has_the_threads_of_the_replica_it_will_be() -> None:
    """It stays, so it must not start with every core."""
    assert plan(PlanRequest(Host(8 * GIB, 8 * GIB, 2))).threads_per_replica == 1
    assert plan(PlanRequest(Host(8 * GIB, 8 * GIB, 32))).threads_per_replica == 4
    assert plan(PlanRequest(Host(8 * GIB, 8 * GIB, 32), wanted=2)).threads_per_replica == 16
    assert planned(H200, footprint=None, wanted=8).threads_per_replica == 8
    assert planned(H200, footprint=None).threads_per_replica == 4
    assert planned(H200, footprint=None, host=Host(GIB, GIB, 2)).threads_per_replica == 2


def test_what_can_never_fit_is_refused_before_the_probe() -> None:
    """No replica is smaller than a CUDA context; a full card or an absurd count need not be tried."""
    with pytest.raises(DoesNotFit, match="not one replica fits"):
        planned(a_gpu("GPU-full", 24_564, used=24_300 * MIB), footprint=None)
    with pytest.raises(DoesNotFit, match="5000 replicas do not fit"):
        planned(H200, footprint=None, wanted=5000)
    with pytest.raises(DoesNotFit, match=r"500 replicas do not fit, 32 would \(limit: cores\)"):
        plan(PlanRequest(Host(8 * GIB, 8 * GIB, 2), wanted=500))


# --- without a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "total", "threads"),
    [(1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 4, 1), (5, 4, 1), (8, 4, 2), (16, 4, 4), (17, 4, 4), (32, 8, 4), (64, 16, 4)],
)
def test_without_a_gpu_the_cores_are_shared_out(cores: int, total: int, threads: int) -> None:
    """One core a replica up to four, then four cores a replica."""
    made = on_cpu(cores)
    assert (made.total, made.threads_per_replica, made.limit, made.placement) == (total, threads, Limit.CORES, ())


def test_without_a_gpu_memory_limits_too() -> None:
    """0.8 of 4 GiB holds three replicas of 1 GiB, and each has more threads then."""
    made = on_cpu(32, memory_gib=4)
    assert (made.total, made.threads_per_replica, made.limit) == (3, 10, Limit.MEMORY)
    assert made.because == (
        "a replica costs 1.0 GiB of host memory (the process's resident memory)",
        "host memory: 4.0 GiB x 0.8 = 3.2 GiB; 3.2 GiB / 1.0 GiB = 3.20, so 3",
        "cores: 32, 4 for each replica but at least 4 replicas, so 8",
        "the limit is memory: 3 replicas",
    )


def test_more_replicas_than_cores_are_allowed_with_a_warning() -> None:
    """The user may know that they mostly wait."""
    made = on_cpu(2, wanted=6)
    assert (made.total, made.threads_per_replica, made.limit) == (6, 1, Limit.ASKED)
    assert "warning: 6 replicas share 2 cores, and will wait for each other" in made.because


def test_more_replicas_than_memory_or_16_a_core_are_refused() -> None:
    """Each with its own knob."""
    with pytest.raises(DoesNotFit, match=r"6 replicas do not fit, 3 would \(limit: memory\).*more memory"):
        on_cpu(2, memory_gib=4, wanted=6)
    with pytest.raises(DoesNotFit, match=r"33 replicas do not fit, 32 would \(limit: cores\).*more cores"):
        on_cpu(2, wanted=33)


def test_a_model_larger_than_the_machine_is_refused() -> None:
    """With the sum."""
    with pytest.raises(DoesNotFit, match=r"not one replica fits .*3.2 GiB / 4.0 GiB = 0.80, so 0"):
        on_cpu(2, memory_gib=4, host_gib=4)


def test_declared_device_memory_says_nothing_about_a_machine_without_a_gpu() -> None:
    """One replica is measured all the same."""
    made = plan(PlanRequest(HOST, footprint=SEVEN_GIB))
    assert (made.total, made.limit) == (1, Limit.PROBE)
    assert "there is no GPU, so a replica's device memory is not counted" in made.because


# --- invariants ----------------------------------------------------------------------------------------------------

MIBS = st.integers(min_value=0, max_value=200_000)
GPUS = st.lists(st.tuples(st.integers(1, 200_000), MIBS, MIBS), min_size=1, max_size=4)


@given(cards=GPUS, device=st.integers(64, 100_000), host_gib=st.integers(1, 64), clients=st.none() | st.integers(1, 60))
def test_no_plan_holds_more_than_there_is(
    cards: list[tuple[int, int, int]], device: int, host_gib: int, clients: int | None
) -> None:
    """What is placed fits in every limit, and one more would break the one that is named; or nothing fits."""
    gpus = [
        a_gpu(f"GPU-{i}", total, used=used * MIB, reserved=kept * MIB) for i, (total, used, kept) in enumerate(cards)
    ]
    footprint = Footprint(device * MIB, host_gib * GIB, How.PROCESS)
    try:
        made = planned(*gpus, footprint=footprint, max_clients_per_gpu=clients)
    except DoesNotFit:
        return
    assert made.total == sum(count for _, count in made.placement) >= 1
    assert made.total * host_gib * GIB <= 0.8 * HOST.memory_total_bytes
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    for uuid, count in made.placement:
        gpu = by_uuid[uuid]
        assert gpu.total_bytes is not None
        assert count * device * MIB + gpu.used_bytes + gpu.reserved_bytes + 256 * MIB <= gpu.total_bytes
        assert clients is None or count <= clients
    if made.limit is Limit.HOST_MEMORY:
        assert (made.total + 1) * host_gib * GIB > 0.8 * HOST.memory_total_bytes
    with pytest.raises(DoesNotFit):
        planned(*gpus, footprint=footprint, max_clients_per_gpu=clients, wanted=made.total + 1)
    assert planned(*gpus, footprint=footprint, max_clients_per_gpu=clients, wanted=made.total).total == made.total


# --- the footprint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "device_bytes", "how"),
    [
        (Measurement(process_bytes=9, device_fell_bytes=11, torch_reserved_bytes=7), 9, How.PROCESS),
        (Measurement(process_bytes=None, device_fell_bytes=11, torch_reserved_bytes=7), 11, How.DEVICE),
        (Measurement(process_bytes=0, device_fell_bytes=11), 11, How.DEVICE),
        (Measurement(process_bytes=6, device_fell_bytes=11, torch_reserved_bytes=7), 11, How.DEVICE),
        (Measurement(device_fell_bytes=11, disturbed=True, torch_reserved_bytes=7, context_bytes=2), 9, How.TORCH),
        (Measurement(device_fell_bytes=-5, torch_reserved_bytes=7, context_bytes=2), 9, How.TORCH),
        (Measurement(torch_reserved_bytes=7), 728_000_007, How.TORCH),
    ],
)
def test_the_best_measurement_is_believed(seen: Measurement, device_bytes: int, how: How) -> None:
    """The process's own figure, else what the device lost, else torch's; never one below what torch reserved."""
    assert believe(seen) == Footprint(device_bytes, None, how)


@pytest.mark.parametrize("seen", [Measurement(), Measurement(device_fell_bytes=5, disturbed=True)])
def test_without_a_measurement_there_is_no_footprint(seen: Measurement) -> None:
    """Guessing is not measuring."""
    assert believe(seen) is None


def test_the_host_memory_of_a_replica_is_kept_whichever_is_believed() -> None:
    """It limits the plan on GPUs too."""
    found = believe(Measurement(process_bytes=9, host_bytes=3))
    assert found is not None
    assert found.host_bytes == 3


def test_a_declared_footprint_below_a_cuda_context_is_refused() -> None:
    """7B where 7GiB was meant would plan a billion replicas."""
    assert declared(7 * GIB, GIB) == Footprint(7 * GIB, GIB, How.DECLARED)
    with pytest.raises(ConfigError, match="vram_per_replica: 7 B"):
        declared(7)


def test_what_we_hold_is_the_drivers_figure_or_else_the_footprint() -> None:
    """In a container the driver lists other process ids, or no figures."""
    gpu = replace(H200, processes=(GpuProcess(1, 5 * GIB), GpuProcess(2, None), GpuProcess(9, 3 * GIB)))
    assert held_by_us(gpu, frozenset({1, 2, 3}), 7 * GIB) == (5 + 7 + 7) * GIB
    assert held_by_us(gpu, frozenset(), 7 * GIB) == 0
