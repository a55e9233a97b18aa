"""A client's ledger: what was submitted, sent, answered, given up, and must be sent again."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import bundles, chunk, payload, wire
from orch.arena import Arena
from orch.calls import MAX_RESENDS, NS, SHARED_DEADLINE_S, SLACK, WINDOW_BYTES, Call, Calls
from orch.chunk import Chunk
from orch.errors import Closed, DeadlineExceeded, Overloaded, RemoteProtocolError, WorkerLost
from orch.loans import Loans
from orch.wire import Flag, Kind, Priority, Record


def note(outcomes: list[Any], value: Any, error: BaseException | None) -> None:
    """Remember how a call ended."""
    outcomes.append(value if error is None else error)


def opened(record: Record) -> list[Record]:
    """Each call of a record by itself."""
    return bundles.singles(record) if record.flags & Flag.BUNDLE else [record]


class Desk:
    """A client's calls, and by number what became of each."""

    def __init__(self, window: int = 100) -> None:
        self.calls = Calls()
        self.calls.window = window
        self.outcomes: dict[int, list[Any]] = {}
        self.parts: dict[int, list[Any]] = {}
        self.made: dict[int, Call] = {}

    def submits(self, *request_ids: int, **more: Any) -> None:
        for request_id in request_ids:
            outcomes = self.outcomes[request_id] = []
            parts = self.parts[request_id] = []
            on_part = parts.append if more.get("flags", 0) & Flag.STREAM else None
            body, frames = payload.encode(more.get("value", f"input {request_id}"))
            call = Call(
                request_id,
                body,
                frames,
                functools.partial(note, outcomes),
                flags=more.get("flags", 0),
                priority=more.get("priority", Priority.NORMAL),
                model=more.get("model", 0),
                deadline=more.get("deadline"),
                on_part=on_part,
            )
            self.made[request_id] = call
            self.calls.submit(call)

    def sends(self, now: float = 0.0, *, local: bool = True) -> list[Record]:
        return list(self.calls.to_send(now, local=local))

    def sent_ids(self, now: float = 0.0) -> list[int]:
        return [number for numbers in self.sent_together(now) for number in numbers]

    def sent_together(self, now: float = 0.0) -> list[list[int]]:
        """The numbers of the calls in each record."""
        return [[each.request_id for each in opened(record)] for record in self.sends(now)]

    def hears(self, request_id: int, value: Any = "answer", kind: int = Kind.RESULT) -> None:
        body, frames = payload.encode(value)
        self.calls.take(Record(kind, request_id=request_id, body=body, frames=tuple(map(bytearray, frames))))

    def hears_bundle(self, first_id: int, *values: Any) -> None:
        """Of values that are bytes, the bodies themselves."""
        bodies = [value if isinstance(value, bytes) else payload.encode(value)[0] for value in values]
        self.calls.take(Record(Kind.RESULT, Flag.BUNDLE, request_id=first_id, rows=len(bodies), frames=tuple(bodies)))

    def outcome(self, request_id: int) -> Any:
        """The one outcome of a call that has ended."""
        (outcome,) = self.outcomes[request_id]
        return outcome


def test_a_call_is_sent_once_and_answered_once() -> None:
    """A second answer, or one to nothing, is ignored."""
    desk = Desk()
    desk.submits(1)
    assert desk.calls.pending
    assert desk.calls.sendable
    (record,) = desk.sends()
    assert (record.kind, record.request_id, record.attempt) == (Kind.REQUEST, 1, 0)
    assert payload.decode(record.body) == "input 1"
    assert desk.sends() == []
    desk.hears(1, [2.5])
    desk.hears(1, "again")
    desk.hears(99)
    assert desk.outcome(1) == [2.5]
    assert not desk.calls.pending


def test_calls_are_sent_in_the_order_of_submission_within_the_window() -> None:
    """The next one follows when an answer has made room."""
    desk = Desk(window=2)
    desk.submits(1, 2, 3, 4)
    assert desk.sent_ids() == [1, 2]
    assert not desk.calls.sendable
    desk.hears(2)
    assert desk.sent_ids() == [3]
    desk.hears(1)
    desk.hears(3)
    assert desk.sent_ids() == [4]


