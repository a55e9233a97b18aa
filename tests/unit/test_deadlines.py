"""Deadlines of what is admitted."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from orch import wire
from orch.wire import Flag, Kind, Priority, Record
from orch_balancer.deadlines import SLACK, Deadlines
from orch_balancer.entry import Entry, Session

SESSION = Session(b"", b"")
MOST = 1000
ids = itertools.count(1)


def watched(deadlines: Deadlines, deadline_ns: int, num: int = 1) -> Entry:
    """An admitted request, or a bundle of so many."""
    raw = wire.messages([Record(Kind.REQUEST, Flag.BUNDLE, rows=num, frames=(b"x",) * num)])[0][0]
    first = next(ids)
    for _ in range(1, num):
        next(ids)
    entry = Entry(SESSION, first, raw, (), Flag.BUNDLE, 0, deadline_ns, num, Priority.NORMAL, num, 0.0, num)
    SESSION.entries.update(dict.fromkeys(range(first, first + num), entry))
    deadlines.watch(entry)
    return entry


def ends(deadlines: Deadlines, entry: Entry) -> None:
    """It got its final answers."""
    open_ids = entry.open_ids()
    for each in open_ids:
        del SESSION.entries[each]
    if entry.deadline_ns:
        deadlines.ended(len(open_ids))


def test_nothing_is_due_without_deadlines() -> None:
    """A request without one is never late."""
    deadlines = Deadlines()
    entry = watched(deadlines, 0)
    assert deadlines.next_ns() is None
    assert deadlines.due(10**18, MOST) == []
    ends(deadlines, entry)


def test_entries_are_due_in_the_order_of_their_deadlines_each_once() -> None:
    """Also those with the same one."""
    deadlines = Deadlines()
    late, early, same = (watched(deadlines, at) for at in (30, 10, 30))
    assert deadlines.next_ns() == 10
    assert deadlines.due(9, MOST) == []
    assert deadlines.due(10, MOST) == [early]
    assert deadlines.due(10, MOST) == []
    assert deadlines.due(99, MOST) == [late, same]
    assert deadlines.next_ns() is None


def test_no_more_are_given_out_than_asked_for_and_none_is_forgotten() -> None:
    """The others stay due. It is requests that are counted, and a bundle is not cut for that."""
    deadlines = Deadlines()
    entries = [watched(deadlines, at, num=2) for at in (1, 2, 3)]
    assert deadlines.due(10, 1) == entries[:1]
    assert deadlines.next_ns() == 2
    assert deadlines.due(10, 2) == entries[1:2]
    assert deadlines.due(10, 1) == entries[2:]


def test_what_has_ended_is_never_due() -> None:
    """Whatever is."""
    deadlines = Deadlines()
    first, second = watched(deadlines, 1), watched(deadlines, 2)
    ends(deadlines, first)
    assert deadlines.due(10, MOST) == [second]


def test_of_a_bundle_the_lines_that_it_is_now_in_are_due() -> None:
    """It was cut since, and the first of it is answered."""
    deadlines = Deadlines()
    bundle = watched(deadlines, 5, num=4)
    first = bundle.cut_off(1)
    ends(deadlines, first)
    second = bundle.cut_off(1)
    assert deadlines.due(5, MOST) == [second, bundle]


def test_a_number_that_is_used_again_has_a_deadline_of_its_own() -> None:
    """Or none; and the same one is due once. The one before it was answered in time."""
    deadlines = Deadlines()
    for again in (0, 9, 5):
        ended = watched(deadlines, 5)
        ends(deadlines, ended)
        entry = Entry(SESSION, ended.request_id, b"", (), 0, 0, again, 1, Priority.NORMAL, 1, 0.0)
        SESSION.entries[entry.request_id] = entry
        deadlines.watch(entry)
        assert deadlines.due(5, MOST) == ([entry] if again == 5 else [])
        assert deadlines.due(9, MOST) == ([entry] if again == 9 else [])
        ends(deadlines, entry)


def test_memory_stays_proportional_to_what_has_not_ended() -> None:
    """A far deadline of a request that was answered at once is not kept for ever."""
    deadlines = Deadlines()
    kept = watched(deadlines, 10**15, num=3)
    for _ in range(10 * SLACK):
        ends(deadlines, watched(deadlines, 10**15 + 1))
    assert len(deadlines._heap) <= 2 * SLACK  # noqa: SLF001  memory has no public face
    assert deadlines.due(10**16, MOST) == [kept]


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 3), st.booleans()), max_size=40), st.integers(0, 25))
def test_exactly_what_is_late_and_unanswered_is_due(entries: list[tuple[int, int, bool]], now_ns: int) -> None:
    """Whatever has ended before."""
    deadlines = Deadlines()
    made = [(watched(deadlines, at, num), at, ended) for at, num, ended in entries]
    for entry, _, ended in made:
        if ended:
            ends(deadlines, entry)
    due = deadlines.due(now_ns, MOST)
    assert sorted(map(id, due)) == sorted(id(entry) for entry, at, ended in made if at <= now_ns and not ended)
    next_ns = deadlines.next_ns()
    assert next_ns is None or next_ns > now_ns
