"""The order of what waits."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import bundles, wire
from orch.wire import Flag, Kind, Priority, Record
from orch_balancer.entry import Entry, Place, Session
from orch_balancer.fairqueue import SLACK, FairQueue
from orch_balancer.policy import LOW_TURN

SESSIONS = {name: Session(name.encode(), b"") for name in "abc"}
SIZES = (5, 0, 3)  # of a bundle's bodies, in turns


def an_entry(
    number: int, client: str = "a", priority: int = Priority.NORMAL, rows: int = 1, *, is_stream: bool = False
) -> Entry:
    """A request that waits."""
    flags = Flag.STREAM if is_stream else 0
    return Entry(SESSIONS[client], number, b"", (), flags, 0, 0, rows, priority, 0, 0.0)


def a_bundle(first: int, num: int, client: str = "a", priority: int = Priority.NORMAL) -> Entry:
    """Requests that wait together."""
    bodies = tuple(bytes([each % 256]) * SIZES[each % 3] for each in range(first, first + num))
    record = Record(Kind.REQUEST, Flag.BUNDLE, priority, request_id=first, rows=num, frames=bodies)
    (((raw,)),) = wire.messages([record])
    session, num_bytes = SESSIONS[client], sum(map(len, bodies))
    entry = Entry(session, first, raw, (), Flag.BUNDLE, 0, 0, num, priority, num_bytes, 0.0, num)
    session.entries.update(dict.fromkeys(range(first, first + num), entry))
    return entry


def numbers(entry: Entry) -> list[int]:
    """The requests of a line, as a worker would read them."""
    if not entry.is_bundle:
        return [entry.request_id]
    (record,) = wire.decode(entry.raw)
    singles = bundles.singles(record)
    assert [(one.request_id, len(one.body)) for one in singles] == [
        (each, SIZES[each % 3]) for each in range(entry.request_id, entry.request_id + len(singles))
    ]
    assert (entry.num, entry.rows, entry.num_bytes) == (len(singles), len(singles), sum(map(len, record.frames)))
    return [one.request_id for one in singles]


def pushes(queue: FairQueue, *entries: Entry) -> None:
    """They arrive in one message."""
    queue.push(entries, sum(entry.num for entry in entries), sum(entry.rows for entry in entries))


def takes(queue: FairQueue, wanted: int, room: int = 1_000) -> list[int]:
    """The numbers of the next requests to run, taken together."""
    entries = queue.take(wanted, room)
    for entry in entries:
        entry.place = Place.DISPATCHED
    return [number for entry in entries for number in numbers(entry)]


def lines(queue: FairQueue, wanted: int, room: int = 1_000) -> list[list[int]]:
    """The same, by line."""
    entries = queue.take(wanted, room)
    for entry in entries:
        entry.place = Place.DISPATCHED
    return [numbers(entry) for entry in entries]


def pops(queue: FairQueue, count: int = 1) -> list[int]:
    """The numbers of the next requests to run, taken one by one."""
    return [number for _ in range(count) for number in takes(queue, 1)]


def forgets(queue: FairQueue, entry: Entry) -> None:
    """It was cancelled, or expired."""
    entry.place = Place.DONE
    queue.forget(entry)


def forgets_one(queue: FairQueue, number: int, client: str = "a") -> None:
    """It was cancelled, alone or as one of a bundle that waits."""
    ours = SESSIONS[client].entries
    entry = ours[number]
    if entry.num == 1:
        forgets(queue, entry)
        return
    place = number - entry.request_id
    entry.num -= 1
    entry.rows -= 1
    entry.num_bytes -= bundles.sizes(entry.raw)[place]
    entry.cancelled = (entry.cancelled or set()) | {place}
    del ours[number]
    queue.forget(entry)


def test_nothing_comes_out_of_an_empty_queue() -> None:
    """Neither at first nor later."""
    queue = FairQueue()
    assert queue.take(1, 1) == []
    pushes(queue, an_entry(1))
    assert pops(queue, 2) == [1]
    assert (len(queue), queue.rows) == (0, 0)


def test_one_client_is_served_in_its_own_order() -> None:
    """First come, first served."""
    queue = FairQueue()
    for number in range(5):
        pushes(queue, an_entry(number))
    assert pops(queue, 5) == [0, 1, 2, 3, 4]


def test_clients_of_a_priority_take_turns() -> None:
    """However much one of them has queued, and whoever comes later goes last."""
    queue = FairQueue()
    for number in range(4):
        pushes(queue, an_entry(number, "a"))
    pushes(queue, an_entry(10, "b"))
    assert pops(queue, 2) == [0, 10]
    pushes(queue, an_entry(20, "c"))
    pushes(queue, an_entry(11, "b"))
    assert pops(queue, 5) == [1, 20, 11, 2, 3]


def test_what_ran_already_goes_ahead_of_everything_in_its_class() -> None:
    """And of nothing in a higher one."""
    queue = FairQueue()
    pushes(queue, an_entry(1))
    queue.push_first(an_entry(2))
    queue.push_first(an_entry(3))
    pushes(queue, an_entry(4, priority=Priority.HIGH))
    assert pops(queue, 4) == [4, 3, 2, 1]


def test_now_and_then_the_lowest_class_goes_first() -> None:
    """Once in sixteen turns; and only where it has something."""
    queue = FairQueue()
    for number in range(100):
        pushes(queue, an_entry(number, priority=Priority.HIGH))
        pushes(queue, an_entry(1000 + number, priority=Priority.LOW))
    order = pops(queue, 4 * LOW_TURN)
    assert [i for i, number in enumerate(order) if number >= 1000] == [15, 31, 47, 63]


def test_a_forgotten_entry_is_passed_over() -> None:
    """Wherever it stands, and its client keeps its turn."""
    queue = FairQueue()
    entries = [an_entry(number) for number in range(6)]
    for entry in entries[:4]:
        pushes(queue, entry)
    queue.push_first(entries[4])
    queue.push_first(entries[5])
    for number in (5, 0, 3):
        forgets(queue, entries[number])
    assert len(queue) == 3
    assert [entry.request_id for entry in queue] == [4, 1, 2]
    assert pops(queue, 6) == [4, 1, 2]


def test_a_client_of_whom_everything_was_cancelled_has_no_turn() -> None:
    """Nor has it one too many when it comes back."""
    queue = FairQueue()
    gone = an_entry(1, "a")
    pushes(queue, gone)
    pushes(queue, an_entry(10, "b"))
    forgets(queue, gone)
    assert pops(queue, 1) == [10]
    for number in (2, 3):
        pushes(queue, an_entry(number, "a"))
        pushes(queue, an_entry(number + 10, "b"))
    assert sorted(pops(queue, 2)) == [2, 12]


def test_memory_stays_proportional_to_what_waits() -> None:
    """A client that submits and cancels for ever leaves nothing behind, whatever waits at the head."""
    queue = FairQueue()
    pushes(queue, an_entry(-1))
    for number in range(10 * SLACK):
        entry = an_entry(number)
        pushes(queue, entry)
        forgets(queue, entry)
    (line,) = queue._classes[Priority.NORMAL].by_client.values()  # noqa: SLF001  memory has no public face
    assert len(line) <= SLACK + 2
    assert pops(queue, 2) == [-1]


def test_rows_are_counted_as_well_as_requests() -> None:
    """Capacity is in rows."""
    queue = FairQueue()
    large = an_entry(1, rows=30)
    pushes(queue, large)
    pushes(queue, an_entry(2, rows=4))
    assert (len(queue), queue.rows) == (2, 34)
    forgets(queue, large)
    assert (len(queue), queue.rows) == (1, 4)


def test_what_is_taken_together_is_what_would_be_taken_one_by_one() -> None:
    """Over classes, clients' turns and the lowest class's; a client's own requests keep their order."""
    one_by_one, together = FairQueue(), FairQueue()
    for queue in (one_by_one, together):
        queue.push_first(an_entry(-1, "b"))
        for number in range(60):
            pushes(queue, an_entry(number, "abc"[number * number % 3], number % 7 % len(Priority)))
    for wanted in (20, 1, 26, 100):
        assert sorted(takes(together, wanted)) == sorted(pops(one_by_one, wanted))
    assert (len(together), together.rows) == (0, 0)


