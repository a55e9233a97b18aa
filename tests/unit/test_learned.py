"""What the balancer learns of a model's speed."""

from __future__ import annotations

import pytest

from orch_balancer.learned import WINDOW_S, Speed


def test_nothing_is_known_before_the_first_answer() -> None:
    """None is not zero: policies treat it as doubt."""
    speed = Speed()
    assert (speed.batch_s, speed.rows_per_s) == (None, None)


def test_the_batch_time_follows_the_measurements_slowly() -> None:
    """The first counts whole, each later one a fifth."""
    speed = Speed()
    speed.observe(8, 0.1, queue_was_empty=True, now=1.0)
    assert speed.batch_s == 0.1
    speed.observe(8, 0.2, queue_was_empty=True, now=2.0)
    assert speed.batch_s == pytest.approx(0.12)
    for turn in range(50):
        speed.observe(8, 0.2, queue_was_empty=True, now=3.0 + turn)
    assert speed.batch_s == pytest.approx(0.2, rel=1e-3)


def busy(speed: Speed, rows: int, every_s: float, count: int, start: float = 0.0) -> float:
    """Answers at a steady pace while something always waits; the time of the last."""
    for turn in range(count):
        speed.observe(rows, every_s, queue_was_empty=False, now=start + turn * every_s)
    return start + (count - 1) * every_s


def test_rows_per_second_are_measured_while_something_always_waits() -> None:
    """Over windows long enough to hold several batches."""
    speed = Speed()
    busy(speed, rows=4, every_s=0.05, count=3)
    assert speed.rows_per_s is None, f"less than {WINDOW_S} s were seen"
    busy(speed, rows=4, every_s=0.05, count=100, start=0.15)
    assert speed.rows_per_s == pytest.approx(80, rel=0.01)


def test_answers_while_nothing_waits_say_nothing_of_what_is_possible() -> None:
    """A quiet hour must not make the model look slow."""
    speed = Speed()
    end = busy(speed, rows=4, every_s=0.05, count=100)
    for turn in range(20):
        speed.observe(1, 0.05, queue_was_empty=True, now=end + 10.0 * turn)
    assert speed.rows_per_s == pytest.approx(80, rel=0.01)
    busy(speed, rows=4, every_s=0.05, count=100, start=end + 1000.0)
    assert speed.rows_per_s == pytest.approx(80, rel=0.01), "the quiet time belongs to no window"


def test_a_new_pace_is_believed_after_a_while() -> None:
    """Half of the workers are gone: the estimate follows."""
    speed = Speed()
    end = busy(speed, rows=4, every_s=0.05, count=100)
    busy(speed, rows=4, every_s=0.1, count=200, start=end + 0.1)
    assert speed.rows_per_s == pytest.approx(40, rel=0.02)
