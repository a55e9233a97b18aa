"""A client's unanswered calls: what was submitted, sent, and must be sent again to a new balancer."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import repeat
from typing import Any

from orch import errors, payload, wire
from orch.chunk import Chunk
from orch.errors import DeadlineExceeded, OrchError, RemoteProtocolError, WorkerLost
from orch.loans import Loans
from orch.wire import FINAL, Flag, Kind, Priority, Record

NS = 1_000_000_000
# Bytes that may be on their way or at the balancer; one call alone may be larger.
WINDOW_BYTES = 256 * 1024 * 1024
# A call that was with this many balancers when they died is not given to another.
MAX_RESENDS = 8
# Ended calls stay in the heap of deadlines until they surface, or until there are this many more than live ones.
SLACK = 1024
ANSWERS = FINAL | {Kind.PART}
# For every record: to look a member up in its enum costs as much as the rest of a comparison.
BUNDLE = Flag.BUNDLE
REQUEST, RESULT, PART, END = int(Kind.REQUEST), int(Kind.RESULT), int(Kind.PART), int(Kind.END)
KEPT, STREAM = Flag.KEPT, Flag.STREAM
# A NamedTuple's own constructor is a Python function, and takes three times as long.
new_tuple = tuple.__new__


class Call:
    """One call. `settle(value, error)` is called once, with one of them, by the thread that drives the socket."""

    __slots__ = (
        "body", "chunk", "deadline", "deadline_ns", "done", "flags", "frames", "got_parts", "model", "num_bytes",
        "on_part", "priority", "request_id", "resends", "sent", "settle", "times",
    )  # fmt: skip

    def __init__(
        self,
        request_id: int,
        body: bytes,
        frames: tuple[Any, ...],
        settle: Callable[[Any, BaseException | None], None],
        flags: int = 0,
        priority: int = Priority.NORMAL,
        model: int = 0,
        deadline: float | None = None,
        on_part: Callable[[Any], None] | None = None,
    ) -> None:
        self.request_id = request_id
        self.body = body
        self.frames = frames
        self.num_bytes = payload.nbytes(body, frames) if frames else len(body)
        self.settle = settle
        self.flags = flags
        self.priority = priority
        self.model = model
        self.deadline = deadline
        self.on_part = on_part
        self.chunk: Chunk | None = None  # that its frames were sent in
        self.sent = False
        self.got_parts = False
        self.resends = 0
        self.done = False
        self.times = 0  # how its batch went, as `wire.pack_times` says

    def finish(self, value: Any, error: BaseException | None) -> None:
        """The final answer; a second one is ignored."""
        if not self.done:
            self.done = True
            self.body, self.frames = b"", ()
            # Let go of the caller's future, which refers to us: a cycle for every call would keep the collector busy.
            settle, self.settle, self.on_part = self.settle, _settled, None
            settle(value, error)

    @property
    def may_resend(self) -> bool:
        """Whether another run could not hurt."""
        return not self.flags & Flag.NO_RETRY and not self.got_parts


def _follows(call: Call, run: list[Call]) -> bool:
    """Whether a call differs from those before it in its number, the next, and its body only."""
    last = run[-1]
    return (
        call.request_id == last.request_id + 1
        and call.flags == last.flags
        and call.priority == last.priority
        and call.model == last.model
        and len(run) < wire.MAX_RECORDS
    )


def _joined(run: list[Call]) -> Record:
    """The record of one call, or the bundle of several."""
    first, num = run[0], len(run)
    flags, body = first.flags, first.body
    bodies: tuple[bytes, ...] = ()
    if num > 1:
        flags, body, bodies = flags | BUNDLE, b"", tuple([call.body for call in run])
    fields = (REQUEST, flags, first.priority, 0, first.model, first.request_id, 0, 0, num, body, bodies)
    return new_tuple(Record, fields)


def _settled(_value: Any, _error: BaseException | None) -> None:
    """What a finished call settles."""


class Calls:
    """Owns the unanswered calls of one client. Used by one thread at a time, except `submit` and `say`."""

    def __init__(self) -> None:
        self.unsent: deque[Call] = deque()
        self.control: deque[Record] = deque()  # CANCEL, CREDIT: go ahead of everything
        self._sent: dict[int, Call] = {}
        self._sent_bytes = 0
        self._timed: deque[Call] = deque()  # submitted with a deadline, and not in the heap yet
        self._deadlines: list[tuple[float, int, Call]] = []
        self.results: deque[tuple[int, bytes, int]] = deque()  # received in bundles, and not taken yet
        self.window = 1
        self.loans = Loans()

    def submit(self, call: Call) -> None:
        """Queue a call; from any thread."""
        self.unsent.append(call)
        if call.deadline is not None:
            self._timed.append(call)

    def say(self, record: Record) -> None:
        """Queue a record that is no call; from any thread."""
        self.control.append(record)

    @property
    def is_half_unsent(self) -> bool:
        """Whether no more are under way than wait to be sent: two halves that take turns keep both sides busy."""
        return len(self.unsent) >= len(self._sent)

    @property
    def num_sent(self) -> int:
        """How many answers are expected."""
        return len(self._sent)

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._sent or self.unsent or self.control)

    @property
    def sendable(self) -> bool:
        """Whether something may be sent now."""
        return bool(self.control) or (bool(self.unsent) and self._fits(self.unsent[0])) or self.loans.is_urgent

    def _fits(self, call: Call) -> bool:
        return not self._sent or (len(self._sent) < self.window and self._sent_bytes + call.num_bytes <= WINDOW_BYTES)

    def to_send(self, now: float, *, local: bool) -> list[Record]:
        """Records to send now, in order, within the window; CANCELs go first. local: the balancer shares our clock."""
        records: list[Record] = []
        while self.control:
            records.append(self.control.popleft())
        unsent, sent, sent_bytes = self.unsent, self._sent, self._sent_bytes
        room = self.window - len(sent)
        run: list[Call] = []  # calls that go into one record
        run_bytes = 0
        while unsent:
            call = unsent[0]
            num_bytes = call.num_bytes
            if sent and (room <= 0 or sent_bytes + num_bytes > WINDOW_BYTES):
                break
            unsent.popleft()
            if call.done:
                continue
            call.sent = True
            sent[call.request_id] = call
            sent_bytes += num_bytes
            room -= 1
            is_special = call.frames or call.deadline is not None or call.resends or call.flags & STREAM
            run_bytes += num_bytes
            if run and (is_special or not _follows(call, run) or run_bytes > wire.BUNDLE_BYTES):
                records.append(_joined(run))
                run, run_bytes = [], num_bytes
            if is_special:
                records.append(self._request(call, now, local=local))
                run_bytes = 0
            else:
                run.append(call)
        if run:
            records.append(_joined(run))
        self._sent_bytes = sent_bytes
        return records + self.loans.news(now)

    def _request(self, call: Call, now: float, *, local: bool) -> Record:
        flags, deadline_ns = call.flags, wire.NO_DEADLINE
        body, frames = call.body, call.frames
        if frames and (put := self.loans.put(frames)) is not None:
            descriptor, call.chunk = put
            flags, body, frames = flags | Flag.ARENA, descriptor + body, ()
        if call.deadline is not None:
            if local:
                deadline_ns = int(call.deadline * NS)
            else:
                flags |= Flag.BUDGET
                deadline_ns = max(1, int((call.deadline - now) * NS))
        attempt = min(call.resends, 255) if call.resends else 0
        return new_tuple(
            Record,
            (REQUEST, flags, call.priority, attempt, call.model, call.request_id, 0, deadline_ns, 1, body, frames),
        )

    def take(self, record: Record) -> None:
        """An answer of the balancer; one that nobody waits for is ignored.

        Raises:
            RemoteProtocolError: the record is no answer.
        """
        kind, flags, _, _, _, request_id, _, times, _, body, frames = record
        if flags & BUNDLE and kind == RESULT:
            self.results.extend(zip(range(request_id, request_id + len(frames)), frames, repeat(times)))
            return
        if kind not in ANSWERS:
            raise RemoteProtocolError(f"the balancer sent kind {kind} for a request")
        if kind == PART:
            call = self._sent.get(request_id)
            self.loans.refuse(record) if call is None else self._take_part(call, record)
            return
        call = self._sent.pop(request_id, None)
        if call is None:
            self.loans.refuse(record)
            return
        self._sent_bytes -= call.num_bytes
        if call.chunk is not None:
            self.loans.drop(call.chunk) if flags & KEPT else self.loans.back(call.chunk)
            call.chunk = None
        try:
            if kind == RESULT:
                call.times = times
                plain = not (flags or frames)
                call.finish(payload.decode(body) if plain else payload.decode(*self.loans.take(record)), None)
            elif kind == END:
                call.finish(None, None)
            else:
                fields = wire.read_map(body, wire.ERROR_FIELDS)
                call.finish(None, errors.from_wire(fields["code"], fields["message"], fields["retry_after_s"]))
        except RemoteProtocolError as err:
            call.finish(None, err)

    def take_results(self, most: int) -> None:
        """As many of those that have come in bundles; an interrupt in between loses none."""
        results, sent = self.results, self._sent
        for _ in range(most):
            if not results:  # looked at each time: who is told of one may end them all
                break
            request_id, body, times = results.popleft()
            call = sent.pop(request_id, None)
            if call is None:
                continue
            self._sent_bytes -= call.num_bytes
            if call.chunk is not None:
                self.loans.back(call.chunk)
                call.chunk = None
            call.times = times
            try:
                value = payload.decode(body)
            except RemoteProtocolError as err:
                call.finish(None, err)
            else:
                call.finish(value, None)

    def _take_part(self, call: Call, record: Record) -> None:
        call.got_parts = True
        if call.on_part is None or call.done:
            return
        try:
            part = payload.decode(record.body, record.frames)
        except RemoteProtocolError as err:
            self._give_up(call)
            self.say(Record(Kind.CANCEL, request_id=call.request_id))
            call.finish(None, err)
        else:
            call.on_part(part)

    def cancel(self, call: Call) -> None:
        """Nobody waits for it any more; from any thread. The balancer hears of it if it has it."""
        if not call.done:
            call.done = True
            self.say(Record(Kind.CANCEL, request_id=call.request_id))

    def expire(self, now: float) -> None:
        """End calls whose deadline has passed, and forget those that were cancelled."""
        heap = self._watched()
        while heap and heap[0][0] <= now:
            call = heapq.heappop(heap)[2]
            if self._sent.get(call.request_id) is call:
                self._give_up(call)
                self.say(Record(Kind.CANCEL, request_id=call.request_id))
            if call.sent or call.resends:
                call.finish(None, DeadlineExceeded("no answer within its timeout; it may be running still"))
            else:
                call.finish(None, DeadlineExceeded("its timeout passed before it could be sent"))
        if len(heap) > 2 * (len(self._sent) + len(self.unsent)) + SLACK:
            self._deadlines = [item for item in heap if not item[2].done]
            heapq.heapify(self._deadlines)
        while self.unsent and self.unsent[0].done:  # those behind it are passed over when their turn comes
            self.unsent.popleft()

    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        heap = self._watched()
        return heap[0][0] if heap else None

    def _watched(self) -> list[tuple[float, int, Call]]:
        """The heap of deadlines, with those of the calls submitted meanwhile."""
        while self._timed:
            call = self._timed.popleft()
            if call.deadline is not None and not call.done:
                heapq.heappush(self._deadlines, (call.deadline, call.request_id, call))
        return self._deadlines

    def cancelled(self, request_id: int) -> None:
        """A CANCEL was sent: nothing more is expected."""
        call = self._sent.get(request_id)
        if call is not None:
            self._give_up(call)

    def new_balancer(self) -> None:
        """Another epoch, or a lost connection: what is unanswered is sent again, oldest first, where it may be."""
        sent = list(self._sent.values())
        self._sent.clear()
        self._sent_bytes = 0
        self.control.clear()
        self.results.clear()
        self.loans.leave()
        self.loans = Loans()
        again = []
        for call in sent:
            call.sent, call.chunk = False, None
            call.resends += 1
            if call.done:
                continue
            if not call.may_resend or call.resends > MAX_RESENDS:
                call.finish(None, WorkerLost("the balancer died with it, and it may not be sent again"))
                continue
            call.flags |= Flag.RESEND
            again.append(call)
        self.unsent.extendleft(reversed(again))

    def fail_all(self, error: Callable[[], OrchError]) -> None:
        """No answer will come."""
        calls = [*self._sent.values(), *self.unsent]
        for call in list(self._sent.values()):
            self._give_up(call)
        self._sent_bytes = 0
        self._timed.clear()
        self._deadlines.clear()
        self.results.clear()
        self.unsent.clear()
        self.control.clear()
        failure: BaseException | None = None
        for call in calls:
            try:
                call.finish(None, error())
            except BaseException as err:  # noqa: BLE001  out of a callback; those behind it are not to wait for ever
                failure = err
        if failure is not None:
            raise failure

    def _give_up(self, call: Call) -> None:
        """Nothing more is expected, but somebody may still read its chunk."""
        self._forget(call)
        if call.chunk is not None:
            self.loans.drop(call.chunk)
            call.chunk = None

    def _forget(self, call: Call) -> None:
        del self._sent[call.request_id]
        self._sent_bytes -= call.num_bytes
