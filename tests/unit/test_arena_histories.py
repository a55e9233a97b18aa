"""Shared memory under arbitrary histories: real clients' and balancer's ledgers, one real memory, actors in between.

Every request and every result is filled with a number of its own. Whoever reads sees what was written for it, or a
chunk was given to two.
"""

from __future__ import annotations

import functools
import mmap
import os
import random
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
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

from orch import arena, chunk, payload
from orch.arena import Arena
from orch.bundles import singles
from orch.calls import Call, Calls
from orch.chunk import Chunk
from orch.loans import Loans
from orch.wire import (
    FRAME_BYTES,
    Flag,
    Kind,
    Packed,
    Received,
    Record,
    addressed,
    changed,
    decode,
    messages,
    receive,
    repacked,
)
from orch_balancer.admission import Limits
from orch_balancer.entry import Session
from orch_balancer.pool import Worker
from orch_balancer.router import Router
from orch_balancer.verdict import Cause
from tests.unit.ledger import check

EPOCH = 7
TOTAL = 64 * FRAME_BYTES
CRASH = Cause("died of SIGSEGV", convicts=False)
GIVEN_UP = Cause("died", convicts=False)
RECONNECTED = Cause("reconnected", counts=False)
RECONNECTS = 20  # in a thousand steps of a life in which messages travel
ZOMBIE = 255  # what a worker that was given up scribbles into the chunk of its result

pick = st.integers(0, 999)
size = st.sampled_from([100, FRAME_BYTES, FRAME_BYTES, 2 * FRAME_BYTES + 5, 3 * FRAME_BYTES])


class Memory(Arena):
    """One process's mapping of the arena's file."""

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, 0)
        self.memory = memoryview(self._map)


def received(record: Record) -> list[Packed]:
    """What the balancer reads."""
    ((head, *frames),) = messages([record])
    return receive(head, frames)


def answer_of(request: bytes, num_bytes: int) -> bytes:
    """What a worker answers: another number, as large as it likes."""
    return bytes([(request[0] + 100) % 250]) * num_bytes


@dataclass(eq=False)
class Body:
    """What a client reads into a room: value, of which `come` bytes are there."""

    memory: memoryview
    value: bytes
    come: int = 0

    def comes(self, num_bytes: int) -> None:
        self.memory[self.come : num_bytes] = self.value[self.come : num_bytes]
        self.come = num_bytes

    def check(self) -> None:
        assert bytes(self.memory[: self.come]) == self.value[: self.come], "a room has changed under its holder"


@dataclass(eq=False)
class Client:
    """A client object: what it has submitted and is reading, and the two directions of its connection."""

    session: Session
    calls: Calls
    up: deque[list[Record]] = field(default_factory=deque)
    down: deque[Record] = field(default_factory=deque)
    live: dict[int, Call] = field(default_factory=dict)
    values: dict[int, bytes] = field(default_factory=dict)
    bodies: list[Body] = field(default_factory=list)
    num_made: int = 0


@dataclass(eq=False)
class Job:
    """A request at a worker, as its model sees it, and where its result may go."""

    request: Record
    lease: int
    seen: Any  # a view of the memory, or bytes
    expected: bytes
    result: Chunk | None

    def check(self) -> None:
        assert bytes(self.seen) == self.expected, "a request has changed under its reader"


@dataclass(eq=False)
class Process:
    """A worker process. worker: as the balancer knows it; None: it was given up, and lives."""

    name: tuple[str, int]
    worker: Worker | None
    jobs: list[Job] = field(default_factory=list)
    kept: list[Job] = field(default_factory=list)
    up: deque[list[Record]] = field(default_factory=deque)


