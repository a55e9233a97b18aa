"""The ledger: every request between its admission and its final answer, and who runs it.

    admit -> QUEUED -> dispatch -> DISPATCHED -> answers -> DONE
               ^  |                    |
               |  +- expire, cancel    +- lost: QUEUED again, or SUSPECT, or DONE with an error
               +-----------------------+

The contract it keeps: an admitted request is in exactly one place, gets exactly one final answer, and is never with two
workers at once. It does not know sockets or clocks; the broker carries out what it returns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from orch import chunk, errors, payload
from orch.wire import (
    FINAL,
    HEADER_BYTES,
    NO_DEADLINE,
    Flag,
    Kind,
    Packed,
    Priority,
    Received,
    Record,
    changed,
    error_record,
    make_tickets,
    read_times,
    repacked,
)
from orch_balancer import policy
from orch_balancer.admission import NS, Held, Limits, refusal, refused
from orch_balancer.deadlines import Deadlines
from orch_balancer.entry import DISPATCHED, DONE, QUEUED, SUSPECT, Entry, Place, Session
from orch_balancer.figures import Figures, observe_since_admission
from orch_balancer.leases import Leases
from orch_balancer.pool import Pool, Worker

# Looked up once: they are asked of every record.
ARENA, STREAM, ERROR = Flag.ARENA, Flag.STREAM, int(Kind.ERROR)
# A suspect that ran while its group fell this often is the killer. Once could be another's deed: ordinary requests run
# on the group's other workers meanwhile.
MAX_GROUP_STRIKES = 2
# Requests ended in one pass because their deadlines have passed: a crowd of them keeps the loop no longer than that.
MAX_EXPIRED = 256


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a worker is lost. counts: as an attempt of what it had. convicts: a suspect that ran alone was the killer.

    group: it fell with all that share its GPU, by the fault of one of them, and nobody says which.
    """

    text: str
    counts: bool = True
    convicts: bool = True
    group: bool = False


class Assignment(NamedTuple):
    """Send these to that worker, in one message."""

    worker: Worker
    entries: list[Entry]


class Ended(NamedTuple):
    """A request that ended without a worker's answer: send the record to its session."""

    session: Session
    record: Record


@dataclass(slots=True)
class Counts:
    """Since the balancer's start."""

    admitted: int = 0
    answered: int = 0
    failed: int = 0  # of the answered, those that the model failed
    rejected: int = 0
    retried: int = 0
    expired: int = 0
    cancelled: int = 0
    lost: int = 0
    poisoned: int = 0
    late: int = 0  # answers that nobody waited for


