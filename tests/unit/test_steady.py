"""When a measured rate has settled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orch.steady import AGREEMENT, RAMP_S, Edge, Steady, agree

TICK_S = 0.02


def run(
    answered_by: Callable[[float], int], *, outstanding: int = 8, window_s: float = 2.0, max_s: float = 30.0
) -> tuple[float, float, float, bool]:
    """Ticks through a history. Returns when it was over, its span, and whether two windows agreed."""
    steady = Steady(0.0, outstanding, window_s, max_s)
    last, now = Edge(0, 0.0), 0.0
    while not steady.is_over(now, last):
        now += TICK_S
        assert now <= max_s + TICK_S, "bounded in time"
        if answered_by(now) > last.answers:
            last = Edge(answered_by(now), now)
    return now, *steady.span(now, last, longest_s=1.0), steady.agreed


def test_an_even_rate_needs_a_ramp_and_two_windows() -> None:
    """Nothing of the ramp counts."""
    over, begin, end, agreed = run(lambda now: int(100 * now))
    assert agreed
    assert RAMP_S <= begin <= RAMP_S + 2 * TICK_S
    assert 4.0 <= end - begin <= 4.0 + 4 * TICK_S
    assert over == pytest.approx(end)


def test_a_ramp_lasts_until_everybody_had_a_turn() -> None:
    """All that were outstanding at the start are answered before anything counts."""
    _, begin, _, _ = run(lambda now: int(10 * now), outstanding=20)
    assert begin == pytest.approx(2.0, abs=2 * TICK_S)


def test_a_window_of_a_slow_model_is_longer() -> None:
    """It holds four answers for each request that is outstanding: here 3.2 s, and not 1."""
    _, begin, end, agreed = run(lambda now: int(10 * now), outstanding=8, window_s=1.0)
    assert agreed
    assert end - begin == pytest.approx(6.4, abs=4 * TICK_S)


def test_windows_are_measured_until_two_in_a_row_agree() -> None:
    """What is slower at first does not count."""
    _, begin, end, agreed = run(lambda now: int(50 * now) if now < 3.5 else 175 + int(100 * (now - 3.5)))
    assert agreed
    assert begin >= 3.5
    assert end - begin == pytest.approx(4.0, abs=0.2)


def test_a_rate_that_never_settles_is_measured_over_all_the_time() -> None:
    """It ends, and says that no two windows agreed."""
    over, begin, end, agreed = run(lambda now: int(40 * now * now), max_s=12.0)
    assert not agreed
    assert over == pytest.approx(12.0, abs=2 * TICK_S)
    assert begin < 1.0
    assert end == pytest.approx(12.0, abs=2 * TICK_S)


def test_it_ends_when_nothing_is_answered() -> None:
    """The second half of the time counts, in which there was nothing."""
    over, begin, end, agreed = run(lambda now: 0, max_s=3.0)
    assert not agreed
    assert over == pytest.approx(3.0, abs=2 * TICK_S)
    assert end == pytest.approx(over)
    assert begin < end


def test_a_silence_at_the_end_counts_unless_it_is_a_gap_between_bursts() -> None:
    """Up to the longest that an answer took, it says nothing."""
    steady = Steady(0.0, 1, 60.0, 20.0)
    for now, last in ((1.0, Edge(1, 1.0)), (10.0, Edge(9, 9.0)), (20.0, Edge(9, 9.0))):
        over = steady.is_over(now, last)
    assert over
    assert steady.span(20.0, Edge(9, 9.0), longest_s=12.0) == (1.0, 9.0)
    assert steady.span(20.0, Edge(9, 9.0), longest_s=2.0) == (1.0, 20.0)


def test_the_edges_of_a_window_are_answers() -> None:
    """Bursts of 8 every 0.3 s: a window of the clock would hold 6 or 7 of them, one between two bursts is exact."""
    bursts = [round(0.3 * n, 2) for n in range(1, 200)]
    _, begin, end, agreed = run(lambda now: 8 * sum(at <= now + 1e-9 for at in bursts))
    assert agreed
    counted = 8 * sum(begin < at - 1e-9 <= end for at in bursts)
    assert counted / (end - begin) == pytest.approx(8 / 0.3, rel=0.02)


def test_rates_agree_within_two_hundredths_of_the_larger() -> None:
    """Whichever comes first."""
    assert agree(98.0, 100.0)
    assert agree(100.0, 98.0)
    assert not agree(100.0, 100.0 * (1 - AGREEMENT) - 0.1)
    assert agree(0.0, 0.0)