class Histories(RuleBasedStateMachine):
    """Messages are delayed and lost with their connections; everybody may die between any two of them."""

    @initialize()
    def begin(self) -> None:
        self.router = Router(("m",), Limits(1000, 1 << 30, 1000, 3), EPOCH, TOTAL)
        self.fd = arena.create(TOTAL)
        weakref.finalize(self, os.close, self.fd)
        self.arena = Memory(self.fd)
        self.now = 10.0
        self.clients: list[Client] = []
        self.processes: list[Process] = []
        self.num_clients = self.num_generations = self.num_values = 0
        self.wrong: list[str] = []
        for _ in range(2):
            self.client_comes()
            self.worker_opens()

    def loans(self) -> Loans:
        return Loans("path", EPOCH, lambda _path, _epoch: Memory(self.fd))

    # --- clients

    @precondition(lambda self: len(self.clients) < 4)
    @rule()
    def client_comes(self) -> None:
        self.num_clients += 1
        session = self.router.hello(b"%016d" % self.num_clients, b"route%d" % self.num_clients)
        calls = Calls()
        calls.window = 1000
        calls.loans = self.loans()
        self.clients.append(Client(session, calls))

    def ended(self, client: Client, number: int, sent: bytes, value: Any, error: BaseException | None) -> None:
        client.live.pop(number, None)
        if error is None and bytes(value) != answer_of(sent, len(value)):
            self.wrong.append(f"an answer of {len(value)} bytes is not that of its request")

    @precondition(lambda self: self.clients)
    @rule(which=pick, sizes=st.lists(size, min_size=1, max_size=4))
    def client_submits(self, which: int, sizes: list[int]) -> None:
        client = self.clients[which % len(self.clients)]
        for num_bytes in sizes:
            value = self.new_value(num_bytes)
            self.submit(client, value, value)

    def new_value(self, num_bytes: int) -> bytes:
        self.num_values += 1
        return bytes([self.num_values % 100]) * num_bytes

    def submit(self, client: Client, value: bytes, sent: Any) -> None:
        client.num_made += 1
        body, frames = payload.encode(sent)
        settle = functools.partial(self.ended, client, client.num_made, value)
        client.live[client.num_made] = call = Call(client.num_made, body, frames, settle)
        client.values[client.num_made] = value
        client.calls.submit(call)

    @precondition(lambda self: self.clients)
    @rule(which=pick, num_bytes=st.integers(FRAME_BYTES, 2 * FRAME_BYTES), come=st.integers(0, FRAME_BYTES))
    def client_reads_into_a_room(self, which: int, num_bytes: int, come: int) -> None:
        """Some of a request's bytes have come; all of them, or none, may follow."""
        client = self.clients[which % len(self.clients)]
        memory = client.calls.loans.room(num_bytes)
        if memory is not None:
            client.bodies.append(Body(memory, self.new_value(num_bytes)))
            client.bodies[-1].comes(come)

    def body_of(self, which: int) -> tuple[Client, int]:
        found = [(client, i) for client in self.clients for i in range(len(client.bodies))]
        return found[which % len(found)]

    @precondition(lambda self: any(client.bodies for client in self.clients))
    @rule(which=pick)
    def a_body_has_come(self, which: int) -> None:
        """Perhaps over a connection of another time."""
        client, i = self.body_of(which)
        client.bodies[i].comes(len(client.bodies[i].value))

    @precondition(lambda self: any(client.bodies for client in self.clients))
    @rule(which=pick, kept=st.booleans(), part=st.booleans())
    def client_submits_a_body(self, which: int, kept: bool, part: bool) -> None:
        """All of it or a part; it may still have it when the answer is there, and submit it once more."""
        client, i = self.body_of(which)
        self.a_body_has_come(which)
        body = client.bodies[i] if kept else client.bodies.pop(i)
        size = len(body.value) // 2 if part else len(body.value)
        self.submit(client, body.value[:size], np.frombuffer(body.memory[:size], np.uint8))

    @precondition(lambda self: any(client.bodies for client in self.clients))
    @rule(which=pick)
    def client_lets_go_of_a_body(self, which: int) -> None:
        client, i = self.body_of(which)
        del client.bodies[i]

    @precondition(lambda self: self.clients)
    @rule(which=pick)
    def client_sends(self, which: int) -> None:
        client = self.clients[which % len(self.clients)]
        records = client.calls.to_send(self.now, local=True) or client.calls.loans.news(self.now)
        if records:
            client.up.append(records)
        for record in records:
            if record.kind == Kind.CANCEL:
                client.calls.cancelled(record.request_id)

    @precondition(lambda self: any(client.live for client in self.clients))
    @rule(which=pick)
    def client_cancels(self, which: int) -> None:
        client = next(client for client in self.clients if client.live)
        number = sorted(client.live)[which % len(client.live)]
        client.calls.cancel(client.live.pop(number))

    @precondition(lambda self: any(client.down for client in self.clients))
    @rule(which=pick)
    def client_hears(self, which: int) -> None:
        waiting = [client for client in self.clients if client.down]
        client = waiting[which % len(waiting)]
        record = client.down.popleft()
        client.calls.loans.granted(record) if record.kind == Kind.GRANT else client.calls.take(record)
        assert not self.wrong

    @precondition(lambda self: self.clients)
    @rule(which=pick)
    def client_idles(self, which: int) -> None:
        self.now += 5.0
        self.clients[which % len(self.clients)].calls.loans.rest()

    @precondition(lambda self: self.clients)
    @rule(which=pick)
    def client_reconnects(self, which: int) -> None:
        """Its connection is lost with all that was on the way; it begins anew with the same session."""
        client = self.clients[which % len(self.clients)]
        client.up.clear()
        client.down.clear()
        client.calls.new_balancer()
        client.calls.loans = self.loans()
        self.num_clients += 1
        client.session = self.router.hello(client.session.id, b"route%d" % self.num_clients)
        client.session.maps = False
        self.router.leases.forget(client.session.id)

    @precondition(lambda self: self.clients)
    @rule(which=pick)
    def client_dies(self, which: int) -> None:
        client = self.clients.pop(which % len(self.clients))
        self.router.leases.forget(client.session.id)
        self.router.leave(client.session)

    @precondition(lambda self: any(client.up for client in self.clients))
    @rule(which=pick)
    def balancer_hears_a_client(self, which: int) -> None:
        waiting = [client for client in self.clients if client.up]
        client = waiting[which % len(waiting)]
        leases, session = self.router.leases, client.session
        for record in client.up.popleft():
            if record.kind == Kind.REQUEST:
                client.down.extend(self.router.admit(session, received(record), self.now))
            elif record.kind == Kind.CANCEL:
                self.router.cancel(session, record.request_id)
            elif record.kind == Kind.LEASE:
                session.maps = True
                for num_bytes in chunk.read_numbers(record.body):
                    granted = leases.grant(session.id, num_bytes, record.rows)
                    client.down.append(Record(Kind.GRANT, body=chunk.write_chunks(granted)))
            elif record.kind == Kind.RETURN:
                leases.give_back(session.id, chunk.read_numbers(record.body))

    # --- workers

    @precondition(lambda self: len(self.processes) < 4)
    @rule()
    def worker_opens(self) -> None:
        self.num_generations += 1
        self.opens(Process((f"r{self.num_generations}", self.num_generations), None))

    def opens(self, process: Process) -> None:
        replica, generation = process.name
        process.worker = self.router.open(replica, generation, f"{replica}".encode(), "m", 4, self.now)
        if process not in self.processes:
            self.processes.append(process)

    @rule()
    def balancer_dispatches(self) -> None:
        for worker, entries in self.router.dispatch(self.now):
            (process,) = (each for each in self.processes if each.worker is worker)
            for entry in entries:
                (record,) = decode(bytes(addressed(entry.raw, entry.attempts, entry.ticket)), entry.frames)
                result = None if entry.result is None else entry.result.chunk
                requests = singles(record) if record.flags & Flag.BUNDLE else [record]
                process.jobs += [self.job(entry.session, request, result) for request in requests]

    def job(self, session: Session, request: Record, result: Chunk | None) -> Job:
        expected = self.value_of(session.id, request.request_id)
        if request.flags & Flag.ARENA:
            found, memory = self.arena.read(request.body)
            lease = found.lease
            seen: Any = memory[slice(*found.places[0])]
        else:
            lease, seen = 0, payload.decode(request.body, request.frames)
        return Job(request, lease, seen, bytes(expected if expected is not None else seen), result)

    def value_of(self, session_id: bytes, request_id: int) -> Any:
        """What the client had put there, as far as it still knows."""
        for client in self.clients:
            if client.session.id == session_id and request_id in client.live:
                return client.values[request_id]
        return None

    @precondition(lambda self: any(process.jobs for process in self.processes))
    @rule(which=pick, keeps=st.booleans(), num_bytes=size)
    def worker_answers(self, which: int, keeps: bool, num_bytes: int) -> None:
        """Also one that was given up runs its requests to the end, and writes their results."""
        busy = [process for process in self.processes if process.jobs]
        process = busy[which % len(busy)]
        job = process.jobs.pop(0)
        job.check()
        body, frames = payload.encode(answer_of(job.expected, num_bytes))
        flags = 0
        if job.result is not None and frames and num_bytes <= job.result.size:
            body = self.arena.write(job.result, list(frames)) + body
            flags, frames = Flag.ARENA, ()
        elif job.result is not None:
            self.scribble(job.result)
        if job.lease and keeps:
            process.kept.append(job)
        if any(each.lease == job.lease for each in process.kept):
            flags |= Flag.KEPT if job.lease else 0
        record = Record(Kind.RESULT, flags, ticket=job.request.ticket, body=body, frames=frames)
        process.up.append([record._replace(request_id=job.request.request_id)])

    def scribble(self, where: Chunk) -> None:
        self.arena.memory[where.offset : where.offset + where.size] = bytes([ZOMBIE]) * where.size

    @precondition(lambda self: any(process.kept for process in self.processes))
    @rule(which=pick)
    def worker_lets_go(self, which: int) -> None:
        keeping = [process for process in self.processes if process.kept]
        process = keeping[which % len(keeping)]
        job = process.kept.pop(0)
        job.check()
        if not any(each.lease == job.lease for each in process.kept):
            process.up.append([Record(Kind.RETURN, body=chunk.write_numbers([job.lease]))])

    @precondition(lambda self: any(process.up for process in self.processes))
    @rule(which=pick)
    def balancer_hears_a_worker(self, which: int) -> None:
        waiting = [process for process in self.processes if process.up]
        self.hears(waiting[which % len(waiting)])

    def hears(self, process: Process) -> None:
        records = process.up.popleft()
        if process.worker is None:
            return  # over a route that the balancer does not know any more
        if records[0].kind == Kind.RETURN:
            self.router.leases.let_go(process.name, chunk.read_numbers(records[0].body))
            return
        for entry, record in self.router.answers(process.worker, [*map(repacked, records)], self.now):
            self.tell(entry.session, changed(Received(*record)))

    def tell(self, session: Session, record: Record) -> None:
        for client in self.clients:
            if client.session is session:
                client.down.append(record)

    def lost(self, process: Process, cause: Cause) -> None:
        if process.worker is not None:
            for ended in self.router.lost(process.worker, cause, (), self.now):
                self.tell(ended.session, ended.record)
        process.worker = None

    @precondition(lambda self: self.processes)
    @rule(which=pick)
    def worker_dies(self, which: int) -> None:
        """What it sent before is read first."""
        process = self.processes.pop(which % len(self.processes))
        while process.up:
            self.hears(process)
        self.router.leases.leave_all(process.name)
        self.lost(process, CRASH)

    @precondition(lambda self: any(process.worker for process in self.processes))
    @rule(which=pick)
    def worker_is_given_up(self, which: int) -> None:
        """It cannot be reached, and lives."""
        open_ones = [process for process in self.processes if process.worker is not None]
        self.lost(open_ones[which % len(open_ones)], GIVEN_UP)

    @precondition(lambda self: self.processes)
    @rule(which=pick, heard=st.booleans())
    def worker_reconnects(self, which: int, heard: bool) -> None:
        """It drops what it has not run, and says what its model keeps."""
        process = self.processes[which % len(self.processes)]
        while process.up and heard:
            self.hears(process)
        process.up.clear()
        process.jobs.clear()
        self.lost(process, RECONNECTED)
        self.router.leases.leave_all(process.name, but=[job.lease for job in process.kept])
        self.opens(process)

    @rule(seed=pick, steps=st.integers(5, 80))
    def life_goes_on(self, seed: int, steps: int) -> None:
        """Nothing bad for a while: messages travel and requests run, in any order."""
        if not self.clients:
            return
        chance = random.Random(seed)
        for _ in range(steps):
            which = chance.randrange(1000)
            size = which % 3 * FRAME_BYTES + 70_000
            call = functools.partial
            bodies = [body for client in self.clients for body in client.bodies]
            doable: list[tuple[bool, Callable[[], None]]] = [
                (sum(len(each.live) for each in self.clients) < 8, call(self.client_submits, which, [size])),
                (True, call(self.client_sends, which)),
                (
                    sum(len(each.bodies) for each in self.clients) < 4,
                    call(self.client_reads_into_a_room, which, size, 9),
                ),
                (bool(bodies), call(self.client_submits_a_body, which, which % 2 == 0, which % 7 == 0)),
                (bool(bodies), call(self.client_lets_go_of_a_body, which)),
                (which < RECONNECTS, call(self.client_reconnects, which)),
                (any(each.up for each in self.clients), call(self.balancer_hears_a_client, which)),
                (True, self.balancer_dispatches),
                (any(each.jobs for each in self.processes), call(self.worker_answers, which, which % 5 == 0, size)),
                (any(each.up for each in self.processes), call(self.balancer_hears_a_worker, which)),
                (any(each.down for each in self.clients), call(self.client_hears, which)),
                (any(each.kept for each in self.processes), call(self.worker_lets_go, which)),
            ]
            chance.choice([do for possible, do in doable if possible])()
            self.nothing_is_given_twice()

    # --- what must hold

    @invariant()
    def nothing_is_given_twice(self) -> None:
        if not hasattr(self, "router"):
            return
        check(self.router)
        assert not self.wrong, self.wrong
        for process in self.processes:
            for job in (*process.jobs, *process.kept):
                job.check()
        for client in self.clients:
            for body in client.bodies:
                body.check()

    def teardown(self) -> None:
        """When everybody is gone, so are all leases."""
        if not hasattr(self, "router"):
            return
        while self.processes:
            self.worker_dies(0)
        while self.clients:
            self.client_dies(0)
        assert self.router.leases.num_leased == 0
        check(self.router)


