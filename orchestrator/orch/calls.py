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
from orch.wire import BUNDLE_BYTES, FINAL, MAX_RECORDS, Flag, Kind, Priority, Record

NS = 1_000_000_000
# Bytes that may be on their way or at the balancer; one call alone may be larger.
WINDOW_BYTES = 256 * 1024 * 1024
# A call that was with this many balancers when they died is not given to another.
MAX_RESENDS = 8
# Calls whose deadlines lie no further from the first's share the latest of them in a bundle: the balancer drops what
# nobody waits for twice so much later at most, if it has not heard of it by then.
SHARED_DEADLINE_S = 0.01
# Ended calls stay in the heap of deadlines until they surface, or until there are this many more than live ones.
SLACK = 1024
# For every record: to look a member up in its enum costs as much as the rest of a comparison.
BUNDLE, KEPT = Flag.BUNDLE, Flag.KEPT
REQUEST, RESULT, PART, END = int(Kind.REQUEST), int(Kind.RESULT), int(Kind.PART), int(Kind.END)
# A NamedTuple's own constructor is a Python function, and takes three times as long.
new_tuple = tuple.__new__


class Call:
    """One call. `settle(value, error)` is called once, with one of them, by the thread that drives the socket."""

    times: int  # with its result: how its batch went, as `wire.pack_times` says

    __slots__ = (
        "body", "chunk", "deadline", "done", "flags", "form", "frames", "model", "num_bytes", "on_part", "priority",
        "request_id", "resends", "settle", "times",
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
        # What the calls of a bundle have in common; None: it travels in a record of its own.
        self.form = None if frames or on_part else (flags, priority, model)
        self.settle = settle
        self.flags = flags
        self.priority = priority
        self.model = model
        self.deadline = deadline
        self.on_part = on_part
        self.chunk: Chunk | None = None  # that its frames were sent in
        self.resends = 0
        self.done = False

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
        return not self.flags & Flag.NO_RETRY


def _joined(run: list[Call], now: float, *, local: bool) -> Record:
    """The record of one call, or the bundle of several, that differ in their numbers, bodies and a little in time."""
    first, num = run[0], len(run)
    flags, body, deadline_ns = first.flags, first.body, wire.NO_DEADLINE
    bodies: tuple[bytes, ...] = ()
    if num > 1:
        flags, body, bodies = flags | BUNDLE, b"", tuple([call.body for call in run])
    if first.deadline is not None:
        deadline = max([call.deadline for call in run if call.deadline is not None])  # each ends at its own here
        deadline_ns, flags = _deadline_ns(deadline, flags, now, local=local)
    fields = (REQUEST, flags, first.priority, 0, first.model, first.request_id, 0, deadline_ns, num, body, bodies)
    return new_tuple(Record, fields)


def _deadline_ns(deadline: float, flags: int, now: float, *, local: bool) -> tuple[int, int]:
    """As a record says it, and its flags. local: the balancer shares our clock."""
    if local:
        return int(deadline * NS), flags
    return max(1, int((deadline - now) * NS)), flags | Flag.BUDGET


def _are_close(deadline: float | None, other: float | None) -> bool:
    """Whether calls with these deadlines may share one."""
    if deadline is None or other is None:
        return deadline is other
    return abs(deadline - other) <= SHARED_DEADLINE_S


def _settled(_value: Any, _error: BaseException | None) -> None:
    """What a finished call settles."""


class Calls:
    """Owns the unanswered calls of one client. Used by one thread at a time, except `submit` and `say`."""

    def __init__(self) -> None:
        self.unsent: deque[Call] = deque()
        self.control: deque[Record] = deque()  # CANCEL, CREDIT: go ahead of everything
        self.sent: dict[int, Call] = {}  # by number: those whose answers are expected
        self._sent_bytes = 0
        self.timed: deque[Call] = deque()  # submitted with a deadline, and not in the heap yet
        self.deadlines: list[tuple[float, int, Call]] = []
        self.results: deque[tuple[int, bytes, int]] = deque()  # received in bundles, and not taken yet
        self.window = 1
        self.loans = Loans()

    def submit(self, call: Call) -> None:
        """Queue a call; from any thread."""
        self.unsent.append(call)
        if call.deadline is not None:
            self.timed.append(call)

    def say(self, record: Record) -> None:
        """Queue a record that is no call; from any thread."""
        self.control.append(record)

    @property
    def is_half_unsent(self) -> bool:
        """Whether no more are under way than wait to be sent: two halves that take turns keep both sides busy."""
        return len(self.unsent) >= len(self.sent)

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.sent or self.unsent or self.control)

    @property
    def sendable(self) -> bool:
        """Whether something may be sent now."""
        return bool(self.control) or (bool(self.unsent) and self._fits(self.unsent[0])) or self.loans.is_urgent

    def _fits(self, call: Call) -> bool:
        return not self.sent or (len(self.sent) < self.window and self._sent_bytes + call.num_bytes <= WINDOW_BYTES)

    def to_send(self, now: float, *, local: bool) -> list[Record]:
        """Records to send now, in order, within the window; CANCELs go first. None unless something is `sendable`.

        local: the balancer shares our clock.
        """
        records: list[Record] = []
        while self.control:
            records.append(self.control.popleft())
        unsent, sent, sent_bytes = self.unsent, self.sent, self._sent_bytes
        room = self.window - len(sent)
        run: list[Call] = []  # calls that go into one record
        form, deadline, next_id, run_bytes = None, None, 0, 0
        while unsent:
            call = unsent[0]
            if call.done:
                unsent.popleft()
                continue
            num_bytes = call.num_bytes
            if sent and (room <= 0 or sent_bytes + num_bytes > WINDOW_BYTES):
                break
            unsent.popleft()
            request_id = call.request_id
            sent[request_id] = call
            sent_bytes += num_bytes
            room -= 1
            run_bytes += num_bytes
            if (
                request_id != next_id
                or call.form != form
                or run_bytes > BUNDLE_BYTES
                or len(run) == MAX_RECORDS
                or not (call.deadline is deadline or _are_close(call.deadline, deadline))
            ):
                if run:
                    records.append(_joined(run, now, local=local))
                    run = []
                form, deadline, run_bytes = call.form, call.deadline, num_bytes
            if form is None:
                records.append(self._request(call, now, local=local))
            else:
                run.append(call)
                next_id = request_id + 1
        if run:
            records.append(_joined(run, now, local=local))
        self._sent_bytes = sent_bytes
        loans = self.loans
        if (records or loans.is_urgent) and (loans.num_held or loans.missed or loans.returned):
            records += loans.news(now)
        return records

    def _request(self, call: Call, now: float, *, local: bool) -> Record:
        flags, deadline_ns = call.flags, wire.NO_DEADLINE
        body, frames = call.body, call.frames
        if frames and (put := self.loans.put(frames)) is not None:
            descriptor, call.chunk = put
            flags, body, frames = flags | Flag.ARENA, descriptor + body, ()
        if call.deadline is not None:
            deadline_ns, flags = _deadline_ns(call.deadline, flags, now, local=local)
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
        if kind not in FINAL:
            if kind != PART:
                raise RemoteProtocolError(f"the balancer sent kind {kind} for a request")
            call = self.sent.get(request_id)
            self.loans.refuse(record) if call is None else self._take_part(call, record)
            return
        call = self.sent.pop(request_id, None)
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
        except (RemoteProtocolError, MemoryError) as err:
            call.finish(None, err)

    def take_results(self, most: int) -> None:
        """As many of those that have come in bundles; an interrupt in between loses none."""
        results, sent = self.results, self.sent
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
        call.flags |= Flag.NO_RETRY  # from now on, another run would say things twice
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
            is_sent = self.sent.get(call.request_id) is call
            if is_sent:
                self._give_up(call)
                self.say(Record(Kind.CANCEL, request_id=call.request_id))
            if is_sent or call.resends:
                call.finish(None, DeadlineExceeded("no answer within its timeout; it may be running still"))
            else:
                call.finish(None, DeadlineExceeded("its timeout passed before it could be sent"))
        if len(heap) > 2 * (len(self.sent) + len(self.unsent)) + SLACK:
            self.deadlines = [item for item in heap if not item[2].done]
            heapq.heapify(self.deadlines)
        while self.unsent and self.unsent[0].done:  # those behind it are passed over when their turn comes
            self.unsent.popleft()

    def next_deadline(self) -> float | None:
        """When `expire` has something to do."""
        heap = self._watched()
        return heap[0][0] if heap else None

    def _watched(self) -> list[tuple[float, int, Call]]:
        """The heap of deadlines, with those of the calls submitted meanwhile."""
        while self.timed:
            call = self.timed.popleft()
            if call.deadline is not None and not call.done:
                heapq.heappush(self.deadlines, (call.deadline, call.request_id, call))
        return self.deadlines

    def cancelled(self, request_id: int) -> None:
        """A CANCEL was sent: nothing more is expected."""
        call = self.sent.get(request_id)
        if call is not None:
            self._give_up(call)

    def new_balancer(self) -> None:
        """Another epoch, or a lost connection: what is unanswered is sent again, oldest first, where it may be."""
        sent = list(self.sent.values())
        self.sent.clear()
        self._sent_bytes = 0
        self.control.clear()
        self.results.clear()
        self.loans.leave()
        self.loans = Loans()
        again = []
        for call in sent:
            call.chunk = call.form = None
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
        calls = list(self.sent.values())
        for call in calls:
            self._give_up(call)
        self._sent_bytes = 0
        self.timed.clear()  # before what it is of: what another thread submits meanwhile keeps its deadline, or ends
        self.deadlines.clear()
        self.results.clear()
        while self.unsent:
            calls.append(self.unsent.popleft())
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
        del self.sent[call.request_id]
        self._sent_bytes -= call.num_bytes
