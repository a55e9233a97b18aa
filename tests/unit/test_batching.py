"""When a worker waits for company, and what it takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import bundles
from orch.wire import Flag, Kind, Record
from orch_worker.batching import BatchCost, Batcher, Item
from orch_worker.work import is_unwanted


def a_batcher(max_batch_size: int = 8, max_wait_s: float = 0.01, fixed_s: float = 0.02) -> Batcher:
    """One that has learned what a batch costs."""
    batcher = Batcher(max_batch_size, max_wait_s)
    for rows in (1, 4, 8):
        batcher.cost.observe(rows, fixed_s + 0.001 * rows)
    return batcher


def arrive(batcher: Batcher, now: float, *names: str, rows: int = 1, alone: bool = False) -> None:
    """One message with these requests."""
    batcher.add([Item(name, rows, alone, now) for name in names], now)


def steady(batcher: Batcher, gap_s: float, count: int = 50) -> float:
    """Requests that come one by one, each taken at once; the time of the last."""
    for turn in range(count):
        arrive(batcher, turn * gap_s, "x")
        batcher.take()
    return (count - 1) * gap_s


# --- taking --------------------------------------------------------------------------------------------------------


def test_a_batch_is_what_came_first_up_to_the_batch_size() -> None:
    """What remains is the next one."""
    batcher = Batcher(3, 0.0)
    arrive(batcher, 0.0, "a", "b")
    arrive(batcher, 0.1, "c", "d")
    assert batcher.take() == ["a", "b", "c"]
    assert len(batcher) == 1
    assert batcher.take() == ["d"]
    assert batcher.take() == []


def test_a_request_of_many_rows_is_never_divided() -> None:
    """It waits for the next batch, and if it is larger than any batch it runs alone."""
    batcher = Batcher(4, 0.0)
    arrive(batcher, 0.0, "a")
    arrive(batcher, 0.0, "b", rows=4)
    arrive(batcher, 0.0, "huge", rows=9)
    arrive(batcher, 0.0, "c")
    assert [batcher.take() for _ in range(4)] == [["a"], ["b"], ["huge"], ["c"]]


def test_a_stream_shares_no_batch() -> None:
    """Neither with what came before nor with what comes after it."""
    batcher = Batcher(8, 0.0)
    arrive(batcher, 0.0, "a", "b")
    arrive(batcher, 0.0, "stream", alone=True)
    arrive(batcher, 0.0, "c")
    assert [batcher.take() for _ in range(3)] == [["a", "b"], ["stream"], ["c"]]


def test_what_is_not_wanted_any_more_is_dropped_and_named() -> None:
    """Whoever dropped it answers for it; the rows are free for others."""
    batcher = Batcher(2, 0.0)
    arrive(batcher, 0.0, "a", "b", "c", "d")
    assert batcher.drop(lambda name: name in "ac") == ["a", "c"]
    assert batcher.drop(lambda name: name == "z") == []
    assert batcher.take() == ["b", "d"]


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 8), st.booleans()), max_size=30),
)
def test_everything_is_taken_once_in_order_and_no_batch_is_too_large(
    size: int, requests: list[tuple[int, bool]]
) -> None:
    """Whatever the mixture of rows and streams."""
    batcher = Batcher(size, 0.0)
    batcher.add([Item(i, rows, alone, 0.0) for i, (rows, alone) in enumerate(requests)], 0.0)
    taken: list[int] = []
    while batch := batcher.take():
        rows = sum(requests[i][0] for i in batch)
        assert rows <= size or len(batch) == 1
        assert len(batch) == 1 or not any(requests[i][1] for i in batch)
        taken += batch
    assert taken == list(range(len(requests)))
    assert batcher.wait_s(0.0) is None


# --- bundles -------------------------------------------------------------------------------------------------------


def a_bundle(first: int, num: int) -> Record:
    """Requests whose numbers, tickets and bodies count up from `first`."""
    bodies = tuple(b"%d" % number for number in range(first, first + num))
    return Record(Kind.REQUEST, Flag.BUNDLE, request_id=first, ticket=first + 1000, rows=num, frames=bodies)


def a_single(number: int, rows: int = 1) -> Record:
    """What one of a bundle would be by itself."""
    return Record(Kind.REQUEST, request_id=number, ticket=number + 1000, rows=rows, body=b"%d" % number)


def item_of(record: Record, *, alone: bool = False, now: float = 0.0) -> Item:
    """As the loop makes one."""
    return Item(record, record.rows, alone, now, bool(record.flags & Flag.BUNDLE))


def opened(records: list[Record]) -> list[Record]:
    """Each request by itself."""
    return [one for each in records for one in (bundles.singles(each) if each.flags & Flag.BUNDLE else [each])]


def any_of(*numbers: int, now_ns: int = 1) -> Callable[[Record], bool]:
    """As the loop asks, when these are cancelled."""
    tickets = {number + 1000 for number in numbers}
    return lambda record: is_unwanted(record, tickets, now_ns)


def test_a_bundle_is_cut_where_the_batch_is_full() -> None:
    """What is left of it comes first in the next one; a bundle of one is still a bundle."""
    batcher = Batcher(4, 0.0)
    batcher.add([item_of(each) for each in (a_single(1), a_bundle(2, 8), a_bundle(10, 2))], 0.0)
    batches = [batcher.take() for _ in range(4)]
    assert [[each.rows for each in batch] for batch in batches] == [[1, 3], [4], [1, 2], []]
    assert all(each.flags & Flag.BUNDLE for batch in batches[1:] for each in batch)
    taken = [each for batch in batches for each in opened(batch)]
    assert taken == [a_single(number) for number in range(1, 12)]


def test_every_request_of_a_bundle_counts_as_a_row() -> None:
    """For whether the batch is full, and so for waiting; what is cut off counts no more."""
    batcher = a_batcher(max_batch_size=8, fixed_s=10.0, max_wait_s=1.0)
    batcher.add([item_of(a_bundle(1, 7))], 0.0)
    assert not batcher.is_full
    batcher.add([item_of(a_bundle(8, 6), now=0.5)], 0.5)
    assert batcher.is_full
    assert batcher.wait_s(0.5) == 0.0
    batcher.take()
    assert not batcher.is_full
    assert batcher.oldest_at == 0.5
    assert len(opened(batcher.take())) == 5
    assert len(batcher) == 0


def test_what_is_not_wanted_of_a_bundle_is_dropped_and_the_rest_stays() -> None:
    """In order, and each by itself from then on."""
    batcher = Batcher(3, 0.0)
    batcher.add([item_of(each, now=2.0) for each in (a_single(1), a_bundle(2, 4), a_single(6))], 2.0)
    assert batcher.drop(any_of(1, 3, 5)) == [a_single(1), a_single(3), a_single(5)]
    assert batcher.drop(any_of(3)) == []
    assert batcher.is_full
    assert batcher.oldest_at == 2.0
    assert batcher.take() == [a_single(2), a_single(4), a_single(6)]
    assert batcher.take() == []


def test_what_is_late_is_dropped_and_nothing_else() -> None:
    """All of a bundle is late at once; each of it is named, for each has an answer of its own."""
    batcher = Batcher(4, 0.0)
    soon, later = a_bundle(2, 2)._replace(deadline_ns=50), a_bundle(4, 2)._replace(deadline_ns=51)
    batcher.add([item_of(each) for each in (a_bundle(0, 2), soon, later, a_single(6)._replace(deadline_ns=50))], 0.0)
    assert batcher.drop(any_of(now_ns=49)) == []
    assert batcher.drop(any_of(now_ns=50)) == [a_single(number)._replace(deadline_ns=50) for number in (2, 3, 6)]
    assert batcher.is_full
    assert batcher.take() == [a_bundle(0, 2), later]


@pytest.mark.parametrize("deadline_ns", [0, -1, -(2**63), 2**63 - 1])
def test_what_has_no_deadline_that_can_pass_is_never_late(deadline_ns: int) -> None:
    """Whatever a balancer writes there."""
    batcher = Batcher(4, 0.0)
    records = [each._replace(deadline_ns=deadline_ns) for each in (a_bundle(1, 3), a_single(4))]
    batcher.add([item_of(each) for each in records], 0.0)
    assert batcher.drop(any_of(now_ns=2**62)) == []
    assert batcher.take() == records


def test_bundles_of_which_everything_is_wanted_stay_whole() -> None:
    """However often somebody looks: a batch of single requests costs several times as much."""
    batcher = Batcher(4, 0.0)
    batcher.add([item_of(each) for each in (a_bundle(1, 2), a_bundle(3, 2))], 0.0)
    assert batcher.holds(lambda request: request.request_id == 3)
    assert not batcher.holds(lambda request: request.deadline_ns != 0)
    assert batcher.drop(any_of(4)) == [a_single(4)]
    assert batcher.take() == [a_bundle(1, 2), a_single(3)]


def test_a_stream_does_not_share_a_batch_with_a_bundle() -> None:
    """Neither is what comes behind it taken before it."""
    batcher = Batcher(4, 0.0)
    stream = a_single(3)
    batcher.add([item_of(a_bundle(1, 2)), item_of(stream, alone=True), item_of(a_bundle(4, 2))], 0.0)
    assert [batcher.take() for _ in range(3)] == [[a_bundle(1, 2)], [stream], [a_bundle(4, 2)]]


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.sampled_from(("bundle", "request", "stream")), st.integers(1, 9)), max_size=12),
    st.sets(st.integers(0, 60)),
    st.integers(0, 5),
)
def test_every_request_is_taken_or_dropped_once_in_order(
    size: int, arrivals: list[tuple[str, int]], unwanted: set[int], num_before: int
) -> None:
    """Whatever the mixture, and however many batches have run when some are cancelled."""
    batcher = Batcher(size, 0.0)
    records: list[Record] = []
    number = 0
    for kind, num in arrivals:
        record = a_bundle(number, num) if kind == "bundle" else a_single(number, num)
        number += num
        records.append(record)
        batcher.add([item_of(record, alone=kind == "stream")], 0.0)
    batches = [batcher.take() for _ in range(num_before)]
    dropped = batcher.drop(any_of(*unwanted))
    assert all(each.request_id in unwanted for each in dropped)
    while batch := batcher.take():
        assert not any(each.request_id in unwanted for each in opened(batch))
        batches.append(batch)
    for batch in batches:
        assert all(each.rows for each in batch)
        assert sum(each.rows for each in batch) <= size or (len(batch) == 1 and not batch[0].flags & Flag.BUNDLE)
    taken = [each for batch in batches for each in opened(batch)]
    assert taken == sorted(taken, key=lambda each: each.request_id)
    assert sorted(taken + dropped) == sorted(opened(records))
    assert not batcher.is_full
    assert batcher.wait_s(0.0) is None


# --- waiting -------------------------------------------------------------------------------------------------------


def test_with_nothing_here_there_is_nothing_to_wait_for() -> None:
    """None is "for as long as it takes", not zero."""
    assert a_batcher().wait_s(1.0) is None


def test_the_first_request_of_all_is_not_kept_waiting() -> None:
    """Nothing says that another will come."""
    batcher = a_batcher()
    arrive(batcher, 1.0, "a")
    assert batcher.wait_s(1.0) == 0.0


def test_a_request_waits_while_the_next_is_expected_soon_and_a_batch_costs_much() -> None:
    """Every millisecond of it is a millisecond for one row, against 20 for each batch saved."""
    batcher = a_batcher(fixed_s=0.02, max_wait_s=0.01)
    last = steady(batcher, gap_s=0.001)
    arrive(batcher, last + 0.001, "a")
    wait_s = batcher.wait_s(last + 0.001)
    assert wait_s is not None
    assert 0.0 < wait_s <= 0.01


def test_a_full_batch_runs_at_once() -> None:
    """There is nothing to wait for."""
    batcher = a_batcher(max_batch_size=4)
    last = steady(batcher, gap_s=0.001)
    arrive(batcher, last + 0.001, "a", "b", "c", "d")
    assert batcher.wait_s(last + 0.001) == 0.0


def test_a_stream_runs_at_once() -> None:
    """It would have no company."""
    batcher = a_batcher()
    last = steady(batcher, gap_s=0.001)
    arrive(batcher, last + 0.001, "stream", alone=True)
    assert batcher.wait_s(last + 0.001) == 0.0


def test_nothing_waits_where_the_next_request_is_far_away() -> None:
    """The delay of the rows that are here would cost more than the batch that it saves."""
    batcher = a_batcher(fixed_s=0.02, max_wait_s=1.0)
    last = steady(batcher, gap_s=0.1)
    arrive(batcher, last + 0.1, "a")
    assert batcher.wait_s(last + 0.1) == 0.0


def test_the_more_rows_are_here_the_less_waiting_pays() -> None:
    """Each of them is delayed by the same gap."""
    batcher = a_batcher(max_batch_size=100, fixed_s=0.02, max_wait_s=1.0)
    last = steady(batcher, gap_s=0.004)
    arrive(batcher, last + 0.004, "a", "b")
    assert batcher.wait_s(last + 0.004) != 0.0
    arrive(batcher, last + 0.008, *"cdefgh")
    assert batcher.wait_s(last + 0.008) == 0.0


def test_nothing_waits_while_batches_cost_nothing_fixed() -> None:
    """Two small batches are then as good as one."""
    batcher = Batcher(8, 1.0)
    for rows in (1, 4, 8):
        batcher.cost.observe(rows, 0.01 * rows)
    last = steady(batcher, gap_s=0.001)
    arrive(batcher, last + 0.001, "a")
    assert batcher.wait_s(last + 0.001) == pytest.approx(0.0)


def test_no_request_waits_longer_than_the_model_allows() -> None:
    """max_batch_wait is counted from the arrival of the first, whatever comes after it."""
    batcher = a_batcher(max_batch_size=100, fixed_s=10.0, max_wait_s=0.01)
    last = steady(batcher, gap_s=0.004)
    first = last + 0.004
    for turn in range(4):
        now = first + 0.004 * turn
        arrive(batcher, now, "x")
        wait_s = batcher.wait_s(now)
        assert wait_s is not None
        assert wait_s <= max(0.0, first + 0.01 - now) + 1e-9
    assert wait_s == 0.0


def test_when_the_next_request_is_overdue_it_is_not_waited_for_any_more() -> None:
    """The burst is over."""
    batcher = a_batcher(fixed_s=1.0, max_wait_s=1.0)
    last = steady(batcher, gap_s=0.001)
    now = last + 0.001
    arrive(batcher, now, "a")
    wait_s = batcher.wait_s(now)
    assert wait_s == pytest.approx(0.002, rel=0.01)
    assert batcher.wait_s(now + 0.003) == 0.0


def test_those_who_were_answered_are_waited_for_if_they_ask_again_soon() -> None:
    """Somebody else's request is here already; together they are one batch less."""
    batcher = a_batcher(fixed_s=0.005, max_wait_s=0.002)
    now = 1.0
    for _ in range(20):  # one who asks again after 0.5 ms, far more seldom than a batch costs
        arrive(batcher, now, "theirs")
        batcher.take()
        now += 0.006
        batcher.ran(1, 0.006, now)
        now += 0.0005
    arrive(batcher, now, "theirs")
    batcher.take()
    arrive(batcher, now + 0.003, "ours")
    now += 0.006
    assert batcher.wait_s(now) == 0.0
    batcher.ran(1, 0.006, now)
    assert batcher.wait_s(now) == pytest.approx(0.001, rel=0.3)
    arrive(batcher, now + 0.0005, "theirs")
    assert batcher.wait_s(now + 0.0005) == 0.0
    assert batcher.take() == ["ours", "theirs"]