class Router:
    """Owns requests and the workers' load. Each public method is one event; none calls back."""

    def __init__(self, models: Sequence[str], limits: Limits, epoch: int, arena_bytes: int = 0) -> None:
        self.limits = limits
        self.epoch = epoch
        self.leases = Leases(arena_bytes, epoch)
        self.models = list(models)
        self.pools = [Pool(model) for model in models]
        self.sessions: dict[bytes, Session] = {}
        self.counts = Counts()
        self._figures = Figures()
        self._unobserved: list[Callable[[], None]] = []
        self.answered_by: dict[str, int] = {}  # by replica, over the lives of its workers
        self.admitting = True
        self.num_bytes = self.num_entries = self.num_queued = 0
        self._deadlines = Deadlines()
        self._tickets = make_tickets(epoch)

    # --- clients -------------------------------------------------------------------------------------------------

    def hello(self, session_id: bytes, route: Any, window: int = 0) -> Session:
        """A client connected, or came back on another route: what it has here stays its own.

        window: requests that it would have here at one time, at most as many as may be queued in all.
        """
        session = self.sessions.get(session_id)
        if session is None:
            session = self.sessions[session_id] = Session(session_id, route)
        session.route = route
        session.limit = max(self.limits.per_client, min(window, self.limits.queue))
        return session

    def leave(self, session: Session) -> list[Entry]:
        """A client is gone. Returns those of its requests that run: flag them as cancelled."""
        running = [ended for entry in list(session.entries.values()) if (ended := self._cancel(entry)) is not None]
        self.sessions.pop(session.id, None)
        return running

    def admit(self, session: Session, requests: Sequence[Packed], now: float) -> list[Record]:
        """Take requests into the ledger, in order. Returns the errors to answer with for those that are refused.

        Raises:
            RemoteProtocolError: one names a chunk that is not its client's to use.
        """
        refusals: list[Record] = []
        taken: list[Entry] = []  # of one model and one priority, not queued yet
        ours, limits = session.entries, self.limits
        num, num_models, last = len(requests), len(self.pools), (0, 0)
        has_room = self.admitting and len(ours) + num <= session.limit and self.num_queued + num <= limits.queue
        try:
            for request in requests:
                _, flags, priority, _, model, request_id, _, deadline_ns, rows, raw, frames = request
                if request_id in ours:
                    continue  # resent, but this epoch has it already
                num_bytes = len(raw) - HEADER_BYTES
                if frames:
                    num_bytes += payload.nbytes(b"", frames)
                if flags & ARENA:
                    num_bytes += chunk.read_place(raw[HEADER_BYTES:]).size
                if not has_room or deadline_ns or model >= num_models or self.num_bytes + num_bytes > limits.num_bytes:
                    self._queue(taken)
                    taken = []
                    held = Held(self.admitting, self.num_queued, self.num_bytes)
                    asked = Received(*request)
                    error = refusal(asked, num_bytes, session, self.pools, held, limits, now)
                    if error is not None:
                        self.counts.rejected += 1
                        refusals.append(refused(asked, error))
                        continue
                entry = Entry(
                    session, request_id, raw, frames, flags, model, deadline_ns, rows, priority, num_bytes, now
                )
                if flags & ARENA:
                    entry.lease = self.leases.name(session.id, raw[HEADER_BYTES:])
                line = priority, model
                if taken and line != last:
                    self._queue(taken)
                    taken = []
                last = line
                self.num_bytes += num_bytes
                ours[request_id] = entry
                taken.append(entry)
                if deadline_ns:
                    self._deadlines.watch(entry)
        finally:
            self._queue(taken)
        return refusals

    def cancel(self, session: Session, request_id: int) -> Entry | None:
        """Nobody waits for it any more. Returns it if it runs: flag it as cancelled."""
        entry = session.entries.get(request_id)
        return None if entry is None else self._cancel(entry)

    # --- workers -------------------------------------------------------------------------------------------------

    def open(
        self,
        replica: str,
        generation: int,
        route: Any,
        model: str,
        max_batch_size: int,
        now: float,
        weight: float = 1.0,
    ) -> Worker | None:
        """A worker is READY. None: this instance serves no such model, or the replica is open already."""
        if model not in self.models:
            return None
        pool = self.pools[self.models.index(model)]
        if replica in pool.workers:
            return None
        worker = Worker(replica, generation, route, pool, max_batch_size, idle_since=now, weight=weight)
        pool.add(worker)
        self.answered_by.setdefault(replica, 0)
        return worker

    def weigh(self, worker: Worker, weight: float) -> None:
        """How fast it is beside the others was measured anew."""
        worker.weight = weight
        worker.pool.touch(worker)

    def drain(self, worker: Worker) -> None:
        """Give it nothing more; it is drained when `worker.outstanding` is empty."""
        worker.accepting = False
        worker.pool.touch(worker)

    def answers(self, worker: Worker, records: Iterable[Packed], now: float) -> list[tuple[Entry, Packed]]:
        """A worker's message. Returns the answers that somebody waits for, each with its entry."""
        pool, outstanding = worker.pool, worker.outstanding
        found: list[tuple[Entry, Packed]] = []
        answered: list[Entry] = []  # those that end with this message
        rows = num_streams = num_final = num_ended = num_bytes = num_failed = times = 0
        are_large = pool.results.are_large
        for record in records:
            kind, flags, _, _, _, _, ticket, spent, _, _, frames = record
            entry = outstanding.get(ticket)
            if entry is None:
                self.counts.late += 1
                continue
            is_waited_for = entry.place is DISPATCHED
            if kind not in FINAL:
                entry.sent_parts = True
            else:
                del outstanding[ticket]
                num_final += 1
                rows += entry.rows
                if entry.flags & STREAM:
                    num_streams += 1
                if entry.lease is not None or entry.result is not None or flags or frames:
                    record = self._settle(worker, entry, Received(*record))  # noqa: PLW2901
                elif are_large:
                    pool.results.observe(0)
                if not is_waited_for:
                    continue
                if kind == ERROR:
                    num_failed += 1
                elif spent > 0:
                    times = spent
                answered.append(entry)
                if entry.deadline_ns or entry.lease is not None:
                    self._end(entry)
                else:  # the same, for most of them
                    entry.place = DONE
                    num_bytes += entry.num_bytes
                    num_ended += 1
                    del entry.session.entries[entry.request_id]
            if is_waited_for:
                found.append((entry, record))
        self._unobserved.append(partial(observe_since_admission, self._figures.total, answered, now))
        self.num_bytes -= num_bytes
        self.num_entries -= num_ended
        self.counts.answered += len(answered)
        self.counts.failed += num_failed
        if rows:
            self.answered_by[worker.replica] += num_final
            if times:
                self._unobserved.append(partial(self._figures.ran, rows, num_final, *read_times(times), now))
            worker.rows -= rows
            worker.streams -= num_streams
            # A stream's life is no batch's time, nor is nothing: then this is the rest of a batch's answers.
            batch_s = (now - worker.began_at) * worker.weight if not num_streams and now > worker.began_at else None
            pool.speed.observe(rows, batch_s, queue_was_empty=not pool.queue.num, now=now)
            worker.began_at = worker.idle_since = now
            pool.answered(rows, now)
            pool.touch(worker)
        return found

    def lost(self, worker: Worker, cause: Cause, running: Collection[int], now: float) -> list[Ended]:
        """A worker died. `running`: the tickets of the batch that ran, which alone are suspects."""
        pool = worker.pool
        pool.remove(worker)
        ended: list[Ended] = []
        # From the youngest, as each goes to the head of the line.
        for ticket, entry in reversed(list(worker.outstanding.items())):
            entry.worker, entry.ticket, entry.result = None, 0, None
            if entry.place is DONE:
                continue  # cancelled while it ran
            error = self._verdict(entry, cause, ticket in running, worker)
            if error is None:
                self._requeue(entry, now, ended)
            else:
                ended.append(self._fail(entry, error))
        worker.outstanding.clear()
        return ended

    # --- time ----------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[Ended]:
        """End what waits and is past its deadline, some of it at a time: the rest is due at once.

        What runs is left to its client, which has its own clock.
        """
        due = itertools.islice(self._deadlines.due(int(now * NS)), MAX_EXPIRED)
        return [self._fail(entry, _too_late(entry, now)) for entry in due if entry.place is not DISPATCHED]

    def next_deadline(self) -> float | None:
        """When `expire` has something to do, at the earliest."""
        next_ns = self._deadlines.next_ns()
        return None if next_ns is None else next_ns / NS

    def dispatch(self, now: float) -> list[Assignment]:
        """Bind waiting requests to workers that have room: as late as possible, as the policy ranks them."""
        made: list[Assignment] = []
        for pool in self.pools:
            if pool.suspects or pool.lanes:
                self._dispatch_suspects(pool, now, made)
            while pool.queue.num and (found := pool.best(now)) is not None:
                worker, room = found
                idle, most = (len(pool.idle), pool.idle_weight), worker.max_batch_size
                wanted = policy.share(pool.queue.rows, worker.weight, *idle, room, most, pool.awaited(now))
                made.append(self._give(worker, pool.queue.take(wanted, room), now))
        return made

    # --- inside --------------------------------------------------------------------------------------------------

    def _give(self, worker: Worker, entries: list[Entry], now: float) -> Assignment:
        if not worker.outstanding:
            worker.began_at = now
        expected = worker.pool.results.expected
        outstanding, tickets = worker.outstanding, self._tickets
        self.num_queued -= len(entries)
        self._unobserved.append(partial(observe_since_admission, self._figures.queue, entries, now))
        for entry in entries:
            ticket = next(tickets)
            if entry.flags & STREAM:
                worker.streams += 1
            entry.place = DISPATCHED
            entry.worker = worker
            entry.ticket = ticket
            entry.attempts += 1
            outstanding[ticket] = entry
            worker.rows += entry.rows
            if entry.lease is not None:
                self.leases.read(entry.lease, worker.process)
            if expected and entry.session.maps and not entry.is_stream:
                entry.result = self.leases.result(entry.session.id, expected, worker.process)
        worker.pool.touch(worker)
        return Assignment(worker, entries)

    def _dispatch_suspects(self, pool: Pool, now: float, made: list[Assignment]) -> None:
        """Each suspect runs alone, on a worker that is kept for it and emptied first."""
        # After a fault that took a whole group along, one suspect at a time: two could not be told apart.
        allowed = 1 if pool.one_lane else policy.suspect_lanes(pool.num_accepting)
        lanes = [pool.workers[replica] for replica in pool.lanes]
        # A worker in a lane that runs no suspect, being emptied or empty, is spoken for by one of those that wait.
        free = sum(1 for worker in lanes if not any(entry.is_suspect for entry in worker.outstanding.values()))
        while len(lanes) < allowed and free < len(pool.suspects) and (found := pool.best(now)):
            pool.enter_lane(found[0])
            lanes.append(found[0])
            free += 1
        for worker in lanes:
            if worker.outstanding:
                continue
            if pool.suspects and worker.accepting:
                made.append(self._give(worker, [pool.suspects.popleft()], now))
            else:
                pool.leave_lane(worker)
        if not pool.suspects and not pool.lanes:
            pool.one_lane = False

    def _verdict(self, entry: Entry, cause: Cause, was_running: bool, worker: Worker) -> errors.RequestError | None:
        """What a worker's death means for a request it had. None: run it again."""
        if not cause.counts:
            entry.attempts -= 1
        pool = worker.pool
        if not entry.may_retry:
            why = "a part of its stream was already sent" if entry.sent_parts else "it may not be retried"
            return errors.WorkerLost(f"{worker.replica} {cause.text}, and {why}")
        last = entry.attempts >= self.limits.max_attempts
        if cause.group and was_running:
            entry.group_strikes += entry.is_suspect
            if entry.group_strikes >= MAX_GROUP_STRIKES:
                return errors.Poisoned(
                    f"each time this input ran alone, its group fell ({worker.replica} {cause.text}); change it"
                )
            entry.is_suspect = True
            pool.one_lane = True
        if cause.counts and was_running:
            if entry.is_suspect and (cause.convicts or last):
                return errors.Poisoned(
                    f"run alone, this input took {worker.replica} along ({cause.text}), as it had one before; change it"
                )
            entry.is_suspect = True
        if last and cause.counts:
            return errors.WorkerLost(f"{worker.replica} {cause.text}; that was attempt {entry.attempts}, the last")
        return None

    def _requeue(self, entry: Entry, now: float, ended: list[Ended]) -> None:
        deadline_ns = entry.deadline_ns
        if deadline_ns != NO_DEADLINE and deadline_ns <= now * NS:
            ended.append(self._fail(entry, _too_late(entry, now)))
            return
        self.counts.retried += 1
        self.num_queued += 1
        pool = self.pools[entry.model]
        if entry.is_suspect:
            entry.place = SUSPECT
            pool.suspects.appendleft(entry)
        else:
            entry.place = QUEUED
            pool.queue.push_first(entry)

    def _queue(self, entries: list[Entry]) -> None:
        """What was just admitted: of one client, one model and one priority."""
        if entries:
            num = len(entries)
            self.num_entries += num
            self.num_queued += num
            self.counts.admitted += num
            pool, rows = self.pools[entries[0].model], sum([entry.rows for entry in entries])
            pool.queue.push(entries, rows)
            pool.came(rows)

    def _settle(self, worker: Worker, entry: Entry, record: Received) -> Received:
        """End the leases of a dispatch that is answered; the answer as the client is to see it."""
        leases, process = self.leases, worker.process
        result, entry.result = entry.result, None
        if record.flags & Flag.ARENA:
            if result is None or not leases.wrote(result, process, record.body):
                text = f"{worker.replica} named memory that it had not been given"
                record = repacked(error_record(record.request_id, errors.RequestError.code, text, ticket=record.ticket))
            elif entry.place is not DISPATCHED:  # nobody waits for it
                leases.give_back(entry.session.id, [result.chunk.lease])
            else:
                worker.pool.results.observe(chunk.read_place(record.body).size)
        elif record.kind != Kind.ERROR:
            frames = record.frames
            worker.pool.results.observe(chunk.ALIGN * max(0, len(frames) - 1) + payload.nbytes(b"", frames))
        if result is not None:
            leases.leave(result, process)
        flags = record.flags & ~Flag.KEPT
        if entry.lease is not None:
            leases.has_read(entry.lease, process, kept=bool(record.flags & Flag.KEPT))
            flags |= 0 if leases.end(entry.lease) else Flag.KEPT
        return record if flags == record.flags else repacked(changed(record, flags=flags))

    def _fail(self, entry: Entry, error: errors.RequestError) -> Ended:
        self.counts.lost += isinstance(error, errors.WorkerLost)
        self.counts.poisoned += isinstance(error, errors.Poisoned)
        self.counts.expired += isinstance(error, errors.DeadlineExceeded)
        session, record = entry.session, error_record(entry.request_id, error.code, str(error))
        if entry.lease is not None and not self.leases.end(entry.lease):
            record = record._replace(flags=Flag.KEPT)
        self._end(entry)
        return Ended(session, record)

    def _cancel(self, entry: Entry) -> Entry | None:
        runs = entry.place is DISPATCHED
        self.counts.cancelled += 1
        self._end(entry)
        return entry if runs else None

    def _end(self, entry: Entry) -> None:
        """DONE. A request that still runs keeps its worker's slot until the worker answers."""
        if entry.place is DONE:
            return
        was = entry.place
        entry.place = DONE
        self.num_bytes -= entry.num_bytes
        self.num_entries -= 1
        del entry.session.entries[entry.request_id]
        if entry.lease is not None:
            self.leases.end(entry.lease)
        has_deadline = entry.deadline_ns != NO_DEADLINE
        if has_deadline:
            self._deadlines.ended(entry)
        if was is not DISPATCHED:
            self._unqueue(entry, was)
        if has_deadline or was is not DISPATCHED:
            # The queue and the deadlines skip ended entries when they come to them: these must hold no payload.
            entry.raw, entry.frames = b"", ()

    def _unqueue(self, entry: Entry, was: Place) -> None:
        self.num_queued -= 1
        pool = self.pools[entry.model]
        if was is QUEUED:
            pool.queue.forget(entry)
        else:
            pool.suspects.remove(entry)

    # --- facts ---------------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """Enter into the figures what has happened, now that nobody waits for the loop."""
        for each in self._unobserved:
            each()
        self._unobserved.clear()

    @property
    def figures(self) -> Figures:
        """Of all that has happened."""
        self.observe()
        return self._figures

    @property
    def queued_by_priority(self) -> dict[str, int]:
        """What waits, suspects too."""
        found = dict.fromkeys(Priority, 0)
        for pool in self.pools:
            for priority in Priority:
                found[priority] += pool.queue.num_of(priority)
            for entry in pool.suspects:
                found[Priority(entry.priority)] += 1
        return {priority.name: num for priority, num in found.items()}

    @property
    def num_outstanding(self) -> int:
        """Dispatched, not answered."""
        return sum(len(worker.outstanding) for pool in self.pools for worker in pool.workers.values())


def _too_late(entry: Entry, now: float) -> errors.DeadlineExceeded:
    waited = now - entry.admitted_at
    return errors.DeadlineExceeded(f"it waited {waited:.3f} s in the queue and its deadline passed; it never ran")
