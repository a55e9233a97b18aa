"""When a dead replica is started again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.errors import Exit
from orch.supervising.restart import BASE_S, CAP_S, HEALTHY_S, LAST_CAP_S, MAX_FLAPS, delay_s

CRASH = -11


def test_a_replica_that_was_healthy_starts_again_at_once() -> None:
    """Whatever it died of."""
    assert delay_s(0, CRASH, is_last=False, jitter=1.0) == 0.0
    assert delay_s(0, Exit.BAD_CONFIG, is_last=False, jitter=1.0) == 0.0
    assert HEALTHY_S == 10.0


def test_crashes_in_a_row_are_answered_with_doubling_waits_and_then_quarantine() -> None:
    """Five in a row are flapping."""
    waits = [delay_s(flaps, CRASH, is_last=False, jitter=0.0) for flaps in range(1, MAX_FLAPS + 1)]
    assert waits == [0.5, 1.0, 2.0, 4.0, None]


@pytest.mark.parametrize(
    ("exit_code", "given_up_after"),
    [
        (Exit.BAD_CONFIG, 1),
        (Exit.MODEL_LOAD, 2),
        (Exit.OUT_OF_MEMORY, 2),
        (Exit.DEVICE_LOST, MAX_FLAPS),
        (Exit.BUG, MAX_FLAPS),
        (77, MAX_FLAPS),
        (-9, MAX_FLAPS),
    ],
)
def test_what_another_try_would_only_repeat_is_not_tried_often(exit_code: int, given_up_after: int) -> None:
    """A plain number counts as the code that it is."""
    for flaps in range(1, MAX_FLAPS + 1):
        delay = delay_s(flaps, int(exit_code), is_last=False, jitter=0.0)
        assert (delay is None) == (flaps >= given_up_after)


def test_the_last_replica_is_tried_again_every_five_seconds_for_ever() -> None:
    """Even where it looks hopeless: a file may be put where it was missing."""
    for exit_code in (CRASH, Exit.BAD_CONFIG):
        waits = [delay_s(flaps, exit_code, is_last=True, jitter=1.0) for flaps in range(1, 50)]
        assert waits[:3] == [0.75, 1.5, 3.0]
        assert set(waits[4:]) == {LAST_CAP_S}


@given(st.integers(1, 10_000), st.integers(-64, 255), st.booleans(), st.floats(0.0, 1.0))
def test_a_wait_is_never_shorter_than_the_base_nor_longer_than_the_cap(
    flaps: int, exit_code: int, is_last: bool, jitter: float
) -> None:
    """However long it has been flapping."""
    delay = delay_s(flaps, exit_code, is_last=is_last, jitter=jitter)
    if delay is None:
        assert not is_last
    else:
        assert BASE_S <= delay <= (LAST_CAP_S if is_last else CAP_S)


def test_replicas_that_died_together_do_not_come_back_together() -> None:
    """Jitter spreads them over half of their wait."""
    waits = [delay_s(3, CRASH, is_last=False, jitter=jitter) for jitter in (0.0, 0.5, 1.0)]
    assert waits == [2.0, 2.5, 3.0]
