"""The ledger under arbitrary histories, beside a second, slower ledger that only says what must be true."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orch import bundles, wire
from orch.wire import FINAL, Flag, Kind, Packed, Priority, Record
from orch_balancer.admission import NS, Limits
from orch_balancer.entry import Entry, Session
from orch_balancer.pool import Worker
from orch_balancer.router import Router
from orch_balancer.verdict import Cause
from tests.unit.ledger import check

EPOCH = 0xABCD
MODELS = ("m", "n")
QUEUE, NUM_BYTES, PER_CLIENT = 40, 3_000, 24
MAX_ROWS = 40  # that a worker may have
LARGE = bytes(100_000)
REFUSALS = {"overloaded", "deadline", "no_such_model"}

CAUSES = (
    Cause("died of SIGSEGV"),
    Cause("was killed", counts=True, convicts=False),
    Cause("was stopped by orch", counts=False, convicts=False),
)

# Which of several things: the machine knows how many there are only when the rule runs.
pick = st.integers(0, 999)
# What a client sends in one message: from which number on, how many, whether as a bundle, and its priority.
lots = st.tuples(st.integers(1, 60), st.integers(1, 9), st.booleans(), st.sampled_from([Priority.NORMAL, *Priority]))


def received(records: list[Record]) -> list[Packed]:
    """What the balancer reads of these."""
    return [packed for head, *frames in wire.messages(records) for packed in wire.receive(head, frames)]


def apart(records: list[Record]) -> list[Record]:
    """Each request, or answer, by itself."""
    return [one for each in records for one in (bundles.singles(each) if each.flags & Flag.BUNDLE else [each])]


def read(raw: bytes | bytearray, frames: tuple[Any, ...]) -> list[Record]:
    """What a worker or a client reads of a packed record."""
    return apart(wire.decode(bytes(raw), frames))


def bundled(records: list[Record], chance: random.Random) -> list[Record]:
    """The same in fewer records: some of those that follow one another become bundles."""
    found: list[Record] = []
    for record in records:
        last = found[-1] if found else None
        if (
            last is not None
            and (last.request_id + last.rows, last.ticket + last.rows) == (record.request_id, record.ticket)
            and last.flags & Flag.BUNDLE
            and not record.frames
            and chance.random() < 0.8
        ):
            found[-1] = last._replace(rows=last.rows + 1, frames=(*last.frames, record.body))
        elif record.frames or chance.random() < 0.2:
            found.append(record)
        else:  # perhaps of one
            found.append(record._replace(flags=Flag.BUNDLE, body=b"", frames=(record.body,)))
    return found


@dataclass(eq=False)
class Case:
    """One admitted request, as its client would tell its story."""

    session: Session
    request: Record
    num_bytes: int
    worker: str | None = None  # that has it; None: it waits, or has ended
    ticket: int = 0
    by_itself: bool = True  # not in a bundle, when it was given last
    given: int = 0  # times dispatched
    deaths: int = 0  # of workers that had it, those that count
    suspect: bool = False
    sent_parts: bool = False
    abandoned: bool = False  # cancelled, or its client has left
    answers: int = 0  # final ones

    @property
    def ended(self) -> bool:
        return self.abandoned or self.answers > 0

    @property
    def late(self) -> int:
        return self.request.deadline_ns


class Histories(RuleBasedStateMachine):
    """Clients, workers and time do whatever they may; what they cannot tell apart must not matter."""

    @initialize(max_attempts=st.integers(1, 3))
    def begin(self, max_attempts: int) -> None:
        self.max_attempts = max_attempts
        self.router = Router(MODELS, Limits(QUEUE, NUM_BYTES, PER_CLIENT, max_attempts), EPOCH)
        self.now = 10.0
        self.sessions: dict[str, Session] = {}
        self.workers: dict[str, Worker] = {}
        self.draining: set[str] = set()
        self.cases: list[Case] = []
        self.tickets: set[int] = set()
        self.num_late = 0
        self.num_opened = self.num_routes = 0
        for name in "ab":
            self.connects(name)
        for _ in range(2):
            self.opens("m", 4)

    # --- what the other ledger knows

    def live(self) -> list[Case]:
        return [case for case in self.cases if not case.ended]

    def find(self, session: Session, request_id: int) -> Case | None:
        found = [each for each in self.live() if each.session is session and each.request.request_id == request_id]
        assert len(found) <= 1
        return found[0] if found else None

    def at(self, worker: str) -> list[Case]:
        """What a worker was given and has not answered, abandoned or not."""
        return [case for case in self.cases if case.worker == worker]

    def final(self, session: Session, request_id: int) -> Case:
        """A client is told how its request ended."""
        case = self.find(session, request_id)
        assert case is not None, "an answer to nothing, or a second one"
        case.answers += 1
        assert case.answers == 1
        return case

    # --- clients

    @rule(name=st.sampled_from("abc"))
    def connects(self, name: str) -> None:
        self.num_routes += 1
        session = self.router.hello(name.encode() * 16, b"route%d" % self.num_routes)
        session.maps = name == "b"
        assert self.sessions.setdefault(name, session) is session, "a session outlives its connection"
        assert session.route == b"route%d" % self.num_routes

    @precondition(lambda self: self.sessions)
    @rule(which=pick)
    def leaves(self, which: int) -> None:
        name = sorted(self.sessions)[which % len(self.sessions)]
        session = self.sessions.pop(name)
        gone = [case for case in self.live() if case.session is session]
        running = self.router.leave(session)
        for case in gone:
            case.abandoned = True
        self.are_flagged(running, [case for case in gone if case.worker])

    def are_flagged(self, entries: list[Entry], cases: list[Case]) -> None:
        """Workers are told that nobody waits for these: all of them, and none that somebody waits for."""
        assert len(set(map(id, entries))) == len(entries)
        flagged = {(entry.worker.replica, ticket) for entry in entries for ticket in entry.tickets}
        assert {(case.worker, case.ticket) for case in cases} <= flagged
        assert flagged.isdisjoint({(case.worker, case.ticket) for case in self.live()})

    @precondition(lambda self: self.sessions)
    @rule(
        which=pick,
        request_ids=st.lists(st.integers(1, 20), min_size=1, max_size=6),
        flags=st.sampled_from([0, 0, 0, Flag.RESEND, Flag.NO_RETRY, Flag.STREAM, Flag.RESEND | Flag.STREAM]),
        priority=st.sampled_from(Priority),
        within=st.sampled_from([None, None, None, -1.0, 0.02, 0.5, 5.0]),
        rows=st.sampled_from([1, 1, 1, 2, 5]),
        model=st.sampled_from([0, 0, 0, 0, 1, 2]),
        size=st.sampled_from([0, 10, 10, 10, 800]),
    )
    def asks(
        self, which: int, request_ids: list[int], flags: int, priority: int, within: float | None, **more: Any
    ) -> None:
        session = self.sessions[sorted(self.sessions)[which % len(self.sessions)]]
        deadline_ns = 0 if within is None else int((self.now + within) * NS)
        requests = [
            Record(
                Kind.REQUEST, flags, priority, 0, more["model"], request_id, 0, deadline_ns, more["rows"],
                bytes(more["size"]), (b"frame",),
            )
            for request_id in request_ids
        ]  # fmt: skip
        self.admits(session, requests)

    @precondition(lambda self: self.sessions)
    @rule(
        which=pick,
        many=st.lists(lots, min_size=1, max_size=3),
        flags=st.sampled_from([0, 0, Flag.NO_RETRY]),
        within=st.sampled_from([None, None, -1.0, 0.02, 0.5, 5.0]),
        model=st.sampled_from([0, 0, 0, 0, 1, 2]),
        size=st.sampled_from([0, 10, 10, 10, 200]),
    )
    def asks_for_many(
        self, which: int, many: list[tuple[int, int, bool, int]], flags: int, within: float | None, **more: int
    ) -> None:
        session = self.sessions[sorted(self.sessions)[which % len(self.sessions)]]
        deadline_ns = 0 if within is None else int((self.now + within) * NS)
        requests: list[Record] = []
        for first, num, is_bundle, priority in many:
            sizes = [more["size"] * each % 256 for each in range(num)]
            bodies = tuple(b"%d of %d" % (each, len(self.cases)) + bytes(size) for each, size in enumerate(sizes))
            plain = Record(Kind.REQUEST, flags, priority, 0, more["model"], first, 0, deadline_ns)
            bundle = plain._replace(flags=flags | Flag.BUNDLE, rows=num, frames=bodies)
            requests += [bundle] if is_bundle else bundles.singles(bundle)
        self.admits(session, requests)

    def admits(self, session: Session, records: list[Record]) -> None:
        refusals = self.router.admit(session, received(records), self.now)
        for request in apart(records):
            request_id, flags = request.request_id, request.flags
            num_bytes = len(request.body) + sum(map(len, request.frames))
            if self.find(session, request_id) is not None:
                continue
            is_refused = bool(refusals) and refusals[0].request_id == request_id
            if not flags & Flag.RESEND:
                must_be = self.has_no_room(session, request, num_bytes) or 0 < request.deadline_ns <= self.now * NS
                assert is_refused == must_be or (is_refused and request.deadline_ns), "refused early at most"
            if is_refused:
                refusal = refusals.pop(0)
                assert wire.read_map(refusal.body, wire.ERROR_FIELDS)["code"] in REFUSALS
            else:
                assert request.model < len(MODELS)
                assert len(self.waiting()) < QUEUE or flags & Flag.RESEND
                assert not request.deadline_ns or request.deadline_ns > self.now * NS
                self.cases.append(Case(session, request, num_bytes))
        assert refusals == []
        self.holds()

    def has_no_room(self, session: Session, request: Record, num_bytes: int) -> bool:
        """What the limits say."""
        live, held = self.live(), sum(case.num_bytes for case in self.live())
        return (
            request.model >= len(MODELS)
            or sum(case.session is session for case in live) >= PER_CLIENT
            or len(self.waiting()) >= QUEUE
            or (held > 0 and held + num_bytes > NUM_BYTES)
        )

    @precondition(lambda self: self.live())
    @rule(which=pick)
    def cancels(self, which: int) -> None:
        case = self.live()[which % len(self.live())]
        entry = self.router.cancel(case.session, case.request.request_id)
        assert (entry is not None) == (case.worker is not None), "those that run are to be flagged, and only those"
        case.abandoned = True
        if entry is not None:
            self.are_flagged([entry], [case])

    @precondition(lambda self: self.sessions)
    @rule(which=pick)
    def cancels_what_is_not_there(self, which: int) -> None:
        session = self.sessions[sorted(self.sessions)[which % len(self.sessions)]]
        assert self.router.cancel(session, 1_000) is None

    # --- workers

    @precondition(lambda self: len(self.workers) < 6)
    @rule(
        model=st.sampled_from("mmmn"),
        max_batch_size=st.sampled_from([1, 2, 4, 16]),
        weight=st.sampled_from([1.0, 1.0, 0.3]),
    )
    def opens(self, model: str, max_batch_size: int, weight: float = 1.0) -> None:
        self.num_opened += 1
        name = f"{model}{self.num_opened}"
        worker = self.router.open(name, 1, name.encode(), model, max_batch_size, self.now, weight)
        assert worker is not None
        self.workers[name] = worker

    @precondition(lambda self: self.workers)
    @rule(which=pick, weight=st.sampled_from([1.0, 0.5, 0.05]))
    def weighs(self, which: int, weight: float) -> None:
        self.router.weigh(self.workers[self.a_worker(which)], weight)

    def a_worker(self, which: int) -> str:
        return sorted(self.workers)[which % len(self.workers)]

    @precondition(lambda self: self.workers)
    @rule(which=pick)
    def drains(self, which: int) -> None:
        name = self.a_worker(which)
        self.router.drain(self.workers[name])
        self.draining.add(name)

    @precondition(lambda self: self.workers)
    @rule(which=pick, cause=st.sampled_from(CAUSES), ran=st.lists(st.booleans(), min_size=MAX_ROWS, max_size=MAX_ROWS))
    def dies(self, which: int, cause: Cause, ran: list[bool]) -> None:
        name = self.a_worker(which)
        held = self.at(name)
        running = {case.ticket for case, runs in zip(held, ran, strict=False) if runs}
        ended = self.router.lost(self.workers.pop(name), cause, running | {wire.make_ticket(EPOCH, 1 << 30)}, self.now)
        self.draining.discard(name)
        codes = {}
        for session, record in ended:
            case = self.final(session, record.request_id)
            codes[case] = wire.read_map(record.body, wire.ERROR_FIELDS)["code"]
        for case in held:
            if not case.abandoned:
                assert codes.pop(case, None) == self.verdict(case, cause, case.ticket in running)
            case.worker, case.ticket = None, 0
        assert not codes, "only what the worker had is touched by its death"

    def verdict(self, case: Case, cause: Cause, ran: bool) -> str | None:
        """What the contract says of a request whose worker died; None: it runs again."""
        case.deaths += cause.counts
        is_last = case.deaths >= self.max_attempts
        was_suspect = case.suspect
        if case.sent_parts or case.request.flags & Flag.NO_RETRY:
            return "lost"
        if cause.counts and ran:
            case.suspect = True
            if was_suspect and (cause.convicts or is_last):
                return "poisoned"
        if cause.counts and is_last:
            return "lost"
        return "deadline" if 0 < case.late <= self.now * NS else None

    @precondition(lambda self: any(case.worker for case in self.cases))
    @rule(
        which=pick,
        order=st.randoms(use_true_random=False),
        share=st.integers(1, 4),
        kind=st.sampled_from([Kind.RESULT, Kind.RESULT, Kind.RESULT, Kind.ERROR, Kind.END, Kind.PART]),
        in_order=st.booleans(),
    )
    def answers(self, which: int, order: random.Random, share: int, kind: Kind, *, in_order: bool) -> None:
        busy = sorted({case.worker for case in self.cases if case.worker})
        name = busy[which % len(busy)]
        held = self.at(name)
        if in_order:
            start = order.randrange(len(held))
            held = sorted(held, key=lambda case: case.ticket)[start:]
        else:
            order.shuffle(held)
        self.says(name, held[: -(-len(held) // share)], kind, order)

    def says(self, name: str, cases: list[Case], kind: Kind, chance: random.Random) -> None:
        """A worker's message, among things that nobody waits for."""
        nonsense = [wire.make_ticket(EPOCH + 1, case.ticket & 0xFFFFFFFF) for case in cases]
        nonsense += [0, wire.make_ticket(EPOCH, 1 << 30), *(case.ticket for case in self.cases if case.worker != name)]
        if kind == Kind.PART:  # only of what is no bundle: streams are none
            cases = [case for case in cases if case.by_itself]
        frames = (LARGE,) if chance.random() < 0.1 else ()
        records = [
            Record(kind, 0, request_id=case.request.request_id, ticket=case.ticket, body=b"%d" % case.ticket)
            for case in cases
        ]
        if kind == Kind.RESULT:
            records = [each._replace(frames=frames) for each in records]
            records = bundled(records, chance)
            records += [self.too_wide(each, chance) for each in records if chance.random() < 0.2]
            chance.shuffle(records)
        records[1:1] = [Record(Kind.RESULT, ticket=ticket) for ticket in nonsense]
        self.hears(name, records)

    def too_wide(self, record: Record, chance: random.Random) -> Record:
        """A bundle that has more tickets around it: answered ones, cancelled ones, those of others and of nobody."""
        before, after = chance.randrange(min(4, record.request_id)), chance.randrange(4)
        tickets = range(record.ticket - before, record.ticket + record.rows + after)
        return record._replace(
            flags=Flag.BUNDLE,
            request_id=record.request_id - before,
            ticket=tickets[0],
            rows=len(tickets),
            body=b"",
            frames=tuple(b"%d" % ticket for ticket in tickets),
        )

    def hears(self, name: str, records: list[Record]) -> None:
        """The first final answer to what the worker has counts, and no other."""
        held = {case.ticket: case for case in self.at(name)}
        expected: list[tuple[Case, Record]] = []
        for answer in apart(records):
            case = held.get(answer.ticket)
            if case is None:
                self.num_late += 1
                continue
            if not case.abandoned:
                expected.append((case, answer))
            if answer.kind in FINAL:
                del held[answer.ticket]
        found = self.router.answers(self.workers[name], received(records), self.now)
        told = [(entry.session, answer) for entry, packed in found for answer in read(*packed[9:])]
        assert told == [(case.session, answer) for case, answer in expected]
        for case, answer in expected:
            case.sent_parts = case.sent_parts or answer.kind not in FINAL
            case.answers += answer.kind in FINAL
            assert case.answers <= 1
        for case in self.at(name):
            if case.ticket not in held:
                case.worker, case.ticket = None, 0

    # --- time

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.03, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        before = {id(case) for case in self.live() if case.worker is None and 0 < case.late <= int(self.now * NS)}
        ended = self.router.expire(self.now)
        codes = {wire.read_map(record.body, wire.ERROR_FIELDS)["code"] for _, record in ended}
        assert codes <= {"deadline"}
        assert {id(self.final(session, record.request_id)) for session, record in ended} == before
        next_deadline = self.router.next_deadline()
        waiting = [case.late for case in self.live() if case.worker is None and case.late]
        assert not waiting or (next_deadline is not None and next_deadline * NS <= min(waiting) + 1e3)

    @rule()
    def dispatches(self) -> None:
        """As the broker does: what is late ends before anything is given out."""
        self.time_passes(0.0)
        for worker, entries in self.router.dispatch(self.now):
            self.gives(worker, entries)
        for model in MODELS:
            if any(MODELS[case.request.model] == model for case in self.waiting() if not case.suspect):
                idle = [name for name in self.workers if name[0] == model and not self.at(name)]
                assert set(idle) <= self.draining, "a worker idles while something waits for it"

    def waiting(self) -> list[Case]:
        return [case for case in self.live() if case.worker is None]

    def gives(self, worker: Worker, entries: list[Entry]) -> None:
        name = worker.replica
        assert self.workers.get(name) is worker, "a dead worker"
        assert name not in self.draining
        already = self.at(name)
        assert not any(case.suspect for case in already), "a suspect runs alone"
        assert sum(case.request.rows for case in already) < 2 * worker.max_batch_size, "there was no room"
        given = [
            (entry.session, request, len(entry.tickets))
            for entry in entries
            for request in read(wire.addressed(entry.raw, entry.attempts, entry.ticket), entry.frames)
        ]
        assert given
        rows = sum(case.request.rows for case in already) + sum(request.rows for _, request, _ in given)
        assert rows <= (2 if already else 1) * worker.max_batch_size or len(given) == 1
        assert not any(request.flags & Flag.STREAM for _, request, _ in given[:-1]), "behind a stream"
        for session, request, num_bundled in given:
            case = self.find(session, request.request_id)
            assert case is not None, "it has ended, or was never admitted"
            assert case.worker is None, "it is with a worker already"
            assert MODELS[case.request.model] == name[0]
            assert not case.suspect or (not already and len(given) == 1), "a suspect runs alone"
            assert request == case.request._replace(attempt=case.deaths + 1, ticket=request.ticket)
            assert request.ticket not in self.tickets
            self.tickets.add(request.ticket)
            case.worker, case.ticket, case.by_itself = name, request.ticket, num_bundled == 1
            case.given += 1
            assert case.given == 1 or not case.request.flags & Flag.NO_RETRY
            assert case.given == 1 or not case.sent_parts
            assert case.deaths < self.max_attempts
            assert not case.late or case.late > self.now * NS

    # --- what holds after every step

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "router"):
            return
        check(self.router)
        live = self.live()
        assert self.router.num_bytes == sum(case.num_bytes for case in live)
        assert self.router.num_queued == sum(case.worker is None for case in live)
        assert self.router.num_outstanding == sum(case.worker is not None for case in self.cases)
        listed = {(session.id, each) for session in self.router.sessions.values() for each in session.entries}
        assert listed == {(case.session.id, case.request.request_id) for case in live}
        for name, worker in self.workers.items():
            assert set(worker.outstanding) == {case.ticket for case in self.at(name)}
        counts = self.router.counts
        assert counts.late == self.num_late
        assert counts.admitted == len(self.cases)
        assert counts.answered + counts.lost + counts.poisoned + counts.expired == sum(c.answers for c in self.cases)
        assert counts.cancelled == sum(case.abandoned for case in self.cases)

    def teardown(self) -> None:
        """With good workers everything ends: nothing was forgotten anywhere."""
        if not hasattr(self, "router"):
            return
        for model in MODELS:
            self.opens(model, 2)
        for _ in range(2 * len(self.cases) + 4):
            self.dispatches()
            self.holds()
            for name in list(self.workers):
                if self.at(name):
                    self.says(name, self.at(name), Kind.RESULT, random.Random(len(self.tickets)))
            self.holds()
        assert self.router.num_bytes == self.router.num_queued == self.router.num_outstanding == 0
        assert all(case.answers == (0 if case.abandoned else 1) for case in self.cases)