def test_clients_get_equal_parts_of_what_is_taken_together() -> None:
    """One after another; what one of them does not want is the others'."""
    queue = FairQueue()
    for number in range(20):
        pushes(queue, an_entry(number, "a"))
        pushes(queue, an_entry(100 + number, "b"))
    pushes(queue, an_entry(200, "c"))
    assert takes(queue, 9) == [0, 1, 2, 100, 101, 102, 200, 3, 103]
    assert takes(queue, 1) == [4]
    assert takes(queue, 3) == [104, 5, 105]


def test_what_does_not_fit_the_room_waits_at_the_head_of_its_class() -> None:
    """Unless it is the first: it would never run."""
    queue = FairQueue()
    for number, rows in enumerate((2, 5, 1)):
        pushes(queue, an_entry(number, "abc"[number], rows=rows))
    assert takes(queue, 4, room=4) == [0]
    assert (len(queue), queue.rows) == (2, 6)
    assert takes(queue, 4, room=4) == [1]
    assert takes(queue, 4, room=4) == [2]


def test_nothing_is_taken_behind_a_stream() -> None:
    """It may take any time."""
    queue = FairQueue()
    for number in range(4):
        pushes(queue, an_entry(number, is_stream=number == 1))
    assert takes(queue, 4) == [0, 1]
    assert takes(queue, 4) == [2, 3]