def test_who_does_not_ask_again_is_waited_for_no_longer_than_the_model_allows() -> None:
    """From when the model was free, for who waited behind another batch."""
    batcher = a_batcher(fixed_s=1.0, max_wait_s=0.002)
    arrive(batcher, 1.0, "theirs")
    batcher.take()
    batcher.ran(1, 0.5, 1.5)
    arrive(batcher, 1.6, "theirs")
    batcher.take()
    arrive(batcher, 1.7, "ours")
    batcher.ran(1, 0.5, 2.1)
    assert batcher.wait_s(2.1) == pytest.approx(0.002)
    assert batcher.wait_s(2.103) == 0.0


def test_one_client_alone_waits_for_nobody() -> None:
    """However uneven its batches: what comes next is its own next request, which comes after the answer."""
    batcher = Batcher(8, 0.01)
    now, waited_s = 0.0, 0.0
    for turn in range(1_000):
        arrive(batcher, now, "x")
        wait_s = batcher.wait_s(now) or 0.0
        batcher.take()
        took_s = 0.1 if turn % 10 == 9 else 0.01
        now += wait_s + took_s
        batcher.ran(1, took_s, now)
        waited_s += wait_s
        now += 0.0005
    assert waited_s < 0.01


def test_who_could_have_no_company_waits_for_none() -> None:
    """However many are expected soon."""
    batcher = a_batcher(max_batch_size=1, max_wait_s=1.0, fixed_s=10.0)
    last = steady(batcher, gap_s=0.001)
    arrive(batcher, last + 0.001, "a")
    assert batcher.wait_s(last + 0.001) == 0.0


