"""The ledger: every request between its admission and its final answer, and who runs it.

    admit -> QUEUED -> dispatch -> DISPATCHED -> answers -> DONE
               ^  |                    |
               |  +- expire, cancel    +- lost: QUEUED again, or SUSPECT, or DONE with an error
               +-----------------------+

The contract it keeps: an admitted request is in exactly one place, gets exactly one final answer, and is never with two
workers at once. It does not know sockets or clocks; the broker carries out what it returns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from orch import bundles, chunk, errors, payload
from orch.wire import (
    BUNDLE,
    FINAL,
    HEADER_BYTES,
    NO_DEADLINE,
    Flag,
    Kind,
    Packed,
    Priority,
    Received,
    Record,
    Tickets,
    changed,
    error_record,
    repacked,
)
from orch_balancer import policy
from orch_balancer.admission import NS, Held, Limits, refusal, refused
from orch_balancer.deadlines import Deadlines
from orch_balancer.entry import DISPATCHED, DONE, QUEUED, SUSPECT, Entry, Place, Session, by_line
from orch_balancer.figures import Figures
from orch_balancer.heard import Heard
from orch_balancer.leases import Leases
from orch_balancer.pool import Pool, Worker
from orch_balancer.verdict import Cause, verdict

# Looked up once: they are asked of every record.
ARENA, KEPT, STREAM, ERROR = Flag.ARENA, Flag.KEPT, Flag.STREAM, int(Kind.ERROR)
# Requests ended in one pass because their deadlines have passed: a crowd of them keeps the loop no longer than that.
MAX_EXPIRED = 256


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
        self._heard = Heard()
        self.admitting = True
        self.num_bytes = self.num_entries = self.num_queued = 0
        self._deadlines = Deadlines()
        self._tickets = Tickets(epoch)

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
        entries = list(dict.fromkeys(session.entries.values()))
        running = [ended for entry in entries if (ended := self._cancel(entry)) is not None]
        self.sessions.pop(session.id, None)
        return running

    def admit(self, session: Session, requests: Sequence[Packed], now: float) -> list[Record]:
        """Take requests into the ledger, in order. Returns the errors to answer with for those that are refused.

        Raises:
            RemoteProtocolError: one names a chunk that is not its client's to use.
        """
        if self._heard.notes:
            self._heard.learn()
        refusals: list[Record] = []
        taken: list[Entry] = []  # of one model and one priority, not queued yet
        ours, limits = session.entries, self.limits
        num, num_models = len(requests), len(self.pools)
        for request in requests:
            if request[1] & BUNDLE:
                num += request[8] - 1
        has_room = self.admitting and len(ours) + num <= session.limit and self.num_queued + num <= limits.queue
        try:
            for request in requests:
                _, flags, priority, _, model, request_id, _, deadline_ns, rows, raw, frames = request
                if flags & BUNDLE:
                    its_num, num_bytes, ids = rows, sum(bundles.sizes(raw)), range(request_id, request_id + rows)
                    fits = has_room and ours.keys().isdisjoint(ids)
                elif request_id in ours:
                    continue  # resent, but this epoch has it already
                else:
                    its_num, num_bytes, fits = 1, len(raw) - HEADER_BYTES, has_room
                if frames:
                    num_bytes += payload.nbytes(b"", frames)
                if flags & ARENA:
                    place = chunk.read_place(raw[HEADER_BYTES:])
                    num_bytes += place.size
                fits = fits and model < num_models and self.num_bytes + num_bytes <= limits.num_bytes
                if deadline_ns or not fits:
                    self._queue(taken)
                    taken = []
                    held = Held(self.admitting, self.num_queued, self.num_bytes)
                    asked = Received(*request)
                    error = refusal(asked, num_bytes, session, self.pools, held, limits, now)
                    if flags & BUNDLE and not (fits and error is None):  # each is judged by itself
                        refusals += self.admit(session, bundles.apart(request), now)
                        continue
                    if error is not None:
                        self.counts.rejected += 1
                        refusals.append(refused(asked, error))
                        continue
                entry = Entry(
                    session, request_id, raw, frames, flags, model, deadline_ns, rows, priority, num_bytes, now, its_num
                )
                if flags & ARENA:
                    entry.lease = self.leases.name(session.id, place)
                if taken and (priority != taken[0].priority or model != taken[0].model):
                    self._queue(taken)
                    taken = []
                self.num_bytes += num_bytes
                if flags & BUNDLE:
                    ours.update(dict.fromkeys(ids, entry))
                else:
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
        if entry is not None and entry.is_bundle:
            return self._cancel_one(entry, request_id)
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
        self._heard.answered_by.setdefault(replica, 0)
        return worker

    def weigh(self, worker: Worker, weight: float) -> None:
        """How fast it is beside the others was measured anew."""
        self._heard.learn()
        worker.weight = weight
        worker.pool.touched[worker] = None

    def drain(self, worker: Worker) -> None:
        """Give it nothing more; it is drained when `worker.outstanding` is empty."""
        worker.accepting = False
        worker.pool.touched[worker] = None

    def answers(self, worker: Worker, records: Sequence[Packed], now: float) -> list[tuple[Entry, Packed]]:
        """A worker's message. Returns the answers that somebody waits for, each with its entry."""
        pool, outstanding = worker.pool, worker.outstanding
        found: list[tuple[Entry, Packed]] = []
        answered: list[tuple[float, int]] = []  # when they were admitted, and how many
        rows = num_streams = num_final = num_ended = num_bytes = num_answered = times = 0
        are_large = pool.results.are_large
        each_line: Iterable[Packed] = records
        for record in records:
            if record[1] & BUNDLE:
                each_line = by_line(outstanding, records)
                break
        for record in each_line:
            kind, flags, _, _, _, _, ticket, spent, num, _, frames = record
            entry = outstanding.get(ticket)
            if entry is None:
                self.counts.late += num if flags & BUNDLE else 1
                continue
            is_waited_for = entry.place is DISPATCHED
            if kind not in FINAL:
                entry.sent_parts = True
            else:
                is_bundled = entry.flags & BUNDLE
                if is_bundled:
                    its_num = its_rows = num if flags & BUNDLE else 1
                    for each in range(ticket, ticket + its_num):
                        del outstanding[each]
                else:
                    its_num, its_rows = 1, entry.rows
                    del outstanding[ticket]
                num_final += its_num
                rows += its_rows
                if entry.flags & STREAM:
                    num_streams += 1
                if entry.lease is not None or entry.result is not None or flags & ~BUNDLE or frames:
                    record = self._settle(worker, entry, record)  # noqa: PLW2901
                elif are_large:
                    for _ in range(its_num):
                        pool.results.observe(0)
                if not is_waited_for:
                    continue
                if kind == ERROR:
                    self.counts.failed += 1
                elif spent > 0:
                    times = spent
                answered.append((entry.admitted_at, its_num))
                num_answered += its_num
                if is_bundled:
                    num_bytes += self._answered_some(entry, ticket - entry.ticket, its_num)
                    num_ended += its_num
                else:
                    entry.place = DONE
                    num_bytes += entry.num_bytes
                    num_ended += 1
                    del entry.session.entries[entry.request_id]
                if entry.deadline_ns:
                    self._deadlines.ended(its_num)
            if is_waited_for:
                found.append((entry, record))
        if rows:
            self.num_bytes -= num_bytes
            self.num_entries -= num_ended
            self.counts.answered += num_answered
            worker.rows -= rows
            worker.streams -= num_streams
            # A stream's life is no batch's time.
            busy_s = 0.0 if num_streams else now - worker.began_at
            self._heard.notes.append((worker, rows, num_final, answered, times, busy_s, not pool.queue.num, now))
            worker.began_at = worker.idle_since = now
            pool.touched[worker] = None
        return found

    def lost(self, worker: Worker, cause: Cause, running: Collection[int], now: float) -> list[Ended]:
        """A worker died. `running`: the tickets of the batch that ran, which alone are suspects."""
        pool = worker.pool
        pool.remove(worker)
        ended: list[Ended] = []
        # From the youngest, as each goes to the head of the line.
        for ticket, entry in reversed(list(worker.outstanding.items())):
            if entry.place is DONE:
                continue  # cancelled while it ran
            if entry.flags & BUNDLE:  # from here on each has a fate of its own
                place = ticket - entry.ticket
                entry = entry.some(place, place + 1)  # noqa: PLW2901
            entry.worker, entry.ticket, entry.result = None, 0, None
            error = verdict(entry, cause, ticket in running, worker, self.limits.max_attempts)
            if error is None:
                self._requeue(entry, now, ended)
            else:
                ended += self._fail(entry, error)
        worker.outstanding.clear()
        return ended

    # --- time ----------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> list[Ended]:
        """End what waits and is past its deadline, some of it at a time: the rest is due at once.

        What runs is left to its client, which has its own clock.
        """
        ended: list[Ended] = []
        for entry in self._deadlines.due(int(now * NS), MAX_EXPIRED):
            if entry.place is not DISPATCHED:
                ended += self._fail(entry, _too_late(entry, now))
        return ended

    def next_deadline(self) -> float | None:
        """When `expire` has something to do, at the earliest."""
        next_ns = self._deadlines.next_ns()
        return None if next_ns is None else next_ns / NS

    def dispatch(self, now: float) -> list[Assignment]:
        """Bind waiting requests to workers that have room: as late as possible, as the policy ranks them."""
        made: list[Assignment] = []
        if self._heard.notes and self.num_queued:
            self._heard.learn()
        for pool in self.pools:
            if pool.suspects or pool.lanes:
                self._dispatch_suspects(pool, now, made)
            queue = pool.queue
            while queue.num and (found := pool.best(now)) is not None:
                worker, room = found
                num, waiting = queue.num, queue.rows
                wanted, cuts = 1, False
                if waiting > 1:  # else there is nothing to share, nor to cut
                    idle, most = (len(pool.idle), pool.idle_weight), worker.max_batch_size
                    wanted = policy.share(waiting, worker.weight, *idle, room, most, pool.awaited(now))
                    cuts = policy.are_worth_cutting(waiting, pool.speed.row_s)
                entries = queue.take(wanted, room, cuts=cuts)
                made.append(self._give(worker, entries, num - queue.num, now))
        return made

    # --- inside --------------------------------------------------------------------------------------------------

    def _give(self, worker: Worker, entries: list[Entry], total: int, now: float) -> Assignment:
        """total: requests."""
        pool, outstanding = worker.pool, worker.outstanding
        if not outstanding:
            worker.began_at = now
        expected = pool.results.expected
        if expected:  # a chunk for each result, where its client can read it there
            entries = [each for entry in entries for each in (entry.apart() if entry.session.maps else [entry])]
        admitted: list[tuple[float, int]] = []  # when they were, and how many
        rows, next_ticket = worker.rows, self._tickets.take(total)
        for entry in entries:
            num, ticket = entry.num, next_ticket
            next_ticket += num
            rows += entry.rows
            admitted.append((entry.admitted_at, num))
            if entry.flags & STREAM:
                worker.streams += 1
            entry.place = DISPATCHED
            entry.worker = worker
            entry.ticket = ticket
            entry.attempts += 1
            if num > 1:
                outstanding.update(dict.fromkeys(range(ticket, ticket + num), entry))
                continue
            outstanding[ticket] = entry
            if entry.lease is not None:
                self.leases.read(entry.lease, worker.process)
            if expected and entry.session.maps and not entry.is_stream:
                entry.result = self.leases.result(entry.session.id, expected, worker.process)
        worker.rows = rows
        self.num_queued -= total
        self._heard.figures.given.append((admitted, now))
        pool.touched[worker] = None
        return tuple.__new__(Assignment, (worker, entries))

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
                made.append(self._give(worker, [pool.suspects.popleft()], 1, now))
            else:
                pool.leave_lane(worker)
        if not pool.suspects and not pool.lanes:
            pool.one_lane = False

    def _requeue(self, entry: Entry, now: float, ended: list[Ended]) -> None:
        deadline_ns = entry.deadline_ns
        if deadline_ns != NO_DEADLINE and deadline_ns <= now * NS:
            ended += self._fail(entry, _too_late(entry, now))
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
            num = rows = 0
            for entry in entries:
                num += entry.num
                rows += entry.rows
            self.num_entries += num
            self.num_queued += num
            self.counts.admitted += num
            pool = self.pools[entries[0].model]
            pool.queue.push(entries, num, rows)
            pool.came(rows)

    def _settle(self, worker: Worker, entry: Entry, record: Packed) -> Packed:
        """End the leases of a dispatch that is answered; the answer as the client is to see it."""
        leases, process, results = self.leases, worker.process, worker.pool.results
        kind, flags, _, _, _, request_id, ticket, _, _, raw, frames = record
        result, entry.result = entry.result, None
        if flags & ARENA:
            body = raw[HEADER_BYTES:]
            if result is None or not leases.wrote(result, process, body):
                text = f"{worker.replica} named memory that it had not been given"
                record = repacked(error_record(request_id, errors.RequestError.code, text, ticket=ticket))
                flags = record[1]
            elif entry.place is not DISPATCHED:  # nobody waits for it
                leases.give_back(entry.session.id, [result.chunk.lease])
            else:
                results.observe(chunk.read_place(body).size)
        elif kind != ERROR:
            results.observe(chunk.ALIGN * (len(frames) - 1) + payload.nbytes(b"", frames) if frames else 0)
        if result is not None:
            leases.leave(result, process)
        told = flags & ~KEPT
        if entry.lease is not None:
            leases.has_read(entry.lease, process, kept=bool(flags & KEPT))
            if not leases.end(entry.lease):
                told |= KEPT
        return record if told == flags else repacked(changed(Received(*record), flags=told))

    def _fail(self, entry: Entry, error: errors.RequestError) -> list[Ended]:
        self.counts.lost += isinstance(error, errors.WorkerLost)
        self.counts.poisoned += isinstance(error, errors.Poisoned)
        self.counts.expired += entry.num if isinstance(error, errors.DeadlineExceeded) else 0
        session = entry.session
        records = [error_record(each, error.code, str(error)) for each in entry.open_ids()]
        if entry.lease is not None and not self.leases.end(entry.lease):
            records = [record._replace(flags=Flag.KEPT) for record in records]
        self._end(entry)
        return [tuple.__new__(Ended, (session, record)) for record in records]

    def _answered_some(self, entry: Entry, place: int, num: int) -> int:
        """So many of a bundle, from that place on, have their answers: the bytes that they had."""
        entry.num -= num
        num_bytes = sum(bundles.sizes(entry.raw)[place : place + num]) if entry.num else entry.num_bytes
        entry.num_bytes -= num_bytes
        if not entry.num:
            entry.place = DONE
        ours, first = entry.session.entries, entry.request_id + place
        for each in range(first, first + num):
            del ours[each]
        return num_bytes

    def _cancel(self, entry: Entry) -> Entry | None:
        runs = entry.place is DISPATCHED
        self.counts.cancelled += entry.num
        self._end(entry)
        return entry if runs else None

    def _cancel_one(self, entry: Entry, request_id: int) -> Entry | None:
        """One of a bundle."""
        if entry.num == 1:
            return self._cancel(entry)
        place = request_id - entry.request_id
        num_bytes = bundles.sizes(entry.raw)[place]
        self.counts.cancelled += 1
        self.num_bytes -= num_bytes
        self.num_entries -= 1
        entry.num -= 1
        entry.num_bytes -= num_bytes
        del entry.session.entries[request_id]
        if entry.deadline_ns:
            self._deadlines.ended(1)
        if entry.place is QUEUED:
            entry.rows -= 1
            entry.cancelled = (entry.cancelled or set()) | {place}
            if not entry.num & (entry.num - 1):  # now and then: what is held stays in proportion to what is counted
                entry.raw = bundles.without(entry.raw, entry.cancelled)
            self.num_queued -= 1
            self.pools[entry.model].queue.forget(entry)
            return None
        # Its worker answers it yet, to nobody.
        ticket, worker = entry.ticket + place, entry.worker
        one = Entry(
            entry.session, request_id, b"", (), entry.flags & ~BUNDLE, entry.model, 0, 1, entry.priority, 0,
            entry.admitted_at, 0, DONE, entry.attempts, ticket, worker,
        )  # fmt: skip
        worker.outstanding[ticket] = one
        return one

    def _end(self, entry: Entry) -> None:
        """DONE. A request that still runs keeps its worker's slot until the worker answers."""
        if entry.place is DONE:
            return
        was = entry.place
        entry.place = DONE
        self.num_bytes -= entry.num_bytes
        self.num_entries -= entry.num
        for each in entry.open_ids():
            del entry.session.entries[each]
        if entry.lease is not None:
            self.leases.end(entry.lease)
        if entry.deadline_ns:
            self._deadlines.ended(entry.num)
        if was is not DISPATCHED:
            self._unqueue(entry, was)
            # The queue skips ended entries when it comes to them: these must hold no payload.
            entry.raw, entry.frames = b"", ()

    def _unqueue(self, entry: Entry, was: Place) -> None:
        self.num_queued -= entry.num
        pool = self.pools[entry.model]
        if was is QUEUED:
            pool.queue.forget(entry, entry.num)
        else:
            pool.suspects.remove(entry)

    # --- facts ---------------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """Learn from what has happened, and enter it into the figures, now that nobody waits for the loop."""
        if self._heard.notes:
            self._heard.learn()
            for pool in self.pools:
                pool.settle()
        self._heard.figures.observe()

    @property
    def figures(self) -> Figures:
        """Of all that has happened."""
        self.observe()
        return self._heard.figures

    @property
    def answered_by(self) -> dict[str, int]:
        """By replica, over the lives of its workers."""
        self.observe()
        return self._heard.answered_by

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