def test_a_bundle_comes_out_as_one() -> None:
    """Where there is room for all of it, alone or among others."""
    queue = FairQueue()
    pushes(queue, a_bundle(1, 4))
    assert (len(queue), queue.rows, queue.num_of(Priority.NORMAL)) == (4, 4, 4)
    assert lines(queue, 4, room=4) == [[1, 2, 3, 4]]
    pushes(queue, a_bundle(5, 3), a_bundle(8, 2))
    pushes(queue, an_entry(10, "a"))
    assert lines(queue, 6) == [[5, 6, 7], [8, 9], [10]]
    assert (len(queue), queue.rows) == (0, 0)


def test_a_bundle_is_cut_where_what_is_wanted_ends() -> None:
    """The rest stays at the head, also as a single one."""
    queue = FairQueue()
    pushes(queue, a_bundle(1, 9))
    pushes(queue, an_entry(10))
    assert lines(queue, 3) == [[1, 2, 3]]
    assert (len(queue), queue.rows) == (7, 7)
    assert lines(queue, 1) == [[4]]
    assert lines(queue, 4) == [[5, 6, 7, 8]]
    assert not SESSIONS["a"].entries[9].is_bundle
    assert lines(queue, 4) == [[9], [10]]


def test_a_bundle_is_cut_where_the_room_ends() -> None:
    """Also where there is none left; a single one of many rows is not cut."""
    queue = FairQueue()
    pushes(queue, an_entry(1, rows=3))
    pushes(queue, a_bundle(2, 4))
    pushes(queue, an_entry(6, rows=3))
    assert lines(queue, 5, room=5) == [[1], [2, 3]]
    assert lines(queue, 4, room=4) == [[4, 5]]
    assert lines(queue, 2, room=2) == [[6]]
    assert len(queue) == 0


def test_clients_take_turns_whoever_sends_bundles() -> None:
    """A bundle weighs what its requests would."""
    queue = FairQueue()
    pushes(queue, a_bundle(1, 20))
    pushes(queue, a_bundle(101, 20, "b"))
    for number in range(201, 204):
        pushes(queue, an_entry(number, "c"))
    assert lines(queue, 12) == [[1, 2, 3, 4], [101, 102, 103, 104], [201], [202], [203], [5]]
    assert lines(queue, 1) == [[105]]
    assert lines(queue, 1) == [[6]]


def test_where_other_classes_wait_one_of_a_bundle_is_a_turn() -> None:
    """The lowest class has its own, and the rest goes together."""
    queue = FairQueue()
    pushes(queue, a_bundle(1, 20, priority=Priority.HIGH))
    pushes(queue, a_bundle(101, 3, priority=Priority.LOW))
    assert lines(queue, 17) == [*([each] for each in range(1, 16)), [101], [16]]
    assert lines(queue, 6) == [[17], [18], [19], [20], [102, 103]]


