"""How fast a key may ask, of one gateway and of several."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_gateway.manners import BURST_S, Paces, paced
from orch_gateway.rates import MAX_KEYS, SharedPaces

A, B = "ab" * 32, "cd" * 32


@given(st.floats(0.1, 1000), st.lists(st.floats(0, 3), max_size=100))
def test_no_more_come_than_the_rate_and_one_burst(rate: float, gaps_s: list[float]) -> None:
    """In any time; and who waits as long as was said may come."""
    due_at, now, came = -1.0, 0.0, 0
    for gap_s in gaps_s:
        now += gap_s
        due_at, wait_s = paced(due_at, rate, now)
        came += not wait_s
        assert came <= now * rate + max(1.0, rate * BURST_S) + 1e-6
        if wait_s:
            assert paced(due_at, rate, now + wait_s + 1e-6)[1] == 0


@pytest.mark.parametrize("rate", [0.5, 100.0])
def test_who_was_slower_before_waits_no_longer_than_its_rate_says(rate: float) -> None:
    """A key whose rate was raised; a file that was left by a host with a longer uptime."""
    due_at, wait_s = paced(1_000_000.0, rate, 5.0)
    assert wait_s == pytest.approx(1 / rate)
    assert paced(due_at, rate, 5.001 + wait_s)[1] == 0


def test_several_gateways_count_together(tmp_path: Path) -> None:
    """Each key by itself, and one that starts anew gives nothing extra."""
    one, other = SharedPaces(tmp_path / "rates"), SharedPaces(tmp_path / "rates")
    alone = Paces()
    for number in range(40):
        now, who = number / 40, SharedPaces(tmp_path / "rates") if number == 20 else (one, other)[number % 2]
        assert who.take(A, 10.0, now) == alone.take(A, 10.0, now)
    assert other.take(B, 10.0, 1.0) == 0


def test_a_full_file_forgets_who_has_been_away_for_the_longest(tmp_path: Path) -> None:
    """Whoever had its place finds another."""
    one, other = SharedPaces(tmp_path / "rates"), SharedPaces(tmp_path / "rates")
    assert one.take(A, 1.0, 10.0) == 0
    for number in range(MAX_KEYS):
        assert other.take(f"{number:064x}", 1.0, 20.0) == 0
    assert one.take(A, 1.0, 30.0) == 0
    assert one.take(A, 1.0, 30.0) == pytest.approx(1.0)
    assert other.take(f"{1:064x}", 1.0, 20.0) == pytest.approx(1.0)
