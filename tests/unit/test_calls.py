"""A client's ledger: what was submitted, sent, answered, given up, and must be sent again."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import pytest

from orch import payload, wire
from orch.calls import MAX_RESENDS, NS, SLACK, WINDOW_BYTES, Call, Calls
from orch.errors import Closed, DeadlineExceeded, Overloaded, RemoteProtocolError, WorkerLost
from orch.wire import Flag, Kind, Priority, Record


def note(outcomes: list[Any], value: Any, error: BaseException | None) -> None:
    """Remember how a call ended."""
    outcomes.append(value if error is None else error)


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
                deadline=more.get("deadline"),
                on_part=on_part,
            )
            self.made[request_id] = call
            self.calls.submit(call)

    def sends(self, now: float = 0.0, *, local: bool = True) -> list[Record]:
        return list(self.calls.to_send(now, local=local))

    def sent_ids(self, now: float = 0.0) -> list[int]:
        return [record.request_id for record in self.sends(now)]

    def hears(self, request_id: int, value: Any = "answer", kind: int = Kind.RESULT) -> None:
        body, frames = payload.encode(value)
        self.calls.take(Record(kind, request_id=request_id, body=body, frames=tuple(map(bytearray, frames))))

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
    assert len(desk.calls._deadlines) <= SLACK + 2  # noqa: SLF001  memory has no public face


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
