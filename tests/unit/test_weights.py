"""What a replica on one kind of GPU counts for beside one on another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.planning.weights import MIN_WEIGHT, SAME_SHARE, weights

kinds = st.dictionaries(st.text(max_size=3), st.lists(st.floats(0.0, 1e6), max_size=5), max_size=5)


def test_the_fastest_kind_counts_for_one_and_the_others_for_what_they_do_beside_it() -> None:
    """Rows per second, divided."""
    assert weights({"NVIDIA H200": [400.0], "NVIDIA L4": [100.0]}) == {"NVIDIA H200": 1.0, "NVIDIA L4": 0.25}


def test_of_several_replicas_the_median_counts() -> None:
    """One that was held up while it was measured changes nothing."""
    assert weights({"a": [100.0, 101.0, 3.0], "b": [50.0, 49.0, 50.0]}) == {"a": 1.0, "b": 0.5}


def test_a_kind_without_a_measurement_is_taken_to_be_as_fast_as_the_fastest() -> None:
    """It is found out to be slower when it is measured."""
    assert weights({"a": [100.0], "b": [50.0], "c": []}) == {"a": 1.0, "b": 0.5, "c": 1.0}


def test_before_anything_is_measured_all_are_equal() -> None:
    """Also where there is only one kind, or none."""
    assert weights({"a": [], "b": []}) == {"a": 1.0, "b": 1.0}
    assert weights({"a": [7.0, 9.0]}) == {"a": 1.0}
    assert weights({}) == {}


@pytest.mark.parametrize(("rows_per_s", "weight"), [(95.1, 1.0), (94.9, 0.949), (5.1, 0.051), (4.0, 0.05), (0.0, 0.05)])
def test_what_is_nearly_as_fast_is_equal_and_nothing_counts_for_next_to_nothing(
    rows_per_s: float, weight: float
) -> None:
    """Measurements vary by some percent; and one that failed must not shut a GPU out."""
    assert weights({"fast": [100.0], "other": [rows_per_s]})["other"] == pytest.approx(weight)


@given(kinds)
def test_weights_are_within_bounds_and_somebody_is_the_fastest(speeds: dict[str, list[float]]) -> None:
    """Whatever was measured."""
    found = weights(speeds)
    assert found.keys() == speeds.keys()
    assert all(weight == 1.0 or MIN_WEIGHT <= weight < 1.0 - SAME_SHARE + 1e-9 for weight in found.values())
    assert 1.0 in found.values() or not found
