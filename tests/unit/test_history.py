"""What the status page draws: rates and latencies of the last minutes, from totals that only grow."""

from __future__ import annotations

from typing import Any

import pytest

from orch.supervising.history import STEP_S, WINDOW_S, History, quantile

BOUNDS_S = (0.001, 0.01, 0.1)


def stats(answered: int, rejected: int = 0, counts: tuple[int, ...] = (), **queue: int) -> dict[str, Any]:
    """As the balancer says it; without latencies unless counts are given."""
    latency = {"latency": {"bounds_s": BOUNDS_S, "total": {"counts": list(counts)}}} if counts else {}
    return {"queue": {"answered": answered, "rejected": rejected, **queue}, **latency}


def history(*looks: tuple[float, dict[str, Any]]) -> History:
    """After these looks, each at its time."""
    made = History()
    for at, said in looks:
        made.note(said, at)
    return made


def test_a_rate_is_the_difference_of_two_looks_over_their_time() -> None:
    """The first look only begins."""
    facts = history((0.0, stats(100)), (4.0, stats(140, 2, queued=7, outstanding=3))).facts(5.0)
    assert facts == {
        "age_s": [1.0], "answered_per_s": [10.0], "rejected_per_s": [0.5], "queued": [7], "outstanding": [3],
        "p50_s": [None], "p99_s": [None],
    }  # fmt: skip


def test_a_new_balancer_counts_from_nothing() -> None:
    """No rate is ever negative."""
    facts = history((0.0, stats(1000, counts=(5, 5, 5, 0))), (10.0, stats(20, counts=(20, 0, 0, 0)))).facts(10.0)
    assert facts["answered_per_s"] == [2.0]
    assert facts["p50_s"] == [0.0005]


def test_looks_in_quick_succession_make_one_point() -> None:
    """However many pages are open, a point covers at least a step."""
    looks = [(0.25 * n, stats(n)) for n in range(41)]
    assert len(history(*looks).facts(10.0)["age_s"]) == 10.0 / STEP_S


def test_what_is_too_old_is_forgotten() -> None:
    """By age, though nobody has looked since, and by number, though somebody always looks."""
    made = history((0.0, stats(0)), (2.0, stats(1)), (100.0, stats(2)))
    assert len(made.facts(WINDOW_S + 50.0)["age_s"]) == 1
    assert made.facts(WINDOW_S + 101.0)["age_s"] == []
    full = history(*[(STEP_S * n, stats(n)) for n in range(1000)])
    assert len(full.facts(999 * STEP_S)["age_s"]) == WINDOW_S / STEP_S


def test_a_latency_is_of_what_was_answered_since_the_last_point() -> None:
    """Not of everything since the start."""
    looks = ((0.0, stats(0, counts=(1000, 0, 0, 0))), (2.0, stats(0, counts=(1000, 0, 100, 0))))
    facts = history(*looks).facts(2.0)
    assert facts["p50_s"] == [0.055]
    assert facts["p99_s"] == [0.0991]


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ((0, 0, 0, 0), 0.5, None),
        ((10, 0, 0, 0), 0.5, 0.0005),
        ((10, 10, 0, 0), 0.5, 0.001),
        ((10, 10, 0, 0), 0.75, 0.0055),
        ((0, 0, 0, 3), 0.5, 0.1),
        ((1, 2), 0.5, None),
    ],
)
def test_a_quantile_lies_within_its_bucket(counts: tuple[int, ...], share: float, expected: float | None) -> None:
    """Evenly spread between its bounds; beyond the last bound nothing is known but the bound."""
    assert quantile(BOUNDS_S, counts, share) == (None if expected is None else pytest.approx(expected))
