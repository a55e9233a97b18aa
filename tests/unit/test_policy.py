"""The numbers by which the balancer decides."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch_balancer import policy

waiting = st.integers(1, 10_000)
weights = st.floats(0.05, 1.0)


def test_the_idle_rank_first_then_those_who_would_be_done_first_and_of_equals_the_longest_idle() -> None:
    """A weight is a speed; ties are broken by time, not by name."""
    ranks = {
        "busy": policy.rank(4, 1.0, idle_since=1.0),
        "busy and slow": policy.rank(3, 0.5, idle_since=0.0),
        "less busy": policy.rank(3, 1.0, idle_since=9.0),
        "slow and idle": policy.rank(0, 0.05, idle_since=0.0),
        "idle": policy.rank(0, 1.0, idle_since=5.0),
        "longer idle": policy.rank(0, 1.0, idle_since=2.0),
    }
    expected = ["longer idle", "idle", "slow and idle", "less busy", "busy", "busy and slow"]
    assert sorted(ranks, key=lambda name: ranks[name]) == expected


def test_a_worker_is_given_a_batch_ahead_only_while_batches_are_short() -> None:
    """Before the first answer nothing is known, and the safe guess is none; so it is behind one that runs long."""
    assert policy.room(0, 8, None, 1.0, 0.0) == 8
    assert policy.room(1, 8, None, 1.0, 0.0) == 0
    assert policy.room(8, 8, 0.001, 1.0, 0.0) == 8
    assert policy.room(8, 8, policy.AHEAD_S, 1.0, 0.0) == 8
    assert policy.room(1, 8, policy.AHEAD_S * 1.01, 1.0, 0.0) == 0
    assert policy.room(1, 8, 0.001, 1.0, policy.AHEAD_S * 1.01) == 0


def test_a_batch_that_is_short_on_a_fast_gpu_may_be_long_on_a_slow_one() -> None:
    """Each worker's own batches count."""
    batch_s = policy.AHEAD_S * 0.6
    assert policy.room(1, 8, batch_s, 1.0, 0.0) == 15
    assert policy.room(1, 8, batch_s, 0.5, 0.0) == 0
    assert policy.room(0, 8, batch_s, 0.5, 0.0) == 8


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
    assert policy.share(num_waiting, 1.0, idle, 1.0 * idle, room, batch) == given


@pytest.mark.parametrize(
    ("num_waiting", "awaited", "idle", "given"),
    [
        (8, 8, 2, 8),
        (8, 0, 2, 4),
        (16, 0, 2, 8),
        (8, 4, 2, 6),
        (1, 15, 2, 1),
        (12, 12, 3, 8),
        (2, 1, 3, 1),
        (3, 9, 3, 3),
    ],
)
def test_what_may_come_any_moment_counts_as_if_it_waited(num_waiting: int, awaited: int, idle: int, given: int) -> None:
    """Workers that will be wanted for it are left to it."""
    assert policy.share(num_waiting, 1.0, idle, 1.0 * idle, 32, 32, awaited) == given


@given(waiting, st.integers(1, 64), weights)
def test_among_equals_a_share_is_an_equal_part_rounded_up(num_waiting: int, idle: int, weight: float) -> None:
    """However the weights that are equal add up."""
    share = policy.share(num_waiting, weight, idle, weight * idle, num_waiting, num_waiting)
    assert share == math.ceil(num_waiting / idle)


@pytest.mark.parametrize(
    ("num_waiting", "idle", "given"),
    [
        (12, [1.0, 0.5], [8, 4]),
        (12, [1.0, 1.0, 0.5, 0.5], [4, 4, 2, 2]),
        (21, [1.0, 0.05], [20, 1]),
        (10, [1.0, 0.05], [9, 1]),
        (3, [1.0, 0.5, 0.05], [1, 1, 1]),
        (2, [1.0, 0.5, 0.05], [1, 1]),
    ],
)
def test_what_waits_is_shared_among_unequal_idle_workers_by_weight(
    num_waiting: int, idle: list[float], given: list[int]
) -> None:
    """So that they are done together; and nobody goes on idling for the sake of the sum."""
    assert shares(num_waiting, idle, batch=64) == given


def shares(left: int, idle: list[float], batch: int) -> list[int]:
    """What idle workers are given one after another, the fastest first."""
    found = []
    for place, weight in enumerate(idle):
        if left:
            found.append(policy.share(left, weight, len(idle[place:]), sum(idle[place:]), batch, batch))
            left -= found[-1]
    return found


@given(waiting, st.lists(weights, max_size=20), weights, st.integers(-5, 100), st.integers(1, 64))
def test_a_share_is_at_least_one_and_never_more_than_waits(
    num_waiting: int, others: list[float], weight: float, room: int, batch: int
) -> None:
    """Nobody is chosen to be given nothing."""
    assert 1 <= policy.share(num_waiting, weight, 1 + len(others), weight + sum(others), room, batch) <= num_waiting
    assert 1 <= policy.share(num_waiting, weight, 0, 0.0, room, batch) <= num_waiting


@given(waiting, st.lists(weights, min_size=1, max_size=20), st.integers(1, 64))
def test_shares_of_idle_workers_leave_nobody_idle_and_nothing_waiting(
    num_waiting: int, idle: list[float], batch: int
) -> None:
    """While there is something for each, each gets something; together they take all, or as much as they may."""
    given = shares(num_waiting, sorted(idle, reverse=True), batch)
    assert len(given) == min(num_waiting, len(idle))
    assert sum(given) == num_waiting or max(given) == batch
    if len(set(idle)) == 1:
        assert sum(given) == min(num_waiting, len(idle) * batch)


@given(waiting, weights, st.integers(0, 20), st.integers(1, 64), st.integers(0, 50))
def test_a_share_stays_within_what_waits_and_what_there_is_room_for(
    num_waiting: int, weight: float, idle: int, batch: int, awaited: int
) -> None:
    """Whatever may come besides."""
    assert 1 <= policy.share(num_waiting, weight, idle, weight * idle, batch, batch, awaited) <= min(num_waiting, batch)


def test_rows_that_take_less_than_another_message_are_not_worth_cutting() -> None:
    """While nothing is known of a model, they are."""
    assert policy.are_worth_cutting(1, math.inf)
    assert policy.are_worth_cutting(9, policy.MESSAGE_S / 8)
    assert not policy.are_worth_cutting(8, policy.MESSAGE_S / 8)
    assert not policy.are_worth_cutting(8, 0.0)


def test_suspects_may_use_half_of_the_workers_and_at_least_one() -> None:
    """With one worker there is no other way."""
    assert [policy.suspect_lanes(n) for n in (0, 1, 2, 3, 4, 9)] == [1, 1, 1, 1, 2, 4]


def test_the_highest_class_that_waits_is_served_except_on_every_sixteenth_turn() -> None:
    """Then it is the lowest that waits."""
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