@pytest.mark.parametrize("sizes", [(15,), (7, 8)])
def test_each_of_a_bundle_is_a_turn_also_where_they_go_together(sizes: tuple[int, ...]) -> None:
    """The lowest class need not wait longer for what is taken at once."""
    queue = FairQueue()
    for first, num in enumerate(sizes):
        pushes(queue, a_bundle(1 + 100 * first, num))
    assert len(lines(queue, LOW_TURN - 1)) == len(sizes)
    pushes(queue, an_entry(301, priority=Priority.HIGH))
    pushes(queue, an_entry(302, priority=Priority.LOW))
    assert lines(queue, 1) == [[302]]


def test_a_bundle_that_is_not_worth_cutting_is_taken_whole() -> None:
    """Where there is room for it; it then is more than was wanted, and what is behind it waits."""
    queue = FairQueue()
    pushes(queue, a_bundle(0, 6))
    pushes(queue, a_bundle(10, 6))
    assert [numbers(entry) for entry in queue.take(4, 100, cuts=False)] == [list(range(6))]
    assert (len(queue), queue.rows) == (6, 6)
    assert [numbers(entry) for entry in queue.take(4, 5, cuts=False)] == [[10, 11, 12, 13, 14]]
    assert [numbers(entry) for entry in queue.take(4, 100, cuts=False)] == [[15]]
    assert (len(queue), queue.rows) == (0, 0)


def test_where_another_class_waits_a_turn_is_one_request_even_of_a_bundle_that_is_not_worth_cutting() -> None:
    """Classes share the capacity by requests."""
    queue = FairQueue()
    pushes(queue, a_bundle(0, 20, priority=Priority.HIGH))
    pushes(queue, an_entry(100, priority=Priority.LOW))
    taken = [number for entry in queue.take(LOW_TURN, 100, cuts=False) for number in numbers(entry)]
    assert taken == [*range(LOW_TURN - 1), 100]


def test_nothing_of_a_bundle_is_taken_behind_a_stream() -> None:
    """And a stream is taken behind what is ahead of it."""
    queue = FairQueue()
    pushes(queue, a_bundle(1, 3), an_entry(4, is_stream=True), a_bundle(5, 3))
    assert lines(queue, 7) == [[1, 2, 3], [4]]
    assert lines(queue, 7) == [[5, 6, 7]]


def test_what_was_cancelled_of_a_bundle_is_passed_over() -> None:
    """At its ends, in its middle, all but one of it, and what is cut around it."""
    queue = FairQueue()
    pushes(queue, a_bundle(1, 8))
    for number in (1, 4, 5, 8):
        forgets_one(queue, number)
    assert (len(queue), queue.rows) == (4, 4)
    assert lines(queue, 3) == [[2, 3], [6]]
    forgets_one(queue, 7)
    assert (len(queue), queue.rows) == (0, 0)
    assert lines(queue, 1) == []
    pushes(queue, a_bundle(11, 3))
    forgets_one(queue, 11)
    forgets_one(queue, 13)
    assert lines(queue, 3) == [[12]]


def test_of_a_bundle_that_was_cut_the_rest_may_be_cancelled() -> None:
    """Those before and those after keep their turns."""
    queue = FairQueue()
    pushes(queue, a_bundle(1, 6))
    assert lines(queue, 2) == [[1, 2]]
    forgets_one(queue, 4)
    assert lines(queue, 9) == [[3], [5, 6]]


together = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abc"), st.sampled_from(Priority), st.integers(1, 12)),
        st.tuples(st.just("push"), st.sampled_from("abc"), st.just(Priority.NORMAL), st.integers(1, 40)),
        st.tuples(st.just("first"), st.sampled_from("abc"), st.sampled_from(Priority), st.just(1)),
        st.tuples(st.just("take"), st.just("a"), st.just(0), st.integers(1, 30)),
        st.tuples(st.just("forget"), st.just("a"), st.integers(0, 200), st.integers(1, 5)),
        st.tuples(st.just("look"), st.sampled_from("abc"), st.sampled_from(Priority), st.integers(1, 5)),
    ),
    max_size=40,
)


