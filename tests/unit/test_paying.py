"""How many replicas pay."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orch.planning.paying import (
    MAX_MEASURE_S,
    MEASURE_S,
    Again,
    Keep,
    Load,
    Try,
    decide,
    load_for,
    told,
)


def search(rate: Callable[[int, int], float], *, most: int = 16, min_gain: float = 0.05) -> tuple[Keep, list[int]]:
    """Runs a search to its end. rate: by count, and how often that was measured before. Also the counts, in order."""
    history: list[tuple[int, float]] = []
    counts: list[int] = []
    step: Try | Again | Keep = decide(history, most=most, min_gain=min_gain)
    while not isinstance(step, Keep):
        assert 1 <= step.count <= most
        assert len(counts) <= 2 * most, "it ends"
        history.append((step.count, rate(step.count, counts.count(step.count))))
        counts.append(step.count)
        step = decide(history, most=most, min_gain=min_gain)
    return step, counts


def by_count(*rates: float) -> Callable[[int, int], float]:
    """The same however often it is measured."""
    return lambda count, _before: rates[count - 1]


def test_it_begins_with_one() -> None:
    """Which runs already."""
    assert decide([], most=8, min_gain=0.05) == Try(1)


def test_as_long_as_it_pays_one_more_is_tried() -> None:
    """Up to what fits."""
    found, counts = search(by_count(10, 20, 30, 40), most=4)
    assert counts == [1, 2, 3, 4]
    assert found.count == 4
    assert found.because[0].startswith("1 replica: 10.0/s, 2: 20.0/s (+100 %), 3: 30.0/s (+50 %), 4: 40.0/s (+33 %): ")
    assert found.because[0].endswith(": there is room for no more; 4 replicas kept")


def test_one_more_that_gains_too_little_ends_it() -> None:
    """After a second look, because the first may have been noise, and one further ahead."""
    found, counts = search(by_count(45.0, 88.1, 89.0, 88.5, 200.0))
    assert counts == [1, 2, 3, 3, 4]
    sums = "1 replica: 45.0/s, 2: 88.1/s (+96 %), 3: 89.0/s (+1 %), 4: 88.5/s (-1 %)"
    assert found == Keep(2, (f"{sums}: less than 5 % more; 2 replicas kept",))


def test_a_second_look_that_finds_more_goes_on() -> None:
    """Something disturbed the first."""
    found, counts = search(lambda count, before: 41.0 if (count, before) == (2, 0) else 40.0 * count, most=3)
    assert counts == [1, 2, 2, 3]
    assert found.count == 3
    assert "2: 80.0/s (+100 %)" in found.because[0]


def test_the_higher_of_two_looks_counts() -> None:
    """What disturbs only lowers a rate; here the second look is the worse one, and neither pays."""
    found, counts = search(lambda count, before: {1: 100.0, 2: 104.0 - 10 * before}[count], most=2)
    assert counts == [1, 2, 2]
    assert found.count == 2
    assert "2: 104/s (+4 %)" in found.because[0]


def test_a_loss_keeps_the_smaller_count() -> None:
    """Two of them may take turns and be slower than one."""
    found, counts = search(by_count(45.0, 40.0, 99.0))
    assert counts == [1, 2, 2]
    assert found == Keep(1, ("1 replica: 45.0/s, 2: 40.0/s (-11 %): less than 5 % more; 1 replica kept",))


def test_the_best_is_kept_though_the_last_step_paid_too_little() -> None:
    """Four per cent are not enough to go on, but they are there; nor is there anything further on."""
    found, counts = search(by_count(100.0, 104.0, 104.5, 104.6, 104.7))
    assert counts == [1, 2, 2, 4, 5]
    assert found.count == 2


def test_small_steps_that_add_up_are_found_by_a_leap() -> None:
    """What one H200 measured of a lone decoder: one more brings 3 %, five more 14 %; then it is over."""
    measured = {8: 57.8, 9: 59.6, 12: 65.3, 15: 68.0, 19: 67.8, 23: 67.7}
    found, counts = search(lambda count, _before: measured.get(count, 7.5 * count), most=48)
    assert counts[-6:] == [9, 9, 12, 15, 19, 23]
    assert found.count == 15
    assert found.because[0].endswith(": less than 5 % more; 15 replicas kept")


def test_one_bad_count_is_not_the_end() -> None:
    """What it measured of an image model in batches of 8: six replicas gave less than five, and seven more."""
    measured = {1: 2660.0, 2: 5164.0, 3: 7100.0, 4: 7732.0, 5: 8143.0, 6: 8117.0, 7: 8400.0, 9: 8300.0, 11: 8030.0}
    found, counts = search(lambda count, _before: measured[count], most=48)
    assert counts == [1, 2, 3, 4, 5, 6, 6, 7, 9, 11]
    assert found.count == 7


def test_a_leap_that_loses_ends_it() -> None:
    """More of them only get into each other's way."""
    found, counts = search(by_count(100.0, 103.0, 0.0, 90.0))
    assert counts == [1, 2, 2, 4]
    assert found.count == 2


