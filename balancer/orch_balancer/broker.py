"""The hot loop: one synchronous pass after another over two ROUTER sockets.

A pass reads a bounded number of messages from each side, lets the router decide, and sends each peer one packed
message. Bodies are never decoded and large frames never copied.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any

import zmq

from orch import wire
from orch.errors import AddressInUse, Exit, RemoteProtocolError, WorkerLost
from orch.link import Link, Message
from orch.page import StatusPage
from orch.wire import Flag, Kind, Record
from orch_balancer.entry import Entry, Session
from orch_balancer.outlet import Outlet
from orch_balancer.peers import Peer, Watch, peer_of
from orch_balancer.pool import Worker
from orch_balancer.router import Cause, Ended, Limits, Router

log = logging.getLogger(__name__)

# Messages read from one socket in one pass. A loop that read everything first left one client unanswered for 15 s
# beside a flooding one; with 16 it waited 69 ms.
MAX_PASS = 16
FRONT_RCVHWM = 64
# How often a peer that does not read is tried again while something waits for it.
RETRY_MS = 5
# How long a dead worker's requests wait for the supervisor to say why it died.
VERDICT_S = 0.25
UNKNOWN_CAUSE = Cause("died", counts=True, convicts=False)
# A TCP peer that is silent this long is gone; a local one is watched by its process.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000


@dataclass(frozen=True, slots=True)
class Settings:
    """What the supervisor tells a new balancer."""

    front: list[str]
    back: str
    models: list[str]
    queue_limit: int
    queue_bytes: int
    client_queue_limit: int
    max_attempts: int
    max_payload_bytes: int


@dataclass(frozen=True, slots=True)
class Expected:
    """A worker process that the supervisor has vouched for."""

    replica: str
    generation: int
    pid: int
    slot: int
    accepting: bool


class Broker:
    """Owns the sockets and the routes; the router owns the requests."""

    def __init__(self, settings: Settings, link: Link, pages_fd: int) -> None:
        self._settings = settings
        self._link = link
        self._pages_fd = pages_fd
        limits = Limits(settings.queue_limit, settings.queue_bytes, settings.client_queue_limit, settings.max_attempts)
        self.router = Router(settings.models, limits, epoch=secrets.randbits(32) or 1)
        self._context = zmq.Context()
        self._front = self._bind(settings.front, rcvhwm=FRONT_RCVHWM)
        self._back = self._bind([settings.back])
        self._to_clients = Outlet(self._front)
        self._to_workers = Outlet(self._back)
        self._sessions: dict[bytes, Session] = {}  # by route
        self._sessions_of: dict[int, set[bytes]] = {}  # routes by pid
        self._workers: dict[bytes, Worker] = {}  # by route
        self._pages: dict[str, StatusPage] = {}  # by replica, of open workers
        self._expected: dict[str, Expected] = {}
        self._dying: dict[str, tuple[Worker, float]] = {}  # by replica: since when it is dead without a cause
        self._draining: set[str] = set()
        self._malformed = 0
        self._log_after = 0.0
        self._said_empty = False
        self.finished = False
        self._watch = Watch()
        self._watch.add(link.fileno(), self._read_link)
        self._poller = zmq.Poller()
        for readable in (self._front, self._back, self._watch.fileno()):
            self._poller.register(readable, zmq.POLLIN)

    def _bind(self, endpoints: list[str], rcvhwm: int = 1000) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.RCVHWM, rcvhwm)
        socket.setsockopt(zmq.LINGER, 1000)
        # A backstop: libzmq answers a larger message by dropping the connection, so the SDK refuses before.
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * self._settings.max_payload_bytes + wire.MAX_INLINE_BYTES)
        if any(endpoint.startswith("tcp:") for endpoint in endpoints):
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        for endpoint in endpoints:
            try:
                socket.bind(endpoint)
            except zmq.ZMQError as err:
                raise AddressInUse(f"cannot listen on {endpoint}: {err.strerror}; choose another --listen") from err
        return socket

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until the supervisor says stop (OK) or is gone (ORPHANED)."""
        while not self.finished and not self._link.closed:
            self._poller.poll(self._timeout_ms())
            self._watch.dispatch()
            self._read_back()
            self._read_front()
            now = time.monotonic()
            self._bury(now)
            self._end(self.router.expire(now))
            self._dispatch(now)
            self._flush()
            self._report()
        orphaned = self._link.closed and not self.finished
        self._context.destroy(linger=0 if orphaned else 1000)
        return Exit.ORPHANED if orphaned else Exit.OK

    def _timeout_ms(self) -> int | None:
        """Until the next thing that happens by itself; None: nothing does."""
        if self._to_clients.blocked or self._to_workers.blocked:
            return RETRY_MS
        times = [since + VERDICT_S for _, since in self._dying.values()]
        deadline = self.router.next_deadline()
        if deadline is not None:
            times.append(deadline)
        if not times:
            return None
        return int(max(0.0, min(times) - time.monotonic()) * 1000) + 1  # rounded up: 1 ms late beats a busy loop

    def _receive(self, socket: zmq.Socket[bytes], known: dict[bytes, Any]) -> tuple[bytes, Any, list[zmq.Frame]] | None:
        """Route, head and further frames of the next message. The head of an unknown peer comes with its address."""
        try:
            route = socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        head = socket.recv(copy=route in known)
        frames: list[zmq.Frame] = []
        while socket.getsockopt(zmq.RCVMORE):
            frames.append(socket.recv(copy=False))
        return route, head, frames

    def _flush(self) -> None:
        for route in self._to_clients.flush():
            self._leave(route, "is gone or does not read its answers")
        for route in self._to_workers.flush():
            worker = self._workers.get(route)
            if worker is not None:
                self._worker_died(worker)

    # --- clients -------------------------------------------------------------------------------------------------

    def _read_front(self) -> None:
        for _ in range(MAX_PASS):
            message = self._receive(self._front, self._sessions)
            if message is None:
                return
            route, head, frames = message
            session = self._sessions.get(route)
            try:
                if session is None:
                    self._greet(route, head, frames)
                else:
                    self._serve(session, wire.decode(head, frames))
            except RemoteProtocolError as err:
                self._malformed_from(route, err)

    def _greet(self, route: bytes, head: zmq.Frame, frames: list[zmq.Frame]) -> None:
        """An unknown route: HELLO opens a session; anything else is answered with our HELLO, which asks for it."""
        records = wire.decode(head.bytes, frames)
        first = records[0]
        if first.kind != Kind.HELLO:
            if first.kind != Kind.GOODBYE:
                self._to_clients.put(route, Record(Kind.HELLO))
            return
        peer = peer_of(head)
        if peer is not None and peer.uid != os.getuid():
            raise RemoteProtocolError(f"a client of uid {peer.uid}; this instance serves uid {os.getuid()}")
        session_id = wire.read_map(first.body, wire.HELLO_FIELDS)["session"]
        if len(session_id) != wire.SESSION_BYTES:
            raise RemoteProtocolError(f"a session of {len(session_id)} bytes; it has {wire.SESSION_BYTES}")
        known = self.router.sessions.get(session_id)
        if known is not None:  # it came back on a new route
            self._sessions.pop(known.route, None)
            self._to_clients.drop(known.route)
        session = self.router.hello(session_id, route)
        self._sessions[route] = session
        if peer is not None and peer.pid:
            self._sessions_of.setdefault(peer.pid, set()).add(session_id)
            if not self._watch.watch_process(peer.pid, self._client_died):
                self._client_died(peer.pid)
                return
        self._to_clients.put(route, self._welcome())
        self._serve(session, records[1:])

    def _welcome(self) -> Record:
        settings = self._settings
        body = wire.write_map(
            epoch=self.router.epoch,
            max_payload_bytes=settings.max_payload_bytes,
            window=settings.client_queue_limit,
            models=settings.models,
        )
        return Record(Kind.WELCOME, body=body)

    def _serve(self, session: Session, records: list[Record]) -> None:
        now = time.monotonic()
        for record in records:
            kind = record.kind
            if kind == Kind.REQUEST:
                if record.flags & Flag.BUDGET and record.deadline_ns:
                    deadline_ns = time.monotonic_ns() + record.deadline_ns
                    record = record._replace(deadline_ns=deadline_ns, flags=record.flags & ~Flag.BUDGET)
                refused = self.router.admit(session, record, now)
                if refused is not None:
                    self._to_clients.put(session.route, refused)
            elif kind == Kind.CANCEL:
                self._flag([self.router.cancel(session, record.request_id)])
            elif kind == Kind.CREDIT:
                entry = session.entries.get(record.request_id)
                if entry is not None and entry.worker is not None:
                    self._to_workers.put(entry.worker.route, record._replace(ticket=entry.ticket))
            elif kind == Kind.GOODBYE:
                self._leave(session.route, None)
            elif kind == Kind.HELLO:
                self._to_clients.put(session.route, self._welcome())
            else:
                raise RemoteProtocolError(f"a client sent kind {Kind(kind).name}")

    def _malformed_from(self, route: bytes, err: RemoteProtocolError) -> None:
        """An error reply, and the peer is dropped; the log hears of it at most once a second."""
        self._malformed += 1
        now = time.monotonic()
        if now >= self._log_after:
            self._log_after = now + 1.0
            log.warning("a peer was dropped: %s (%d such messages so far)", err, self._malformed)
        self._to_clients.put(route, wire.error_record(0, "protocol", str(err)))
        if route in self._sessions:
            self._leave(route, None)

    def _leave(self, route: bytes, why: str | None) -> None:
        session = self._sessions.pop(route, None)
        if session is None:
            return
        if why is not None:
            log.warning("client %s %s: %d requests cancelled", session.id.hex()[:8], why, len(session.entries))
        self._flag(self.router.leave(session))

    def _client_died(self, pid: int) -> None:
        for session_id in self._sessions_of.pop(pid, set()):
            session = self.router.sessions.get(session_id)
            if session is not None:
                self._to_clients.drop(session.route)
                self._leave(session.route, None)

    def _flag(self, running: list[Entry] | list[Entry | None]) -> None:
        """Tell workers, through their status pages, that nobody waits for these."""
        for entry in running:
            if entry is not None and (page := self._pages.get(entry.worker.replica)) is not None:
                page.cancel(entry.ticket)

    def _end(self, ended: list[Ended]) -> None:
        for session, record in ended:
            self._to_clients.put(session.route, record)

    # --- workers -------------------------------------------------------------------------------------------------

    def _read_back(self, limit: int = MAX_PASS) -> None:
        for _ in range(limit):
            message = self._receive(self._back, self._workers)
            if message is None:
                return
            route, head, frames = message
            worker = self._workers.get(route)
            try:
                if worker is None:
                    self._open(route, head, wire.decode(head.bytes, frames)[0])
                    continue
                for entry, record in self.router.answers(worker, wire.decode(head, frames), time.monotonic()):
                    answer = record._replace(request_id=entry.request_id, ticket=0)
                    self._to_clients.put(entry.session.route, answer)
            except RemoteProtocolError as err:
                log.error("worker %r: %s", worker.replica if worker else route, err)

    def _open(self, route: bytes, head: zmq.Frame, first: Record) -> None:
        """READY of a worker that the supervisor has named. Late answers of those that were given up end here too."""
        if first.kind != Kind.READY:
            return
        ready = wire.read_map(first.body, wire.READY_FIELDS)
        expected = self._expected.get(ready["replica"])
        peer = peer_of(head)
        if expected is None or expected.generation != ready["generation"] or not _is(peer, expected.pid):
            log.warning("READY from %s.%s, which is not expected: ignored", ready["replica"], ready["generation"])
            return
        replica, now = expected.replica, time.monotonic()
        previous = self._worker(replica)
        if previous is not None:  # the same process on a new connection: it has dropped what it held
            self._bury_one(previous, Cause("reconnected", counts=False), running=())
        worker = self.router.open(replica, expected.generation, route, ready["model"], ready["max_batch_size"], now)
        if worker is None:
            log.error("worker %s serves %r, this instance %s", replica, ready["model"], self.router.models)
            return
        self._workers[route] = worker
        self._pages[replica] = StatusPage(self._pages_fd, expected.slot)
        if not expected.accepting:
            self._drain(worker)
        self._watch.watch_process(expected.pid, self._process_died)
        self._to_workers.put(route, self._welcome())
        self._link.send(event="open", replica=replica, generation=expected.generation)

    def _worker(self, replica: str) -> Worker | None:
        return next((worker for worker in self._workers.values() if worker.replica == replica), None)

    def _drain(self, worker: Worker) -> None:
        self.router.drain(worker)
        self._draining.add(worker.replica)

    def _process_died(self, pid: int) -> None:
        for expected in self._expected.values():
            if expected.pid == pid and (worker := self._worker(expected.replica)) is not None:
                self._worker_died(worker)

    def _worker_died(self, worker: Worker) -> None:
        """Give it nothing more and wait for the supervisor's word on why, which decides what its requests become."""
        if worker.replica not in self._dying:
            self.router.drain(worker)
            self._dying[worker.replica] = (worker, time.monotonic())

    def _bury(self, now: float) -> None:
        for worker, since in list(self._dying.values()):
            if now - since > VERDICT_S:
                self._bury_one(worker, UNKNOWN_CAUSE)

    def _bury_one(self, worker: Worker, cause: Cause, running: tuple[int, ...] | None = None) -> None:
        # What it answered just before its death is already on the way: read it before deciding what to run again.
        self._read_back(limit=1_000_000)
        page = self._pages.pop(worker.replica)
        if running is None:
            running = page.running()
        page.close()
        self._workers.pop(worker.route, None)
        self._to_workers.drop(worker.route)
        self._dying.pop(worker.replica, None)
        self._draining.discard(worker.replica)
        held = len(worker.outstanding)
        ended = self.router.lost(worker, cause, running, time.monotonic())
        self._end(ended)
        log.info(
            "worker %s.%d %s: %d requests held, %d were running, %d ended with an error",
            worker.replica, worker.generation, cause.text, held, len(running), len(ended),
        )  # fmt: skip

    def _dispatch(self, now: float) -> None:
        for worker, entries in self.router.dispatch(now):
            self._to_workers.put_all(
                worker.route,
                [
                    Record(
                        Kind.REQUEST, request.flags, request.priority, entry.attempts, request.model,
                        request.request_id, entry.ticket, request.deadline_ns, request.rows, request.body, request.frames,
                    )
                    for entry in entries
                    for request in (entry.request,)
                ],
            )  # fmt: skip

    # --- the supervisor ------------------------------------------------------------------------------------------

    def _read_link(self) -> None:
        for message in self._link.receive():
            self.handle(message)

    def handle(self, message: Message) -> None:
        """One message of the supervisor."""
        match message.get("do"):
            case "workers":
                self._take_snapshot([Expected(**worker) for worker in message["workers"]])
            case "lost":
                worker = self._worker(message["replica"])
                if worker is not None and worker.generation == message["generation"]:
                    cause = Cause(message["cause"], message["counts"], message["convicts"])
                    self._bury_one(worker, cause, tuple(message["running"]))
            case "stats":
                self._link.send(event="stats", seq=message["seq"], **self._stats())
            case "drain":
                self.router.admitting = False
            case "stop":
                self._stop()

    def _stop(self) -> None:
        """Leave: what is unanswered gets an error, every client a GOODBYE."""
        unanswered = 0
        for session in list(self.router.sessions.values()):
            for request_id in list(session.entries):
                unanswered += 1
                error = WorkerLost("the instance was stopped before it was answered")
                self._to_clients.put(session.route, wire.error_record(request_id, error.code, str(error)))
            self._to_clients.put(session.route, Record(Kind.GOODBYE))
        self._to_clients.flush()
        self._link.send(event="stopped", unanswered=unanswered, **self._stats())
        self.finished = True

    def _take_snapshot(self, workers: list[Expected]) -> None:
        self._expected = {worker.replica: worker for worker in workers}
        for worker in list(self._workers.values()):
            expected = self._expected.get(worker.replica)
            if expected is None or expected.generation != worker.generation:
                self._bury_one(worker, UNKNOWN_CAUSE)
            elif not expected.accepting and worker.replica not in self._draining:
                self._drain(worker)

    def _report(self) -> None:
        """Tell the supervisor what it waits for: a worker is drained, everything is answered."""
        for replica in list(self._draining):
            worker = self._worker(replica)
            if worker is not None and not worker.outstanding:
                self._draining.discard(replica)
                self._link.send(event="drained", replica=replica, generation=worker.generation)
        if not self.router.admitting and not self._said_empty:
            waiting = self.router.num_queued + self.router.num_outstanding
            if not waiting and not self._to_clients.blocked:
                self._said_empty = True
                self._link.send(event="empty")
        if self._link.unsent:
            self._link.flush()

    def _stats(self) -> dict[str, Any]:
        router, counts = self.router, self.router.counts
        outstanding = {worker.replica: len(worker.outstanding) for worker in self._workers.values()}
        return {
            "queue": {
                "queued": router.num_queued,
                "outstanding": router.num_outstanding,
                "answered": counts.answered,
                "rejected": counts.rejected,
                "retried": counts.retried,
                "expired": counts.expired,
                "cancelled": counts.cancelled,
                "lost": counts.lost,
                "poisoned": counts.poisoned,
                "bytes": router.num_bytes,
                "clients": len(router.sessions),
                "malformed": self._malformed,
            },
            "workers": {
                replica: {"outstanding": outstanding.get(replica, 0), "answered": answered}
                for replica, answered in router.answered_by.items()
            },
        }


def _is(peer: Peer | None, pid: int) -> bool:
    """Whether the peer is that process; pid 0 comes from another pid namespace and cannot be compared."""
    return peer is not None and peer.uid == os.getuid() and peer.pid in (pid, 0)
