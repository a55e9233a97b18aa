"""Which cores the replicas of a plan are pinned to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.planning.cores import share_cores

# Two sockets, a GPU on each.
NODE_0, NODE_1 = range(8), range(8, 16)
NEAR: Mapping[str, Sequence[int]] = {"GPU-a": NODE_0, "GPU-b": NODE_1}
BOTH = range(16)


def on(*gpus: str) -> list[tuple[str, str]]:
    """A plan: r0 on the first of these, r1 on the second, and so on."""
    return [(f"r{slot}", gpu) for slot, gpu in enumerate(gpus)]


def shared(
    available: Sequence[int], near: Mapping[str, Sequence[int]], replicas: Sequence[tuple[str, str]]
) -> dict[str, tuple[int, ...]]:
    """The sets, after what holds for all of them was seen to hold."""
    found = share_cores(available, near, replicas)
    assert found is not None
    assert list(found) == [replica for replica, _gpu in replicas]
    assert all(cores and list(cores) == sorted(set(cores)) for cores in found.values())
    assert all(set(cores) <= set(available) for cores in found.values())
    assert not any(set(one) & set(other) for one, other in combinations(found.values(), 2))
    return dict(found)


def test_the_replicas_of_one_gpu_share_the_cores_near_it() -> None:
    """Evenly, in runs of neighbours; the far socket is left alone."""
    assert shared(BOTH, NEAR, on("GPU-b", "GPU-b")) == {"r0": (8, 9, 10, 11), "r1": (12, 13, 14, 15)}


def test_each_gpu_keeps_its_replicas_on_its_own_socket() -> None:
    """The number of replicas elsewhere changes nothing here."""
    found = shared(BOTH, NEAR, on("GPU-a", "GPU-b", "GPU-b", "GPU-a"))
    assert found == {"r0": (0, 1, 2, 3), "r1": (8, 9, 10, 11), "r2": (12, 13, 14, 15), "r3": (4, 5, 6, 7)}


def test_cores_that_cannot_be_shared_out_evenly_go_to_the_first_slots() -> None:
    """Nobody has more than one core over another."""
    assert [len(cores) for cores in shared(NODE_0, NEAR, on("GPU-a", "GPU-a", "GPU-a")).values()] == [3, 3, 2]


def test_with_fewer_cores_than_replicas_nothing_is_pinned() -> None:
    """Two replicas on one core would be worse off than with none promised."""
    assert share_cores((0, 1), {}, on("cpu", "cpu", "cpu")) is None
    assert share_cores((), {}, on("cpu")) is None


def test_with_as_many_cores_as_replicas_each_has_one() -> None:
    """The last plan that can be pinned."""
    assert shared((4, 2, 9), {}, on("cpu", "cpu", "cpu")) == {"r0": (2,), "r1": (4,), "r2": (9,)}


def test_a_plan_without_replicas_pins_none() -> None:
    """Not even where there are no cores."""
    assert share_cores((), {}, ()) == {}


def test_replicas_beyond_the_near_cores_go_further_away() -> None:
    """A far core is better than none, and the near ones keep theirs."""
    found = shared(range(6), {"GPU-a": (0, 1)}, on("GPU-a", "GPU-a", "GPU-a"))
    assert found == {"r0": (0,), "r1": (1,), "r2": (2, 3, 4, 5)}


@pytest.mark.parametrize("near", [{}, {"GPU-a": ()}, {"GPU-a": (64, 65)}])
def test_a_gpu_with_no_core_near_it_takes_any(near: Mapping[str, Sequence[int]]) -> None:
    """The driver names none, or a container has only cores of the other socket."""
    assert shared(range(4), near, on("GPU-a", "GPU-a")) == {"r0": (0, 1), "r1": (2, 3)}


def test_replicas_that_may_run_anywhere_leave_the_near_cores_to_those_that_need_them() -> None:
    """Those with the least choice choose first, whatever their slot."""
    assert shared(range(4), {"GPU-a": (0, 1)}, on("cpu", "GPU-a")) == {"r0": (2, 3), "r1": (0, 1)}


def test_cores_that_are_not_available_are_never_used() -> None:
    """Affinity and containers take cores away in the middle of a node."""
    assert shared((1, 3, 5, 7, 9), NEAR, on("GPU-a", "GPU-a")) == {"r0": (1, 3), "r1": (5, 7)}


def test_a_replica_that_comes_later_moves_nobody() -> None:
    """It is in the plan from the start: its slot waits for it, and for whoever takes its place."""
    plan = on("GPU-a", "GPU-b", "GPU-a", "GPU-b")
    first = shared(BOTH, NEAR, plan)
    running = {"r0": first["r0"], "r1": first["r1"]}
    later = shared(list(reversed(BOTH)), dict(reversed(list(NEAR.items()))), plan)
    assert {replica: later[replica] for replica in running} == running
    assert later == first


def test_a_new_plan_for_one_gpu_moves_nobody_on_the_other() -> None:
    """One more on a shrinks the sets there, and only there."""
    before = shared(BOTH, NEAR, on("GPU-b", "GPU-a"))
    after = shared(BOTH, NEAR, on("GPU-b", "GPU-a", "GPU-a"))
    assert after["r0"] == before["r0"]
    assert len(after["r1"]) == len(before["r1"]) // 2


def test_near_sets_that_overlap_still_give_disjoint_sets() -> None:
    """No machine is known to have such; if one has, nearness gives way and not the promise."""
    shared(range(4), {"GPU-a": (0, 1), "GPU-b": (1, 2), "GPU-c": (0, 2)}, on("GPU-a", "GPU-b", "GPU-c"))


@given(
    available=st.sets(st.integers(0, 15), min_size=1),
    near=st.dictionaries(st.sampled_from(["GPU-a", "GPU-b", "GPU-c"]), st.sets(st.integers(0, 15)).map(sorted)),
    gpus=st.lists(st.sampled_from(["GPU-a", "GPU-b", "GPU-c", "cpu"]), max_size=16),
)
def test_whatever_the_machine_everybody_has_cores_that_are_theirs_alone(
    available: set[int], near: Mapping[str, Sequence[int]], gpus: list[str]
) -> None:
    """Any cores, near sets of any shape, and any plan that has no more replicas than cores."""
    cores, plan = sorted(available), on(*gpus)
    if len(plan) > len(cores):
        assert share_cores(cores, near, plan) is None
    else:
        shared(cores, near, plan)


@given(close=st.sets(st.integers(0, 15), min_size=1), replicas=st.integers(1, 16))
def test_one_gpu_uses_every_core_near_it_and_as_evenly_as_they_divide(close: set[int], replicas: int) -> None:
    """As long as there is one for each."""
    found = shared(BOTH, {"GPU-a": sorted(close)}, on(*["GPU-a"] * replicas))
    if replicas <= len(close):
        assert set().union(*found.values()) == close
        assert {len(cores) for cores in found.values()} <= {len(close) // replicas, -(-len(close) // replicas)}