def test_the_window_is_also_one_of_bytes_and_one_call_alone_always_fits() -> None:
    """A hundred images do not all lie in the socket at once."""
    desk = Desk()
    large = bytes(WINDOW_BYTES // 2 + 1)
    desk.submits(1, 2, value=large)
    assert desk.sent_ids() == [1]
    desk.hears(1)
    assert desk.sent_ids() == [2]


def test_what_the_client_wants_reaches_the_balancer() -> None:
    """Priority, the flags, and the deadline on the clock that both ends share."""
    desk = Desk()
    desk.submits(1, priority=Priority.HIGH, flags=Flag.NO_RETRY | Flag.STREAM, deadline=12.5)
    (record,) = desk.sends(now=10.0)
    assert record.priority == Priority.HIGH
    assert record.flags == Flag.NO_RETRY | Flag.STREAM
    assert record.deadline_ns == 12.5 * NS


def test_over_tcp_a_deadline_travels_as_what_remains_of_it() -> None:
    """Clocks of two hosts differ; and nothing left is still not "no deadline"."""
    desk = Desk()
    desk.submits(1, deadline=12.5)
    desk.submits(2, deadline=9.0)
    first, second = desk.sends(now=10.0, local=False)
    assert first.flags & second.flags & Flag.BUDGET
    assert first.deadline_ns == 2.5 * NS
    assert second.deadline_ns == 1


def test_an_error_of_the_balancer_is_raised_as_its_type() -> None:
    """With its hint when to try again."""
    desk = Desk()
    desk.submits(1)
    desk.sends()
    desk.calls.take(wire.error_record(1, "overloaded", "the queue is full", 0.5))
    error = desk.outcome(1)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 0.5


class FullArena:
    """What a client has no memory left to copy out of."""

    memory = memoryview(bytearray(1))

    def __init__(self, path: str, epoch: int) -> None:
        pass

    def read(self, _body: bytes) -> Any:
        raise MemoryError


def test_an_answer_that_there_is_no_memory_for_ends_its_own_call_only() -> None:
    """Nobody else could end it: it is expected no more."""
    desk = Desk()
    desk.calls.loans = Loans("arena", 1, cast("type[Arena]", FullArena))
    desk.submits(1, value=bytes(wire.FRAME_BYTES))
    desk.submits(2)
    assert [record.kind for record in desk.sends()] == [Kind.REQUEST, Kind.REQUEST, Kind.LEASE]
    body = chunk.write_descriptor(Chunk(7, 0, 64), [64])
    desk.calls.take(Record(Kind.RESULT, Flag.ARENA, request_id=1, body=body))
    assert isinstance(desk.outcome(1), MemoryError)
    desk.hears(2)
    assert desk.outcome(2) == "answer"


@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.ERROR])
def test_an_answer_that_cannot_be_read_ends_its_own_call_only(kind: int) -> None:
    """The others still get theirs."""
    desk = Desk()
    desk.submits(1, 2)
    desk.sends()
    desk.calls.take(Record(kind, request_id=1, body=b"\xc1"))
    desk.hears(2)
    assert isinstance(desk.outcome(1), RemoteProtocolError)
    assert desk.outcome(2) == "answer"


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.READY, Kind.CANCEL, Kind.WELCOME])
def test_a_record_that_is_no_answer_is_refused_and_loses_nothing(kind: int) -> None:
    """The call is still there for the one that is."""
    desk = Desk()
    desk.submits(1)
    desk.sends()
    with pytest.raises(RemoteProtocolError):
        desk.hears(1, kind=kind)
    desk.hears(1)
    assert desk.outcome(1) == "answer"


# --- bundles -------------------------------------------------------------------------------------------------------


def test_calls_in_a_row_leave_in_one_record() -> None:
    """Which says of each what a record of its own would have said; one alone is no bundle."""
    desk = Desk()
    more = {"priority": Priority.LOW, "flags": Flag.NO_RETRY, "model": 3}
    desk.submits(5, 6, 7, **more)
    (bundle,) = desk.sends()
    assert bundle.flags & Flag.BUNDLE
    alone = Desk()
    singles: list[Record] = []
    for number in (5, 6, 7):
        alone.submits(number, **more)
        singles += alone.sends()
    assert opened(bundle) == singles
    assert not any(record.flags & Flag.BUNDLE for record in singles)