@given(together)
def test_bundles_taken_together_are_what_would_be_taken_one_by_one(history: list[tuple[str, str, int, int]]) -> None:
    """However takes are cut, whatever is cancelled: nobody gains or loses by what a message holds.

    Nor by who looks at the queue: at one of them somebody does after every step.
    """
    for session in SESSIONS.values():
        session.entries.clear()
    queue, one_by_one = FairQueue(), FairQueue()
    waiting: dict[int, tuple[str, Entry]] = {}  # those of the second
    number = 0
    for step, client, choice, num in history:
        if step in ("push", "first"):
            ids = range(number + 1, number + 1 + num)
            number += num
            singles = [an_entry(each, client, choice) for each in ids]
            waiting.update((each.request_id, (client, each)) for each in singles)
            line = a_bundle(ids[0], num, client, choice) if num > 1 else an_entry(ids[0], client, choice)
            SESSIONS[client].entries.update(dict.fromkeys(ids, line))
            if step == "first":
                queue.push_first(line)
                one_by_one.push_first(singles[0])
            else:
                pushes(queue, line)
                pushes(one_by_one, *singles)
        elif step == "forget":
            for each in sorted(waiting)[choice : choice + num]:
                owner, entry = waiting.pop(each)
                forgets(one_by_one, entry)
                forgets_one(queue, each, owner)
        elif step == "look":
            asks = SESSIONS[client].id, choice, num
            assert queue.rows_ahead(*asks) == one_by_one.rows_ahead(*asks)
        else:
            found = takes(queue, num, room=num)
            expected = pops(one_by_one, num)
            assert len(found) == len(expected) == min(num, len(waiting))
            owners = {each: waiting.pop(each)[0] for each in expected}
            for name in SESSIONS:
                assert [each for each in found if owners[each] == name] == [
                    each for each in expected if owners[each] == name
                ]
        assert len(queue) == queue.rows == len(waiting)
        one_by_one.rows_ahead(b"", Priority.NORMAL)
        assert sorted(
            each for entry in queue for each in (entry.open_ids() if entry.is_bundle else [entry.request_id])
        ) == sorted(waiting)
        for priority in Priority:
            assert queue.num_of(priority) == one_by_one.num_of(priority)


steps = st.one_of(
    st.tuples(st.just("push"), st.sampled_from("abc"), st.sampled_from(Priority)),
    st.tuples(st.just("first"), st.sampled_from("abc"), st.sampled_from(Priority)),
    st.tuples(st.just("pop"), st.just("a"), st.just(0)),
    st.tuples(st.just("forget"), st.just("a"), st.integers(0, 50)),
)


@given(st.lists(steps, max_size=60))
def test_whatever_happens_each_entry_comes_out_once_or_was_forgotten(history: list[tuple[str, str, int]]) -> None:
    """And within a client and a class in the order in which it went in."""
    queue = FairQueue()
    waiting: dict[int, Entry] = {}
    lines: dict[tuple[str, int], deque[int]] = {}
    for number, (step, client, choice) in enumerate(history):
        if step in ("push", "first"):
            entry = waiting[number] = an_entry(number, client, choice)
            if step == "first":
                queue.push_first(entry)
            else:
                pushes(queue, entry)
                lines.setdefault((client, choice), deque()).append(number)
        elif step == "forget" and waiting:
            forgets(queue, waiting.pop(sorted(waiting)[choice % len(waiting)]))
        elif step == "pop":
            found = pops(queue)
            assert bool(found) == bool(waiting)
            for each in found:
                entry = waiting.pop(each)
                line = lines.get((entry.session.id.decode(), entry.priority), deque())
                if each in line:
                    assert all(earlier not in waiting for earlier in list(line)[: line.index(each)])
        assert len(queue) == len(waiting)
        assert {entry.request_id for entry in queue} == set(waiting)
    assert sorted(pops(queue, len(waiting) + 1)) == sorted(waiting)
