"""What a footprint is made of, and what people are told of it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.planning.footprint import (
    Footprint,
    How,
    Measurement,
    Parts,
    after_out_of_memory,
    believe,
    declared,
    explain,
    resident,
    was_disturbed,
)
from orch.planning.sizes import GIB, MIB
from orch.supervising.measure import CPU, footprint_of

NOBODY: frozenset[int] = frozenset()
ME = frozenset({os.getpid()})
STAGES = {"context_bytes": 612 * MIB, "loaded_bytes": 698 * MIB, "warm_bytes": 1398 * MIB}


def parts_of(total_bytes: int, **seen: Any) -> Parts | None:
    """How the driver's figure for a process is divided, with what else was seen."""
    found = believe(Measurement(process_bytes=total_bytes, **seen))
    assert found is not None
    return found.parts


def test_each_part_is_what_one_stage_added() -> None:
    """Context, weights, activations; and what came after warm-up."""
    assert parts_of(1400 * MIB, **STAGES) == Parts(612 * MIB, 86 * MIB, 700 * MIB, 2 * MIB)


@given(
    total=st.integers(1, 200 * GIB),
    context=st.none() | st.integers(0, 200 * GIB),
    loaded=st.integers(0, 200 * GIB),
    torch_loaded=st.none() | st.integers(0, 200 * GIB),
    warm=st.integers(0, 200 * GIB),
)
def test_the_parts_are_never_negative_and_add_up(
    total: int, context: int | None, loaded: int, torch_loaded: int | None, warm: int
) -> None:
    """Whatever neighbours did to the figures meanwhile."""
    seen = Measurement(
        total, context_bytes=context, loaded_bytes=loaded, torch_loaded_bytes=torch_loaded, warm_bytes=warm
    )
    found = believe(seen)
    assert found is not None
    assert found.parts is not None
    parts = found.parts
    assert parts.total_bytes == found.device_bytes == total
    assert min(parts.context_bytes, parts.weights_bytes, parts.activation_bytes, parts.other_bytes) >= 0


def test_a_model_that_imports_torch_while_it_loads_has_a_context_too() -> None:
    """What the process holds then, less what torch reserved."""
    parts = parts_of(9 * GIB, loaded_bytes=8 * GIB, torch_loaded_bytes=7 * GIB, warm_bytes=9 * GIB)
    assert parts == Parts(1 * GIB, 7 * GIB, 1 * GIB, 0)


def test_without_torch_the_context_stays_with_the_weights() -> None:
    """Nobody can tell them apart; the name says so."""
    found = believe(Measurement(3 * GIB, loaded_bytes=2 * GIB, warm_bytes=3 * GIB))
    assert found is not None
    assert found.parts == Parts(0, 2 * GIB, 1 * GIB, 0)
    assert explain(found).startswith("2.0 GiB context and weights + 1.0 GiB activations and workspaces = 3.0 GiB")


@pytest.mark.parametrize("missing", ["loaded_bytes", "warm_bytes"])
def test_without_the_stages_there_are_no_parts(missing: str) -> None:
    """The total stands alone."""
    stages = {name: num_bytes for name, num_bytes in STAGES.items() if name != missing}
    assert parts_of(1400 * MIB, **stages) is None


def test_the_sum_is_told_with_its_source_and_its_knob() -> None:
    """One line: the parts, the total, how it was measured, what to turn."""
    footprint = Footprint(1398 * MIB, None, How.PROCESS, Parts(612 * MIB, 86 * MIB, 700 * MIB, 0))
    assert explain(footprint) == (
        "612.0 MiB context + 86.0 MiB weights + 700.0 MiB activations and workspaces = 1.4 GiB,"
        " measured as what the driver counts for the process; lower --max-batch-size for less"
    )


@pytest.mark.parametrize(
    ("parts", "knob"),
    [
        (Parts(1, 2, 3, 0), "lower --max-batch-size for less"),
        (Parts(1, 3, 2, 0), "weights of a smaller type take less, and so does a lower --max-batch-size"),
        (Parts(3, 2, 1, 0), "most of it is the price of a process, whatever the model"),
    ],
)
def test_the_knob_is_that_of_the_largest_part(parts: Parts, knob: str) -> None:
    """Smaller batches make no weights smaller."""
    assert explain(Footprint(6, None, How.PROCESS, parts)).endswith(f"; {knob}")