@pytest.mark.parametrize(
    ("more", "are_alike"),
    [
        ({"priority": Priority.HIGH}, True),
        ({"model": 1}, True),
        ({"flags": Flag.NO_RETRY}, True),
        ({"flags": Flag.STREAM}, False),
        ({"deadline": 9.0}, True),
        ({"value": bytes(wire.FRAME_BYTES)}, False),
    ],
    ids=["priority", "model", "flags", "stream", "deadline", "frames"],
)
def test_what_tells_calls_apart_ends_a_bundle(more: dict[str, Any], are_alike: bool) -> None:
    """Only calls that are alike, and need no record of their own, travel together; the order stays."""
    desk = Desk()
    desk.submits(1, 2)
    desk.submits(3, 4, **more)
    desk.submits(5, 6)
    assert desk.sent_together() == [[1, 2], *([[3, 4]] if are_alike else [[3], [4]]), [5, 6]]


def test_a_call_that_is_left_out_ends_a_bundle() -> None:
    """The numbers in one follow one another."""
    desk = Desk()
    desk.submits(1, 2, 3, 4, 5)
    desk.calls.cancel(desk.made[3])
    control, *sent = desk.sends()
    assert control.kind == Kind.CANCEL
    assert [[each.request_id for each in opened(record)] for record in sent] == [[1, 2], [4, 5]]
    desk.submits(7, 8, 6)
    assert desk.sent_together() == [[7, 8], [6]]


def test_what_is_sent_again_says_so_in_a_record_of_its_own() -> None:
    """The balancer may know one of them and not the other."""
    desk = Desk()
    desk.submits(1, 2, 3)
    desk.sends()
    desk.submits(4, 5)
    desk.calls.new_balancer()
    records = desk.sends()
    assert [[each.request_id for each in opened(record)] for record in records] == [[1], [2], [3], [4, 5]]
    assert [bool(record.flags & Flag.RESEND) for record in records] == [True, True, True, False]


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize(
    ("deadlines", "together"),
    [
        ((5.0, 5.0 + SHARED_DEADLINE_S / 2, 5.0), [[1, 2, 3]]),
        ((5.0, 5.0 - SHARED_DEADLINE_S / 2, 5.0 + SHARED_DEADLINE_S / 2), [[1, 2, 3]]),
        ((5.0, 5.008, 5.016, 5.024), [[1, 2], [3, 4]]),
        ((5.0, 4.992, 4.984, 4.976), [[1, 2], [3, 4]]),
        ((None, 5.0, 5.0, None, None), [[1], [2, 3], [4, 5]]),
        ((1e9, 1e9, 5.0, 1e9), [[1, 2], [3], [4]]),
    ],
)
def test_calls_share_a_deadline_that_is_close_to_the_firsts(
    deadlines: tuple[float | None, ...], together: list[list[int]], local: bool
) -> None:
    """The latest of theirs, so that none is dropped before its time; and what has none gets none."""
    desk = Desk()
    for number, deadline in enumerate(deadlines, 1):
        desk.submits(number, deadline=deadline)
    ((head,),) = wire.messages(desk.sends(1.0, local=local))
    records = wire.decode(head)
    assert [[each.request_id for each in opened(record)] for record in records] == together
    for record in records:
        its = [deadlines[each.request_id - 1] for each in opened(record)]
        latest = max([each for each in its if each is not None], default=None)
        begin = 0.0 if local else 1.0
        assert record.deadline_ns == (0 if latest is None else int((latest - begin) * NS))
        assert bool(record.flags & Flag.BUDGET) == (latest is not None and not local)


def test_over_tcp_deadlines_that_have_passed_leave_something_of_their_time() -> None:
    """Nothing would mean that there is no deadline."""
    desk = Desk()
    desk.submits(1, 2, deadline=5.0)
    (bundle,) = desk.sends(6.0, local=False)
    assert (bundle.rows, bundle.deadline_ns, bundle.flags) == (2, 1, Flag.BUNDLE | Flag.BUDGET)