def test_no_history_breaks_the_ledger() -> None:
    """Each admitted request is in one place, ends exactly once, and is never with two workers at once."""
    run_state_machine_as_test(Histories, settings=settings(max_examples=100, stateful_step_count=50, deadline=None))


def walk(seed: int, num_steps: int, *, in_bundles: bool = False) -> Histories:
    """A busy day: the same steps, chosen so that most requests run and many workers die.

    in_bundles: little tells requests apart, and those that run are cancelled as often as those that wait.
    """
    rng = random.Random(seed)
    histories = Histories()
    histories.begin(rng.randint(1, 3))
    flags = [0] * 6 + [Flag.RESEND, Flag.NO_RETRY, Flag.STREAM]
    for _ in range(num_steps):
        dice, which = rng.random(), rng.randrange(1000)
        if dice < (0.03 if in_bundles else 0.14):
            histories.asks(
                which,
                rng.sample(range(1, 40), rng.randint(1, 8)),
                rng.choice(flags),
                rng.choice(list(Priority)),
                rng.choice([None, None, None, 0.02, 5.0]),
                rows=rng.choice([1, 1, 1, 2, 5]),
                model=int(rng.random() < 0.1),
                size=rng.choice([0, 10, 10, 200]),
            )
        elif dice < 0.34:
            priorities = [*Priority] if rng.random() < (0.1 if in_bundles else 0.5) else [Priority.NORMAL]
            many = [
                (rng.randint(1, 400), rng.randint(1, 9), rng.random() < 0.8, rng.choice(priorities))
                for _ in range(rng.randint(1, 3))
            ]
            model, size = int(rng.random() < 0.1), rng.choice([0, 1, 10, 50])
            within = rng.choice([None, None, 0.02, 5.0])
            histories.asks_for_many(which, many, rng.choice([0, 0, 0, Flag.NO_RETRY]), within, model=model, size=size)
        elif dice < 0.58:
            histories.dispatches()
        elif dice < 0.75 and any(case.worker for case in histories.cases):
            kind = rng.choice([Kind.RESULT, Kind.RESULT, Kind.RESULT, Kind.ERROR, Kind.PART])
            histories.answers(which, rng, rng.randint(1, 4), kind, in_order=rng.random() < 0.6)
        elif dice < 0.85 and histories.workers:
            likely = rng.random()
            histories.dies(which, rng.choice(CAUSES), [rng.random() < likely for _ in range(MAX_ROWS)])
        elif dice < 0.92 and len(histories.workers) < 6:
            histories.opens(rng.choice("mmmn"), rng.choice([8, 16] if in_bundles else [1, 2, 4, 8]))
        elif dice < 0.94:
            histories.time_passes(rng.choice([0.001, 0.03, 1.0]))
        elif dice < 0.97 and histories.live():
            for _ in range(4 if in_bundles else 1):
                if histories.live():
                    histories.cancels(rng.randrange(1000))
        elif dice < 0.98 and histories.workers:
            histories.drains(which)
        elif dice < 0.99 and histories.sessions:
            histories.leaves(which)
        else:
            histories.connects(rng.choice("abc"))
        if not histories.sessions:
            histories.connects("a")
        histories.holds()
    histories.teardown()
    return histories


def test_no_busy_day_breaks_the_ledger() -> None:
    """The same over long histories in which every kind of end is common."""
    days = [walk(seed, 150, in_bundles=seed % 2 == 1) for seed in range(40)]
    cases = [case for day in days for case in day.cases]
    assert sum(case.suspect for case in cases) > 100
    assert sum(case.given > 1 for case in cases) > 100
    counts = [day.router.counts for day in days]
    for name in ("answered", "lost", "poisoned", "expired", "cancelled", "rejected", "retried"):
        assert sum(getattr(each, name) for each in counts) > 5, f"hardly anything was {name}: this tells little"