def test_a_model_that_never_waits_never_waits() -> None:
    """max_batch_wait = 0 is a promise."""
    batcher = a_batcher(max_wait_s=0.0, fixed_s=10.0)
    last = steady(batcher, gap_s=0.001)
    arrive(batcher, last + 0.001, "a")
    assert batcher.wait_s(last + 0.001) == 0.0


@given(
    st.lists(st.tuples(st.floats(0.0, 0.1), st.integers(1, 4)), min_size=1, max_size=30),
    st.floats(0.0, 0.05),
    st.floats(0.0, 1.0),
)
def test_a_wait_is_never_negative_and_never_beyond_the_limit(
    arrivals: list[tuple[float, int]], max_wait_s: float, fixed_s: float
) -> None:
    """Whatever was learned."""
    batcher = a_batcher(max_wait_s=max_wait_s, fixed_s=fixed_s)
    now = first = 0.0
    for gap, rows in arrivals:
        now += gap
        if not len(batcher):
            first = now
        arrive(batcher, now, "x", rows=rows)
        wait_s = batcher.wait_s(now)
        assert wait_s is not None
        assert 0.0 <= wait_s <= max(0.0, first + max_wait_s - now) + 1e-9
        if wait_s == 0.0:
            while batcher.take():
                pass


# --- cost ----------------------------------------------------------------------------------------------------------