@pytest.mark.parametrize(
    ("footprint", "told"),
    [
        (declared(7 * GIB), "7.0 GiB, declared"),
        (resident(300 * MIB), "300.0 MiB, measured as the process's resident memory"),
        (Footprint(2 * GIB, GIB, How.DEVICE), "2.0 GiB, measured as what the device's free memory fell by"),
    ],
)
def test_a_footprint_without_parts_is_told_by_its_source(footprint: Footprint, told: str) -> None:
    """As far as it is known."""
    assert explain(footprint) == told


def test_what_a_worker_noted_becomes_the_parts() -> None:
    """On a device that no driver knows, torch's peak is the total, and the stages divide it."""
    facts = {**STAGES, "torch_loaded_bytes": 86 * MIB, "torch_reserved_bytes": 786 * MIB}
    found = footprint_of(ME, "GPU-that-is-not-there", None, NOBODY, facts, alone=True)
    assert found is not None
    total = 786 * MIB + int(612 * MIB * 1.2)  # the context, and what libraries add to it
    assert (found.device_bytes, found.how) == (total, How.TORCH)
    assert found.parts == Parts(612 * MIB, 86 * MIB, 700 * MIB, total - 1398 * MIB)


def test_a_worker_that_noted_nothing_has_no_parts() -> None:
    """As before there were stages."""
    found = footprint_of(ME, "GPU-that-is-not-there", None, NOBODY, {"torch_reserved_bytes": MIB}, alone=True)
    assert found is not None
    assert found.parts is None
    nothing = {"torch_reserved_bytes": 0}
    assert footprint_of(ME, "GPU-that-is-not-there", None, NOBODY, nothing, alone=True) is None
    on_cpu = footprint_of(ME, CPU, None, NOBODY, {}, alone=True)
    assert on_cpu is not None
    assert (on_cpu.device_bytes, on_cpu.parts) == (0, None)


# --- what disturbs a measurement -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "listed", "disturbed"),
    [
        ({}, {}, True, False),
        ({7: 5 * GIB}, {7: 5 * GIB}, True, False),
        ({7: 5 * GIB}, {7: 5 * GIB, 99: 2 * GIB}, False, False),  # the worker itself, under another number
        ({7: 5 * GIB}, {7: 5 * GIB, 99: None}, False, False),
        ({7: 5 * GIB}, {7: 5 * GIB, 99: 2 * GIB}, True, True),  # it is listed under its own: somebody else came
        ({}, {98: None, 99: None}, False, True),
        ({7: 5 * GIB}, {}, True, True),  # one went
        ({7: None}, {}, False, True),
        ({7: 5 * GIB}, {7: 6 * GIB}, True, True),  # one grew
        ({7: 5 * GIB}, {7: 5 * GIB + 10 * MIB}, True, False),
        ({}, {66: 69_206_016}, True, False),  # the MPS server, which comes with its first client
    ],
)
def test_neighbours_that_move_disturb_a_measurement(
    before: dict[int, int | None], after: dict[int, int | None], listed: bool, disturbed: bool
) -> None:
    """By more than a trifle."""
    assert was_disturbed(before, after, listed=listed) is disturbed


def test_a_replica_stopped_by_its_fence_needs_more_than_the_fence() -> None:
    """The card had room enough; the next try gets a quarter more."""
    known = Footprint(4 * GIB, GIB, How.PROCESS)
    found = after_out_of_memory(known, held_bytes=3 * GIB, fence_bytes=5 * GIB, free_bytes=90 * GIB)
    assert found == Footprint(int(6.25 * GIB), GIB, How.OUT_OF_MEMORY)
    assert "memory ran out" in explain(found)


def test_a_replica_that_held_more_than_planned_is_planned_larger() -> None:
    """Without a fence what it held is all that is known."""
    known = Footprint(4 * GIB, GIB, How.PROCESS)
    found = after_out_of_memory(known, held_bytes=8 * GIB, fence_bytes=None, free_bytes=8 * GIB)
    assert found is not None
    assert found.device_bytes == 10 * GIB


def test_a_device_that_was_full_says_nothing_of_the_replica() -> None:
    """Somebody else had the memory: the plan changes with what is free, not the cost."""
    known = Footprint(4 * GIB, GIB, How.PROCESS)
    assert after_out_of_memory(known, held_bytes=2 * GIB, fence_bytes=5 * GIB, free_bytes=2 * GIB) is None
    assert after_out_of_memory(known, held_bytes=None, fence_bytes=None, free_bytes=None) is None