def test_a_leap_goes_no_further_than_what_fits() -> None:
    """And that is tried."""
    found, counts = search(by_count(100.0, 200.0, 206.0, 211.0), most=4)
    assert counts == [1, 2, 3, 3, 4]
    assert found.count == 4


def test_a_smaller_count_that_is_as_good_is_preferred() -> None:
    """A replica costs memory; a per cent is noise."""
    assert search(by_count(100.0, 101.0), most=2)[0].count == 1
    assert search(by_count(100.0, 102.2), most=2)[0].count == 2


def test_what_a_gain_must_be_can_be_set() -> None:
    """--min-gain."""
    assert search(by_count(100.0, 160.0, 200.0, 180.0), most=4, min_gain=0.5)[1] == [1, 2, 3, 3, 4]
    assert search(by_count(100.0, 100.5, 101.0), most=3, min_gain=0.001)[1] == [1, 2, 3]
    assert "less than 7 % more" in search(by_count(100.0, 101.0), most=2, min_gain=0.07)[0].because[0]


def test_where_one_fits_only_one_is_measured() -> None:
    """There is nothing to compare."""
    assert search(by_count(12.5), most=1) == (
        Keep(1, ("1 replica: 12.5/s: there is room for no more; 1 replica kept",)),
        [1],
    )


def test_a_count_that_cannot_be_had_keeps_the_best_so_far() -> None:
    """Out of memory: what runs stays."""
    history = [(1, 45.0), (2, 88.0)]
    assert decide(history, most=8, min_gain=0.05) == Try(3)
    assert decide(history, most=8, min_gain=0.05, cannot="a 3rd ran out of memory") == Keep(
        2, ("1 replica: 45.0/s, 2: 88.0/s (+96 %): a 3rd ran out of memory; 2 replicas kept",)
    )


def test_a_second_look_that_cannot_be_had_keeps_the_best_so_far() -> None:
    """The first look at it was known already."""
    found = decide([(1, 45.0), (2, 46.0)], most=8, min_gain=0.05, cannot="2 could not be measured")
    assert isinstance(found, Keep)
    assert found.count == 2


def test_without_any_measurement_one_is_kept() -> None:
    """It runs, whatever it is worth."""
    assert decide([], most=8, min_gain=0.05, cannot="1 could not be measured") == Keep(
        1, ("1 could not be measured; 1 replica kept",)
    )


def test_the_room_may_shrink_meanwhile() -> None:
    """Somebody else has taken memory: what fits is asked at every step."""
    assert decide([(1, 10.0), (2, 20.0)], most=2, min_gain=0.05) == Keep(
        2, ("1 replica: 10.0/s, 2: 20.0/s (+100 %): there is room for no more; 2 replicas kept",)
    )


@pytest.mark.parametrize("knee", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("noise", [0.0, 0.01, -0.01])
def test_the_knee_is_found_under_noise(knee: int, noise: float) -> None:
    """Rates grow evenly up to the knee; each odd measurement is a per cent off. One look further shows nothing."""
    found, counts = search(lambda count, before: 20.0 * min(count, knee) * (1 + noise * ((count + before) % 2)))
    assert knee <= found.count <= knee + 1
    assert counts[-3:-1] == [knee + 1, knee + 1]


@pytest.mark.parametrize(
    ("history", "text"),
    [
        ([(1, 45.04)], "1 replica: 45.0 answers/s"),
        ([(1, 45.0), (2, 88.1)], "2 replicas: 88.1 answers/s (+96 %)"),
        ([(1, 45.0), (2, 40.0), (2, 45.1)], "2 replicas once more: 45.1 answers/s (+0 %)"),
        ([(1, 36_466.2)], "1 replica: 36,466 answers/s"),
        ([(1, 0.03125)], "1 replica: 0.0312 answers/s"),
        ([(1, 0.5), (2, 0.4)], "2 replicas: 0.400 answers/s (-20 %)"),
    ],
)
def test_progress_is_told_in_a_line(history: list[tuple[int, float]], text: str) -> None:
    """The last measurement, and what it gains."""
    assert told(history) == text


def test_a_load_keeps_every_replica_busy() -> None:
    """A running batch and one ahead for each; what is on its way is a tenth of a batch of 20 ms."""
    assert load_for(2, 8, batch_s=0.02) == Load(32 + 2, MEASURE_S)


def test_a_fast_model_needs_more_on_its_way() -> None:
    """A batch that takes no time waits for the next one only; there is a limit to it."""
    assert load_for(1, 1, batch_s=0.0002).outstanding == 2 + 10
    assert load_for(1, 1, batch_s=0.0).outstanding == 2 + 16


def test_a_slow_model_gets_more_time_but_not_for_ever() -> None:
    """Replicas that run in turns share the device: each batch takes as many times longer."""
    assert load_for(1, 1, batch_s=1.0).max_s == MEASURE_S
    assert load_for(2, 1, batch_s=1.0).max_s == 50.0
    assert load_for(1, 4, batch_s=60.0).max_s == MAX_MEASURE_S