def test_each_call_of_a_bundle_ends_at_its_own_deadline() -> None:
    """The balancer, which has heard of the latest only, is told of the others."""
    desk = Desk()
    for number, deadline in enumerate((5.0, 5.004, 4.996, 5.002), 1):
        desk.submits(number, deadline=deadline)
    assert desk.sent_together() == [[1, 2, 3, 4]]
    desk.calls.expire(4.998)
    desk.hears(4)
    desk.calls.expire(5.003)
    assert [desk.outcomes[2], desk.outcome(4)] == [[], "answer"]
    assert [type(desk.outcome(number)) for number in (1, 3)] == [DeadlineExceeded] * 2
    assert [(record.kind, record.request_id) for record in desk.sends()] == [(Kind.CANCEL, 3), (Kind.CANCEL, 1)]
    desk.hears_bundle(1, "late", "in time", "late")
    desk.calls.take_results(9)
    assert desk.outcome(2) == "in time"
    assert not desk.calls.pending


def test_what_is_sent_again_has_a_deadline_of_its_own() -> None:
    """It travels by itself, and need not share one."""
    desk = Desk()
    desk.submits(1, deadline=5.0)
    desk.submits(2, deadline=5.004)
    assert desk.sent_together() == [[1, 2]]
    desk.calls.new_balancer()
    desk.submits(3, deadline=5.004)
    desk.submits(4, deadline=5.004)
    records = desk.sends()
    assert [[each.request_id for each in opened(record)] for record in records] == [[1], [2], [3, 4]]
    assert [record.deadline_ns for record in records] == [5_000_000_000, 5_004_000_000, 5_004_000_000]


def test_a_bundle_has_at_most_256_calls() -> None:
    """As many as a message."""
    desk = Desk(window=1000)
    desk.submits(*range(1, 514))
    assert [len(numbers) for numbers in desk.sent_together()] == [256, 256, 1]


def test_a_bundle_fits_a_message() -> None:
    """One call that is larger than that travels alone."""
    desk = Desk()
    desk.submits(*range(1, 10), value="x" * 60_000)
    records = desk.sends()
    assert [len(opened(record)) for record in records] == [4, 4, 1]
    assert [len(message[0]) <= wire.MAX_INLINE_BYTES for message in wire.messages(records)] == [True] * 3


@given(
    st.lists(
        st.tuples(
            st.sampled_from((1, 20_000, 60_000)),
            st.sampled_from(Priority),
            st.booleans(),
            st.sampled_from((None, None, None, 5.0)),
            st.booleans(),
        ),
        max_size=40,
    ),
    st.integers(1, 50),
)
def test_all_calls_leave_once_in_order_in_messages_that_can_be_read(
    calls: list[tuple[int, Priority, bool, float | None, bool]], window: int
) -> None:
    """Whatever their mixture, and however the window cuts them."""
    desk = Desk(window)
    for number, (size, priority, is_stream, deadline, is_cancelled) in enumerate(calls, 1):
        flags = Flag.STREAM if is_stream else 0
        desk.submits(number, value="x" * size, priority=priority, flags=flags, deadline=deadline)
        desk.made[number].done = is_cancelled
    left = [number for number, call in enumerate(calls, 1) if not call[4]]
    while left:
        read = [each for head, *frames in wire.messages(desk.sends()) for each in wire.decode(head, frames)]
        records = [each for record in read for each in opened(record)]
        assert [record.request_id for record in records] == left[:window]
        for record in records:
            size, priority, is_stream, deadline, _ = calls[record.request_id - 1]
            assert payload.decode(record.body) == "x" * size
            assert (record.priority, record.flags) == (priority, Flag.STREAM if is_stream else 0)
            assert record.deadline_ns == (deadline or 0) * NS
            desk.hears(record.request_id)
        left = left[window:]
    assert not desk.calls.sent


def test_answers_in_a_bundle_settle_each_its_own_call_once() -> None:
    """Those that nobody waits for are ignored, and so is the bundle that comes again."""
    desk = Desk(window=3)
    desk.submits(1, 2, 3, 4)
    desk.sends()
    desk.hears(2, "before")
    for _ in range(2):
        desk.hears_bundle(0, "none", "a", "b", "c", "of 4", "none")
        assert desk.calls.results
        desk.calls.take_results(100)
        assert not desk.calls.results
        assert not desk.calls.results
    assert [desk.outcome(number) for number in (1, 2, 3)] == ["a", "before", "c"]
    assert desk.outcomes[4] == [], "it was not sent yet"
    assert desk.sent_ids() == [4], "and now it may be"