def test_no_chunk_is_given_to_two_and_none_is_lost() -> None:
    """Whatever happens, in whatever order."""
    run_state_machine_as_test(
        Histories,
        settings=settings(max_examples=100, stateful_step_count=50, deadline=None, database=None),
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_long_life_is_no_different(seed: int) -> None:
    """Most of the time all is well; now and then a worker dies, is given up, or a client rests."""
    world, chance = Histories(), random.Random(seed)
    world.begin()
    for _ in range(40):
        which = chance.randrange(1000)
        world.life_goes_on(which, 60)
        chance.choice([world.worker_dies, world.worker_is_given_up, world.client_idles])(which)
        while not any(process.worker for process in world.processes) or len(world.processes) < 2:
            if len(world.processes) == 4:
                world.worker_dies(which)
            world.worker_opens()
    assert sum(client.num_made for client in world.clients) > 100
    world.teardown()


def work_off(world: Histories) -> None:
    """Until no message is on its way and no request is open."""
    while world.router.num_queued or world.router.num_outstanding or any(client.down for client in world.clients):
        while any(client.up for client in world.clients):
            world.balancer_hears_a_client(0)
        world.balancer_dispatches()
        while any(process.jobs for process in world.processes):
            world.worker_answers(0, False, 3 * FRAME_BYTES)
        while any(process.up for process in world.processes):
            world.balancer_hears_a_worker(0)
        while any(client.down for client in world.clients):
            world.client_hears(0)


def send_all(world: Histories) -> None:
    """Each client's turn."""
    for turn, _ in enumerate(world.clients):
        world.client_sends(turn)
    while any(client.up for client in world.clients):
        world.balancer_hears_a_client(0)


def test_a_quiet_system_has_given_everything_back() -> None:
    """After all answers, one idle second and the messages that follow from it, the arena is empty."""
    world = Histories()
    world.begin()
    for each in range(30):
        world.now += 0.1
        for turn, _ in enumerate(world.clients):
            world.client_submits(turn, [2 * FRAME_BYTES + 5] * 3)
        send_all(world)
        if each % 3 == 2:  # some while they run; their answers may be on the way already
            world.balancer_dispatches()
            world.worker_answers(0, False, 3 * FRAME_BYTES)
            world.balancer_hears_a_worker(0)
            for _ in range(4):
                world.client_cancels(0)
            send_all(world)
        work_off(world)
    assert world.router.leases.num_leased > 0
    assert world.router.pools[0].results.expected == 3 * FRAME_BYTES
    for turn, _ in enumerate(world.clients):
        world.client_idles(turn)
    send_all(world)
    assert world.router.leases.num_leased == 0
    assert not any(client.live for client in world.clients)