def test_the_fixed_cost_is_found_from_batches_of_different_sizes() -> None:
    """A line through what was measured."""
    cost = BatchCost()
    assert cost.fixed_s == 0.0
    for rows in (1, 2, 4, 8, 16):
        cost.observe(rows, 0.005 + 0.001 * rows)
    assert cost.fixed_s == pytest.approx(0.005)


def test_while_all_batches_are_of_one_size_the_whole_batch_counts_as_fixed() -> None:
    """Nothing yet says otherwise."""
    cost = BatchCost()
    for _ in range(100):
        cost.observe(8, 0.02)
    assert cost.fixed_s == pytest.approx(0.02)


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0.0, 10.0)), min_size=1, max_size=50))
def test_the_fixed_cost_lies_between_nothing_and_the_mean(batches: list[tuple[int, float]]) -> None:
    """However noisy the measurements are."""
    cost = BatchCost()
    for rows, seconds in batches:
        cost.observe(rows, seconds)
    assert 0.0 <= cost.fixed_s <= max(seconds for _, seconds in batches) * (1 + 1e-9)


def test_old_batches_are_forgotten() -> None:
    """A model that warms up is not held to its first minute."""
    cost = BatchCost()
    for turn in range(50):
        cost.observe(1 + turn % 8, 1.0)
    for turn in range(200):
        cost.observe(1 + turn % 8, 0.001 * (1 + turn % 8))
    assert cost.fixed_s < 1e-4
