"""The order of what waits."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from orch.wire import Flag, Priority
from orch_balancer.entry import Entry, Place, Session
from orch_balancer.fairqueue import SLACK, FairQueue
from orch_balancer.policy import LOW_TURN

SESSIONS = {name: Session(name.encode(), b"") for name in "abc"}


def an_entry(
    number: int, client: str = "a", priority: int = Priority.NORMAL, rows: int = 1, *, is_stream: bool = False
) -> Entry:
    """A request that waits."""
    flags = Flag.STREAM if is_stream else 0
    return Entry(SESSIONS[client], number, b"", (), flags, 0, 0, rows, priority, 0, 0.0)


def pushes(queue: FairQueue, *entries: Entry) -> None:
    """They arrive in one message."""
    queue.push(entries, sum(entry.rows for entry in entries))


def takes(queue: FairQueue, wanted: int, room: int = 1_000) -> list[int]:
    """The numbers of the next requests to run, taken together."""
    entries = queue.take(wanted, room)
    for entry in entries:
        entry.place = Place.DISPATCHED
    return [entry.request_id for entry in entries]


def pops(queue: FairQueue, count: int = 1) -> list[int]:
    """The numbers of the next requests to run, taken one by one."""
    return [number for _ in range(count) for number in takes(queue, 1)]


def forgets(queue: FairQueue, entry: Entry) -> None:
    """It was cancelled, or expired."""
    entry.place = Place.DONE
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


def test_what_is_taken_together_comes_in_the_order_in_which_it_would_come_one_by_one() -> None:
    """Over classes, clients' turns and the lowest class's."""
    one_by_one, together = FairQueue(), FairQueue()
    for queue in (one_by_one, together):
        queue.push_first(an_entry(-1, "b"))
        for number in range(60):
            pushes(queue, an_entry(number, "abc"[number * number % 3], number % 7 % len(Priority)))
    expected = pops(one_by_one, 61)
    assert takes(together, 20) + takes(together, 1) + takes(together, 100) == expected
    assert len(expected) == 61
    assert (len(together), together.rows) == (0, 0)


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
