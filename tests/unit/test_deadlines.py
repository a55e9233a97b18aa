"""Deadlines of what is admitted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orch.wire import Priority
from orch_balancer.deadlines import SLACK, Deadlines
from orch_balancer.entry import Entry, Place, Session

SESSION = Session(b"", b"")


def watched(deadlines: Deadlines, deadline_ns: int) -> Entry:
    """An admitted request."""
    entry = Entry(SESSION, 1, b"", (), 0, 0, deadline_ns, 1, Priority.NORMAL, 0, 0.0)
    deadlines.watch(entry)
    return entry


def ends(deadlines: Deadlines, entry: Entry) -> None:
    """It got its final answer."""
    entry.place = Place.DONE
    deadlines.ended(entry)


def test_nothing_is_due_without_deadlines() -> None:
    """A request without one is never late."""
    deadlines = Deadlines()
    entry = watched(deadlines, 0)
    assert deadlines.next_ns() is None
    assert list(deadlines.due(10**18)) == []
    ends(deadlines, entry)


def test_entries_are_due_in_the_order_of_their_deadlines_each_once() -> None:
    """Also those with the same one."""
    deadlines = Deadlines()
    late, early, same = (watched(deadlines, at) for at in (30, 10, 30))
    assert deadlines.next_ns() == 10
    assert list(deadlines.due(9)) == []
    assert list(deadlines.due(10)) == [early]
    assert list(deadlines.due(10)) == []
    assert list(deadlines.due(99)) == [late, same]
    assert deadlines.next_ns() is None


def test_what_has_ended_is_never_due() -> None:
    """Not even where it ends while others are given out."""
    deadlines = Deadlines()
    first, second, third = (watched(deadlines, at) for at in (1, 2, 3))
    ends(deadlines, second)
    seen = []
    for entry in deadlines.due(10):
        seen.append(entry)
        if entry is first:
            ends(deadlines, third)
    assert seen == [first]


def test_memory_stays_proportional_to_what_has_not_ended() -> None:
    """A far deadline of a request that was answered at once is not kept for ever."""
    deadlines = Deadlines()
    kept = watched(deadlines, 10**15)
    for _ in range(10 * SLACK):
        ends(deadlines, watched(deadlines, 10**15 + 1))
    assert len(deadlines._heap) <= 2 * SLACK  # noqa: SLF001  memory has no public face
    assert list(deadlines.due(10**16)) == [kept]


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=40), st.integers(0, 25))
def test_exactly_what_is_late_and_unanswered_is_due(entries: list[tuple[int, bool]], now_ns: int) -> None:
    """Whatever has ended before."""
    deadlines = Deadlines()
    made = [(watched(deadlines, at), at, ended) for at, ended in entries]
    for entry, _, ended in made:
        if ended:
            ends(deadlines, entry)
    due = list(deadlines.due(now_ns))
    assert sorted(map(id, due)) == sorted(id(entry) for entry, at, ended in made if at <= now_ns and not ended)
    next_ns = deadlines.next_ns()
    assert next_ns is None or next_ns > now_ns
