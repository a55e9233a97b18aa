"""The clients' side: who is connected, and what they send."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from orch import chunk, wire
from orch.errors import RemoteProtocolError, WorkerLost
from orch.wire import AnyRecord, Flag, Kind, Packed, Received, Record, timed
from orch_balancer.back import Back
from orch_balancer.entry import Session
from orch_balancer.outlet import MAX_OUTBOX_BYTES, Outlet, Route
from orch_balancer.peers import Watch
from orch_balancer.router import Router

log = logging.getLogger(__name__)

# A stream of malformed messages is logged no more often than this.
LOG_EVERY_S = 1.0
# Who speaks for many may leave so many times as much unread as others.
MANY = 16
MAX_DEADLINE_NS = 2**63 - 1
# Looked up once: they are asked of every record.
REQUEST, BUDGET = int(Kind.REQUEST), Flag.BUDGET


class Front:
    """Owns the sessions' routes and what is on its way to clients."""

    def __init__(self, router: Router, back: Back, watch: Watch, welcome: dict[str, Any], outlet: Outlet) -> None:
        self._router = router
        self._back = back
        self._watch = watch
        self._welcome = welcome
        self.outlet = outlet
        self._sessions: dict[Route, Session] = {}
        self._sessions_of: dict[int, set[bytes]] = {}  # session ids by pid
        self._pid_of: dict[bytes, int] = {}  # by session id
        self.num_malformed = 0
        self._log_after = 0.0

    def take(self, route: Route, head: bytes, frames: Sequence[Any]) -> None:
        """A message from a client."""
        session = self._sessions.get(route)
        try:
            if session is None:
                self._greet(route, wire.receive(head, frames))
            else:
                self._serve(session, wire.receive(head, frames))
        except RemoteProtocolError as err:
            self.malformed(route, err)

    def gone(self, route: Route) -> None:
        """A client's connection has ended."""
        self._leave(route, "is gone")

    def flush(self) -> None:
        """Send; whoever is gone or does not read is dropped."""
        for route in self.outlet.flush():
            self._leave(route, "is gone or does not read its answers")
            route.close()

    def dismiss(self) -> int:
        """The instance stops: an error for what is unanswered, GOODBYE for everyone. How many were unanswered."""
        unanswered = 0
        error = WorkerLost("the instance was stopped before it was answered")
        for session in self._sessions.values():
            for request_id in session.entries:
                unanswered += 1
                self.outlet.put(session.route, wire.error_record(request_id, error.code, str(error)))
            self.outlet.put(session.route, Record(Kind.GOODBYE))
        self.outlet.flush()
        return unanswered

    def _greet(self, route: Route, records: Sequence[Packed]) -> None:
        """An unknown route: HELLO opens a session; anything else is answered with our HELLO, which asks for it."""
        first, others = Received(*records[0]), records[1:]
        if first.kind != Kind.HELLO:
            if first.kind != Kind.GOODBYE:
                self.outlet.put(route, Record(Kind.HELLO))
            return
        peer = route.peer
        if peer is not None and peer.uid != os.getuid():
            raise RemoteProtocolError(f"a client of uid {peer.uid}; this instance serves uid {os.getuid()}")
        hello = wire.read_map(first.body, wire.HELLO_FIELDS)
        session_id = hello["session"]
        if len(session_id) != wire.SESSION_BYTES:
            raise RemoteProtocolError(f"a session of {len(session_id)} bytes; it has {wire.SESSION_BYTES}")
        known = self._router.sessions.get(session_id)
        if known is not None:  # it came back on a new route
            self._sessions.pop(known.route, None)
            self.outlet.drop(known.route)
            known.route.close()
        session = self._router.hello(session_id, route, hello["window"])
        if session.limit > self._router.limits.per_client:
            self.outlet.allow(route, MANY * MAX_OUTBOX_BYTES)
        session.maps = False
        self._router.leases.forget(session_id)  # it has begun anew, and uses nothing that it had
        self._sessions[route] = session
        if peer is not None and peer.pid:
            self._forget_pid(session_id)
            self._pid_of[session_id] = peer.pid
            self._sessions_of.setdefault(peer.pid, set()).add(session_id)
            if not self._watch.watch_process(peer.pid, self._client_died):
                self._client_died(peer.pid)
                return
        self._welcomes(session)
        self._serve(session, others)

    def _welcomes(self, session: Session) -> None:
        body = wire.write_map(**{**self._welcome, "window": session.limit})
        self.outlet.put(session.route, Record(Kind.WELCOME, body=body))

    def _serve(self, session: Session, records: Sequence[Packed]) -> None:
        requests: list[Packed] = []
        for packed in records:
            kind = packed[0]
            if kind == REQUEST:
                requests.append(on_our_clock(packed) if packed[1] & BUDGET else packed)
                continue
            self._admit(session, requests)
            requests = []
            record = Received(*packed)
            if kind == Kind.CANCEL:
                entry = self._router.cancel(session, record.request_id)
                if entry is not None:
                    self._back.flag([entry])
            elif kind == Kind.CREDIT:
                self._back.pass_credit(session.entries.get(record.request_id), record)
            elif kind == Kind.LEASE:
                self._lend(session, record)
            elif kind == Kind.RETURN:
                self._router.leases.give_back(session.id, chunk.read_numbers(record.body))
            elif kind == Kind.GOODBYE:
                self._router.leases.forget(session.id)
                self._leave(session.route, None)
                session.route.close()
                return
            elif kind == Kind.HELLO:
                self._welcomes(session)
            else:
                raise RemoteProtocolError(f"a client sent kind {Kind(kind).name}")
        if requests:
            self._admit(session, requests)

    def _admit(self, session: Session, requests: Sequence[Packed]) -> None:
        if requests:
            for refusal in self._router.admit(session, requests, time.monotonic()):
                self.outlet.put(session.route, refusal)

    def _lend(self, session: Session, record: AnyRecord) -> None:
        """A client has mapped the arena, and wants chunks: `rows` of so many bytes each, or just results there."""
        if not self._watch.watches(self._pid_of.get(session.id, 0)):
            return  # nobody would learn of its death, and so of the end of its leases
        session.maps = bool(self._router.leases.total)
        for num_bytes in chunk.read_numbers(record.body)[:1]:
            granted = self._router.leases.grant(session.id, num_bytes, record.rows)
            self.outlet.put(session.route, Record(Kind.GRANT, body=chunk.write_chunks(granted)))

    def malformed(self, route: Route, err: RemoteProtocolError) -> None:
        """An error reply, and the peer is dropped; the log hears of it at most once a second."""
        self.num_malformed += 1
        now = time.monotonic()
        if now >= self._log_after:
            self._log_after = now + LOG_EVERY_S
            log.warning("a peer was dropped: %s (%d such messages so far)", err, self.num_malformed)
        route.send([wire.pack_head([wire.error_record(0, "protocol", str(err))])])
        self._leave(route, None)
        route.close()

    def _leave(self, route: Route, why: str | None) -> None:
        session = self._sessions.pop(route, None)
        if session is None:
            return
        self.outlet.drop(route)
        if why is not None:
            log.warning("client %s %s: %d requests cancelled", session.id.hex()[:8], why, len(session.entries))
        self._back.flag(self._router.leave(session))
        if not self._router.leases.holds(session.id):  # else its process may still write there, until it dies
            self._forget_pid(session.id)

    def _forget_pid(self, session_id: bytes) -> None:
        pid = self._pid_of.pop(session_id, 0)
        session_ids = self._sessions_of.get(pid)
        if session_ids is not None:
            session_ids.discard(session_id)
            if not session_ids:
                del self._sessions_of[pid]
                self._watch.forget_process(pid, self._client_died)

    def _client_died(self, pid: int) -> None:
        for session_id in self._sessions_of.pop(pid, set()):
            self._pid_of.pop(session_id, None)
            self._router.leases.forget(session_id)
            session = self._router.sessions.get(session_id)
            if session is not None:
                self._leave(session.route, None)
                session.route.close()


def on_our_clock(request: Packed) -> Packed:
    """A request from another host brings what remains of its time, because clocks differ; 0 or less: nothing."""
    kind, flags, priority, attempt, model, request_id, ticket, budget_ns, rows, raw, frames = request
    if not budget_ns:
        return request
    # At least 1: 0 would mean no deadline at all. At most what the header holds.
    deadline_ns = min(max(1, time.monotonic_ns() + budget_ns), MAX_DEADLINE_NS)
    flags &= ~BUDGET
    raw = timed(raw, flags, deadline_ns)
    return kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, rows, raw, frames
