"""From recorded NVML answers to a plan: what `--replicas auto` would do on machines that are not here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orch.errors import DoesNotFit
from orch.planning.footprint import Footprint, How, Measurement, believe, declared
from orch.planning.gpu import process_bytes, read_gpus
from orch.planning.planner import Host, Limit, Plan, PlanRequest, held_by_us, plan
from orch.planning.sizes import GIB, MIB
from tests.unit.test_gpu import H200, RTX_4090, WHOLE_CARD_DENIED, Recorded, a_card, an_a100_with_mig, row

HOST = Host(memory_total_bytes=512 * GIB, memory_available_bytes=500 * GIB, cores=64)
RTX_5090 = a_card(0, "GPU-5090", "NVIDIA GeForce RTX 5090", total=32_607 * MIB, reserved=488 * MIB)
ONE = {"nvmlDeviceGetCount": 1}
WSL = {("nvmlDeviceGetMemoryInfo", "GPU-4090", 2): 999}  # "Unknown Error"


def planned(answers: Mapping[Any, Any], fails: Mapping[Any, int] | None = None, **request: Any) -> Plan:
    """The plan for a machine that answers so; replicas of 7 GiB unless something else is measured."""
    gpus = read_gpus(Recorded(answers, fails))
    footprint = None if "measured" in request else declared(7 * GIB)
    return plan(PlanRequest(HOST, gpus, footprint, **request))


@pytest.mark.parametrize(
    ("answers", "fails", "placement"),
    [
        # 24,564 MiB x 0.90 / 7,168 MiB = 3.08; used and reserved leave more than that.
        ({"nvmlDeviceGetCount": 2, **H200, **RTX_4090}, None, {"GPU-h200": 18, "GPU-4090": 3}),
        ({**ONE, **RTX_5090}, None, {"GPU-5090": 4}),  # 32,607 x 0.95 / 7,168 = 4.32
        ({**ONE, **H200}, None, {"GPU-h200": 18}),  # 143,771 x 0.92 / 7,168 = 18.45
        # 19,968 x 0.88 / 7,168 = 2.45, and nothing on the instance of 4,864 MiB; the card itself is no device.
        (an_a100_with_mig(), WHOLE_CARD_DENIED, {"MIG-aaaa": 2}),
        ({**ONE, **a_card(0, "GPU-4090", "NVIDIA GeForce RTX 4090", total=24_564 * MIB)}, WSL, {"GPU-4090": 3}),
    ],
    ids=["unequal: H200 and RTX 4090", "RTX 5090", "H200", "A100 with MIG", "WSL"],
)
def test_every_machine_has_its_plan(answers: Any, fails: Any, placement: Mapping[str, int]) -> None:
    """Replicas of 7 GiB, as many as memory holds."""
    made = planned(answers, fails)
    assert dict(made.placement) == placement
    assert (made.total, made.limit) == (sum(placement.values()), Limit.MEMORY)


def test_unequal_cards_are_probed_one_of_each() -> None:
    """Replica 0 on the roomier one; then the other kind; then both are filled, by what each costs there."""
    both = {"nvmlDeviceGetCount": 2, **H200, **RTX_4090}
    first = planned(both, measured={})
    assert (first.placement, first.limit) == ((("GPU-h200", 1),), Limit.PROBE)

    costs = {"NVIDIA H200": Footprint(10 * GIB, GIB, How.PROCESS)}
    second = planned(both, measured=costs)
    assert (dict(second.placement), second.limit) == ({"GPU-h200": 12, "GPU-4090": 1}, Limit.PROBE)

    costs["NVIDIA GeForce RTX 4090"] = Footprint(9 * GIB, GIB, How.PROCESS)
    third = planned(both, measured=costs)
    assert (dict(third.placement), third.limit) == ({"GPU-h200": 12, "GPU-4090": 2}, Limit.MEMORY)


def test_in_a_container_our_own_workers_are_counted_by_what_they_cost() -> None:
    """The driver lists other process ids and no figures: two replicas of 7 GiB stay ours, and are not others'."""
    used = 2 * 7 * GIB
    card = a_card(0, "GPU-h200", "NVIDIA H200", total=143_771 * MIB, reserved=615 * MIB, used=used)
    hidden = {**ONE, **card, ("nvmlDeviceGetComputeRunningProcesses", "GPU-h200"): [row(4242, None), row(4243, None)]}
    (gpu,) = read_gpus(Recorded(hidden))
    ours = held_by_us(gpu, frozenset({17, 18}), 7 * GIB)
    assert ours == used
    assert planned(hidden, ours_bytes={"GPU-h200": ours}).total == 18
    assert planned(hidden).total == 17  # had they been somebody else's: (140.4 - 0.6 - 14.0 - 0.2) / 7.0 = 17.94
    assert process_bytes("GPU-h200", 17, Recorded(hidden)) is None
    fell = Measurement(process_bytes=None, device_fell_bytes=7 * GIB, torch_reserved_bytes=6 * GIB)
    assert believe(fell) == Footprint(7 * GIB, None, How.DEVICE)


def test_under_wsl_what_is_reserved_counts_as_used() -> None:
    """Version 1 of the figures does not tell it apart; the plan is the smaller for it, never the larger."""
    card = a_card(0, "GPU-4090", "NVIDIA GeForce RTX 4090", total=24_564 * MIB, reserved=420 * MIB, used=10 * GIB)
    made = planned({**ONE, **card}, WSL)
    assert made.total == 1  # 24,564 - 10,660 - 256 = 13,648 MiB
    assert made.used_bytes == {"GPU-4090": 10 * GIB + 420 * MIB + 7 * GIB}


def test_a_gpu_that_disappears_takes_its_share_of_the_plan_along() -> None:
    """The others are planned as before; with none left it is an error that names no figure from before."""
    both = {"nvmlDeviceGetCount": 2, **H200, **RTX_4090}
    lost = {key: 15 for key in both if isinstance(key, tuple) and "GPU-h200" in key}
    assert dict(planned(both, lost).placement) == {"GPU-4090": 3}
    with pytest.raises(DoesNotFit, match="not one replica fits"):
        planned({**ONE, **a_card(0, "GPU-4090", "NVIDIA GeForce RTX 4090", total=24_564 * MIB, used=20 * GIB)})