def test_the_answers_of_a_bundle_make_room_for_bytes_and_tell_their_batch() -> None:
    """As answers in records of their own do."""
    desk = Desk()
    desk.submits(1, 2, value="x" * 60_000)
    desk.submits(3, value=bytes(WINDOW_BYTES - 70_000))
    assert desk.sent_ids() == [1, 2]
    bodies = payload.encode("a")[0], payload.encode("b")[0]
    times = wire.pack_times(0.25, 0.5)
    desk.calls.take(Record(Kind.RESULT, Flag.BUNDLE, request_id=1, deadline_ns=times, rows=2, frames=bodies))
    assert not desk.calls.sendable
    desk.calls.take_results(1)
    assert desk.calls.results, "one was taken, and one is left"
    assert desk.outcomes[2] == []
    assert desk.sent_ids() == [3]
    desk.calls.take_results(1)
    assert not desk.calls.results
    assert [desk.made[number].times for number in (1, 2)] == [times, times]


def test_an_answer_in_a_bundle_that_cannot_be_read_ends_its_own_call_only() -> None:
    """The others still get theirs."""
    desk = Desk()
    desk.submits(1, 2, 3)
    desk.sends()
    desk.hears_bundle(1, "a", b"\xc1", "c")
    desk.calls.take_results(100)
    assert isinstance(desk.outcome(2), RemoteProtocolError)
    assert [desk.outcome(1), desk.outcome(3)] == ["a", "c"]


