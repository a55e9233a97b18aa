"""When a worker counts as standing still."""

from __future__ import annotations

from orch.supervising.liveness import MAX_LOOK_S, MIN_LOOK_S, hung, look_s, stalled


def test_a_batch_may_run_as_long_as_its_timeout() -> None:
    """And not longer; without a time-out for ever."""
    assert hung(10.0, 9.9) is None
    assert hung(0.0, 1e6) is None
    assert hung(10.0, 10.5) == "its batch runs for 10.5 s (--timeout 10)"


def test_requests_may_wait_in_a_worker_as_long_as_that() -> None:
    """One that has them and begins none is stuck outside of the model."""
    assert stalled(10.0, 9.9) is None
    assert stalled(0.0, 1e6) is None
    assert stalled(2.5, 3.0) == "it has had requests for 3.0 s and runs none (--timeout 2.5)"


def test_the_next_look_is_when_a_worker_could_first_stand_still() -> None:
    """Within bounds; where nobody has a time-out, now and then."""
    assert look_s([]) == look_s([300.0]) == MAX_LOOK_S
    assert look_s([1.5, 50.0]) == 1.5
    assert look_s([0.01, 1.5]) == look_s([-1.0]) == MIN_LOOK_S
