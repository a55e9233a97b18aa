"""The numbers by which the balancer decides."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_balancer import policy

waiting = st.integers(1, 10_000)


def test_the_least_outstanding_per_capacity_ranks_first_and_of_equals_the_longest_idle() -> None:
    """Capacity is a worker's weight; ties are broken by time, not by name."""
    ranks = {
        "busy": policy.rank(4, 1.0, idle_since=1.0),
        "strong": policy.rank(4, 2.0, idle_since=9.0),
        "idle": policy.rank(0, 1.0, idle_since=5.0),
        "longer idle": policy.rank(0, 1.0, idle_since=2.0),
    }
    assert sorted(ranks, key=lambda name: ranks[name]) == ["longer idle", "idle", "strong", "busy"]


def test_a_worker_is_given_a_batch_ahead_only_while_batches_are_short() -> None:
    """Before the first answer nothing is known, and the safe guess is none; so it is behind one that runs long."""
    assert policy.room(0, 8, None, 0.0) == 8
    assert policy.room(1, 8, None, 0.0) == 0
    assert policy.room(8, 8, 0.001, 0.0) == 8
    assert policy.room(8, 8, policy.AHEAD_S, 0.0) == 8
    assert policy.room(1, 8, policy.AHEAD_S * 1.01, 0.0) == 0
    assert policy.room(1, 8, 0.001, policy.AHEAD_S * 1.01) == 0


@pytest.mark.parametrize(
    ("num_waiting", "idle", "room", "batch", "given"),
    [
        (6, 3, 8, 8, 2),
        (7, 3, 8, 8, 3),
        (1, 3, 8, 8, 1),
        (100, 3, 8, 8, 8),
        (100, 0, 16, 8, 8),
        (100, 0, 3, 8, 3),
        (5, 0, 16, 8, 5),
    ],
)
def test_what_waits_is_shared_among_idle_workers_and_otherwise_given_in_batches(
    num_waiting: int, idle: int, room: int, batch: int, given: int
) -> None:
    """At most a batch, at most what there is room for."""
    assert policy.share(num_waiting, idle, room, batch) == given


@given(waiting, st.integers(0, 100), st.integers(-5, 100), st.integers(1, 64))
def test_a_share_is_at_least_one_and_never_more_than_waits(num_waiting: int, idle: int, room: int, batch: int) -> None:
    """Nobody is chosen to be given nothing."""
    assert 1 <= policy.share(num_waiting, idle, room, batch) <= num_waiting


@given(waiting, st.integers(1, 100), st.integers(1, 64))
def test_shares_of_idle_workers_serve_all_that_fits(num_waiting: int, idle: int, batch: int) -> None:
    """One after another they take everything, or a full batch each."""
    left = num_waiting
    for still_idle in range(idle, 0, -1):
        if left:
            left -= policy.share(left, still_idle, batch, batch)
    assert left == max(0, num_waiting - idle * batch)


def test_suspects_may_use_half_of_the_workers_and_at_least_one() -> None:
    """With one worker there is no other way."""
    assert [policy.suspect_lanes(n) for n in (0, 1, 2, 3, 4, 9)] == [1, 1, 1, 1, 2, 4]


def test_the_highest_class_that_waits_is_served_except_on_every_sixteenth_turn() -> None:
    """Then it is the lowest that waits."""
    assert policy.next_class([0, 0, 0], 0) is None
    assert policy.next_class([0, 0, 0], policy.LOW_TURN - 1) is None
    assert policy.next_class([1, 1, 1], 0) == 0
    assert policy.next_class([0, 1, 1], 14) == 1
    assert policy.next_class([1, 1, 1], 15) == 2
    assert policy.next_class([1, 1, 0], 31) == 1
    assert policy.next_class([1, 0, 0], 15) == 0


def test_the_hint_to_a_refused_client_is_the_time_of_half_the_queue_within_reason() -> None:
    """Between a hundredth of a second and a minute; a second where nothing is known."""
    assert policy.retry_after_s(100, None) == 1.0
    assert policy.retry_after_s(100, 0.0) == 1.0
    assert policy.retry_after_s(100, 50.0) == 1.0
    assert policy.retry_after_s(0, 50.0) == 0.01
    assert policy.retry_after_s(10**9, 1.0) == 60.0


def test_whether_a_request_can_make_it_is_judged_only_by_what_was_measured() -> None:
    """In doubt it is admitted; the queue ahead and one batch must fit in what remains."""
    assert policy.can_make_it(0.001, 10**6, None, 0.1)
    assert policy.can_make_it(0.001, 10**6, 10.0, None)
    assert policy.can_make_it(1.2, 10, 10.0, 0.2)
    assert not policy.can_make_it(1.1, 10, 10.0, 0.2)