@pytest.mark.parametrize("body", [payload.encode("b")[0], b"\xc1"], ids=["result", "error"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_exception_out_of_a_callback_leaves_the_other_answers_of_a_bundle_to_be_taken(
    error: type[BaseException], body: bytes
) -> None:
    """With the next look at what has arrived."""
    desk = Desk()
    desk.submits(1, 2, 3, 4)
    desk.sends()

    def leave(_value: Any, _error: BaseException | None) -> None:
        raise error

    desk.made[2].settle = leave
    desk.hears_bundle(1, "a", body, "c", "d")
    with pytest.raises(error):
        desk.calls.take_results(100)
    assert desk.outcome(1) == "a"
    assert desk.calls.results
    assert len(desk.calls.sent) == 2
    desk.calls.take_results(100)
    assert not desk.calls.results
    assert [desk.outcome(3), desk.outcome(4)] == ["c", "d"]
    assert not desk.calls.pending


def test_what_a_callback_submits_can_be_sent_before_the_rest_of_a_bundle_is_taken() -> None:
    """Those who have their answers ask again at once; the others' are still there."""
    desk = Desk(window=4)
    desk.submits(1, 2, 3, 4)
    desk.sends()
    for number in (1, 2):
        desk.made[number].settle = lambda _value, _error, again=number + 10: desk.submits(again)  # type: ignore[misc]
    desk.hears_bundle(1, "a", "b", "c", "d")
    desk.calls.take_results(2)
    assert desk.calls.results
    assert desk.calls.is_half_unsent
    assert desk.sent_together() == [[11, 12]]
    assert not desk.calls.is_half_unsent
    desk.calls.take_results(2)
    assert not desk.calls.results
    assert [desk.outcome(3), desk.outcome(4)] == ["c", "d"]
    assert len(desk.calls.sent) == 2


def test_answers_in_a_bundle_that_come_too_late_are_dropped() -> None:
    """Cancelled, cancelled and told, or past its deadline before they are taken: nobody hears of them."""
    desk = Desk()
    desk.submits(1, 2)
    desk.submits(3, deadline=5.0)
    desk.submits(4)
    desk.sends()
    desk.hears_bundle(1, "a", "b", "c", "d")
    desk.calls.cancel(desk.made[1])
    desk.calls.cancel(desk.made[2])
    desk.calls.cancelled(2)
    desk.calls.expire(6.0)
    desk.calls.take_results(100)
    assert desk.outcomes[1] == desk.outcomes[2] == []
    assert isinstance(desk.outcome(3), DeadlineExceeded)
    assert desk.outcome(4) == "d"
    assert not desk.calls.sent


def test_answers_of_a_lost_balancer_that_were_not_taken_are_asked_for_again() -> None:
    """What its bundles held is not taken for the new one's."""
    desk = Desk()
    desk.submits(1, 2)
    desk.sends()
    desk.hears_bundle(1, "old", "old")
    desk.calls.take_results(1)
    desk.calls.new_balancer()
    assert not desk.calls.results
    assert desk.sent_ids() == [2]
    desk.hears_bundle(2, "new")
    desk.calls.take_results(100)
    assert [desk.outcome(1), desk.outcome(2)] == ["old", "new"]


def test_no_answer_of_a_bundle_comes_behind_the_end_of_all_calls() -> None:
    """Each call ended with its error."""
    desk = Desk()
    desk.submits(1, 2)
    desk.sends()
    desk.hears_bundle(1, "a", "b")
    desk.calls.fail_all(lambda: Closed("closed"))
    assert not desk.calls.results
    desk.calls.take_results(100)
    assert not desk.calls.results
    assert all(isinstance(desk.outcome(number), Closed) for number in (1, 2))


def test_a_bundle_of_requests_is_no_answer() -> None:
    """It is refused like one request, and the call still waits."""
    desk = Desk()
    desk.submits(1)
    (request,) = desk.sends()
    with pytest.raises(RemoteProtocolError):
        desk.calls.take(request._replace(flags=Flag.BUNDLE, body=b"", frames=(request.body,)))
    desk.calls.take_results(100)
    assert desk.outcomes[1] == []


# --- streams -------------------------------------------------------------------------------------------------------


def test_parts_arrive_one_by_one_and_the_end_resolves_the_call() -> None:
    """The window is held until the end."""
    desk = Desk(window=1)
    desk.submits(1, flags=Flag.STREAM)
    desk.submits(2)
    desk.sends()
    for part in ("a", "b"):
        desk.hears(1, part, Kind.PART)
    assert desk.sends() == []
    desk.calls.take(Record(Kind.END, request_id=1))
    assert desk.parts[1] == ["a", "b"]
    assert desk.outcome(1) is None
    assert desk.sent_ids() == [2]


def test_a_part_that_cannot_be_read_ends_its_stream_and_tells_the_balancer() -> None:
    """A stream with a hole in it is not one."""
    desk = Desk()
    desk.submits(1, 2, flags=Flag.STREAM)
    desk.sends()
    desk.calls.take(Record(Kind.PART, request_id=1, body=b"\xc1"))
    desk.hears(1, "late", Kind.PART)
    assert isinstance(desk.outcome(1), RemoteProtocolError)
    assert desk.parts[1] == []
    assert [(record.kind, record.request_id) for record in desk.sends()] == [(Kind.CANCEL, 1)]
    assert desk.outcomes[2] == []


def test_credit_goes_ahead_of_calls() -> None:
    """It lets a stream go on that already holds a worker."""
    desk = Desk()
    desk.submits(1)
    desk.calls.say(Record(Kind.CREDIT, request_id=7, rows=16))
    assert [record.kind for record in desk.sends()] == [Kind.CREDIT, Kind.REQUEST]


# --- giving up -----------------------------------------------------------------------------------------------------


def test_a_cancelled_call_that_was_not_sent_is_never_sent() -> None:
    """And has no outcome: nobody waits for one."""
    desk = Desk(window=1)
    desk.submits(1, 2, 3)
    desk.sends()
    desk.calls.cancel(desk.made[2])
    desk.hears(1)
    assert [record.request_id for record in desk.sends() if record.kind == Kind.REQUEST] == [3]
    assert desk.outcomes[2] == []


def test_a_cancelled_call_that_does_not_fit_holds_nobody_up() -> None:
    """It is passed over before anybody asks whether there is room for it."""
    desk = Desk()
    desk.submits(1, 2, value=bytes(WINDOW_BYTES // 2 + 1))
    desk.submits(3)
    assert desk.sent_ids() == [1]
    assert desk.sends() == []
    desk.calls.cancel(desk.made[2])
    assert [record.request_id for record in desk.sends() if record.kind == Kind.REQUEST] == [3]


def test_a_cancelled_call_that_was_sent_is_cancelled_at_the_balancer_once() -> None:
    """Its place in the window is free when the balancer has been told."""
    desk = Desk(window=1)
    desk.submits(1, 2)
    desk.sends()
    desk.calls.cancel(desk.made[1])
    desk.calls.cancel(desk.made[1])
    assert desk.calls.sendable
    assert [(record.kind, record.request_id) for record in desk.sends()] == [(Kind.CANCEL, 1)]
    desk.calls.cancelled(1)
    assert desk.sent_ids() == [2]
    desk.hears(1)
    assert desk.outcomes[1] == []


def test_an_answer_that_crosses_its_cancellation_is_dropped() -> None:
    """Whoever cancelled does not hear of it."""
    desk = Desk()
    desk.submits(1)
    desk.sends()
    desk.calls.cancel(desk.made[1])
    desk.hears(1)
    assert desk.outcomes[1] == []


def test_a_call_without_an_answer_in_time_ends_at_its_deadline() -> None:
    """The balancer hears of it; an answer that comes later is ignored."""
    desk = Desk()
    desk.submits(1, deadline=5.0)
    desk.submits(2, deadline=3.0)
    desk.submits(3)
    desk.sends()
    assert desk.calls.next_deadline() == 3.0
    desk.calls.expire(4.0)
    assert isinstance(desk.outcome(2), DeadlineExceeded)
    assert "may be running" in str(desk.outcome(2))
    assert [(record.kind, record.request_id) for record in desk.sends()] == [(Kind.CANCEL, 2)]
    desk.hears(2)
    desk.hears(1)
    desk.calls.expire(9.0)
    assert desk.outcome(1) == "answer"
    assert desk.calls.next_deadline() is None
    assert desk.outcomes[3] == []


def test_a_call_ends_at_its_deadline_also_behind_others_that_wait_to_be_sent() -> None:
    """A full window is no excuse: its timeout is measured from the call."""
    desk = Desk(window=1)
    desk.submits(1, 2)
    desk.submits(3, deadline=5.0)
    desk.submits(4)
    desk.sends()
    assert desk.calls.next_deadline() == 5.0
    desk.calls.expire(5.0)
    assert isinstance(desk.outcome(3), DeadlineExceeded)
    assert "before it could be sent" in str(desk.outcome(3))
    desk.hears(1)
    assert desk.sent_ids() == [2], "and no CANCEL for what the balancer never had"
    desk.hears(2)
    assert desk.sent_ids() == [4]


def test_deadlines_of_answered_calls_do_not_pile_up() -> None:
    """A client that runs for a year with long timeouts holds what is unanswered, not what it ever sent."""
    desk = Desk()
    for number in range(4 * SLACK):
        desk.submits(number, deadline=1e9)
        desk.sends()
        desk.hears(number)
        desk.calls.expire(1.0)
    assert len(desk.calls.deadlines) <= SLACK + 2


def test_an_ended_call_lets_go_of_its_payload() -> None:
    """Whoever keeps the future does not keep the image."""
    desk = Desk()
    desk.submits(1, value=bytes(100_000))
    desk.sends()
    desk.hears(1)
    assert (desk.made[1].body, desk.made[1].frames) == (b"", ())


# --- another balancer ----------------------------------------------------------------------------------------------


def test_a_new_balancer_is_sent_what_is_unanswered_oldest_first() -> None:
    """Marked as sent before, with how often; ahead of what was never sent."""
    desk = Desk(window=3)
    desk.submits(1, 2, 3, 4, deadline=50.0)
    desk.sends()
    desk.hears(2)
    desk.calls.say(Record(Kind.CREDIT, request_id=1))
    desk.calls.new_balancer()
    records = desk.sends()
    assert [record.request_id for record in records] == [1, 3, 4]
    assert [bool(record.flags & Flag.RESEND) for record in records] == [True, True, False]
    assert [record.attempt for record in records] == [1, 1, 0]
    assert payload.decode(records[1].body) == "input 3"
    desk.calls.expire(60.0)
    assert all(isinstance(desk.outcome(number), DeadlineExceeded) for number in (1, 3, 4))


def test_what_may_not_run_twice_is_not_sent_twice() -> None:
    """Without retry, or with parts that were read already: the new balancer cannot know how far the old one came."""
    desk = Desk()
    desk.submits(1, flags=Flag.NO_RETRY)
    desk.submits(2, 3, flags=Flag.STREAM)
    desk.sends()
    desk.hears(2, "part", Kind.PART)
    desk.submits(4, flags=Flag.NO_RETRY)
    desk.calls.new_balancer()
    assert isinstance(desk.outcome(1), WorkerLost)
    assert isinstance(desk.outcome(2), WorkerLost)
    assert desk.sent_ids() == [3, 4], "an unsent one ran nowhere yet"


def test_a_call_that_outlives_many_balancers_may_be_what_kills_them() -> None:
    """It is given up, and the instance is left in peace."""
    desk = Desk()
    desk.submits(1)
    for _ in range(MAX_RESENDS):
        desk.sends()
        desk.calls.new_balancer()
        assert desk.outcomes[1] == []
    desk.sends()
    desk.calls.new_balancer()
    assert isinstance(desk.outcome(1), WorkerLost)
    assert not desk.calls.pending


def test_a_cancelled_call_is_not_sent_to_a_new_balancer() -> None:
    """Nor is its CANCEL, which the new one could not understand."""
    desk = Desk()
    desk.submits(1, 2)
    desk.sends()
    desk.calls.cancel(desk.made[1])
    desk.calls.new_balancer()
    assert desk.sent_ids() == [2]


def test_a_call_whose_deadline_passes_between_two_balancers_ends() -> None:
    """It may have run with the first."""
    desk = Desk()
    desk.submits(1, deadline=5.0)
    desk.sends()
    desk.calls.new_balancer()
    assert desk.calls.next_deadline() == 5.0
    desk.calls.expire(6.0)
    assert "may be running" in str(desk.outcome(1))
    assert desk.sends(6.0) == []
    assert not desk.calls.pending


def test_when_no_answer_can_come_every_call_ends_with_an_error_of_its_own() -> None:
    """An exception that two callers raise would mix their tracebacks."""
    desk = Desk(window=1)
    desk.submits(1, 2, deadline=5.0)
    desk.sends()
    desk.calls.fail_all(lambda: Closed("the client was closed"))
    assert isinstance(desk.outcome(1), Closed)
    assert isinstance(desk.outcome(2), Closed)
    assert desk.outcome(1) is not desk.outcome(2)
    assert not desk.calls.pending
    assert desk.calls.next_deadline() is None
    desk.submits(3)
    assert desk.sent_ids() == [3]


def test_what_is_submitted_while_all_calls_fail_ends_or_is_sent() -> None:
    """Other threads submit at any moment; nobody waits for ever, and what is sent ends at its deadline."""
    desk, num = Desk(window=50_000), 10_000
    numbers = range(1, num + 1)

    def submit() -> None:
        for number in numbers:
            desk.submits(number, deadline=5.0)

    thread = threading.Thread(target=submit)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        while thread.is_alive():
            desk.calls.fail_all(lambda: Closed("closed"))
    finally:
        sys.setswitchinterval(interval_s)
        thread.join()
    desk.sends()
    desk.calls.expire(6.0)
    assert [number for number in numbers if len(desk.outcomes[number]) != 1] == []


def test_an_exception_out_of_one_callback_leaves_no_other_call_waiting() -> None:
    """Even one that ends a thread."""
    desk = Desk()
    desk.submits(1, 2, 3)

    def leave(_value: Any, _error: BaseException | None) -> None:
        raise SystemExit

    desk.made[1].settle = leave
    with pytest.raises(SystemExit):
        desk.calls.fail_all(lambda: Closed("closed"))
    assert isinstance(desk.outcome(2), Closed)
    assert isinstance(desk.outcome(3), Closed)


def test_a_call_settles_once_whatever_comes_after() -> None:
    """Deadline, answer, cancellation and failure race; the first wins."""
    desk = Desk()
    desk.submits(1, deadline=1.0)
    desk.sends()
    desk.calls.expire(2.0)
    desk.calls.cancel(desk.made[1])
    desk.made[1].finish("answer", None)
    desk.calls.fail_all(lambda: Closed("closed"))
    with contextlib.suppress(RemoteProtocolError):
        desk.hears(1)
    assert isinstance(desk.outcome(1), DeadlineExceeded)
