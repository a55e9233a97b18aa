"""The hot loop: one synchronous pass after another over everybody's connections.

A pass reads a bounded number of messages, lets the router decide, and sends each peer one packed message. Bodies are
never decoded and large frames never copied.
"""

from __future__ import annotations

import gc
import math
import secrets
import time
from dataclasses import dataclass
from typing import Any

import zmq

from orch import wire
from orch.errors import Exit
from orch.link import Link, Message
from orch_balancer.admission import Limits
from orch_balancer.back import Back, Expected
from orch_balancer.front import Front
from orch_balancer.handout import Handout
from orch_balancer.local import Listener
from orch_balancer.outlet import Outlet
from orch_balancer.peers import Watch
from orch_balancer.pool import Worker
from orch_balancer.remote import Remote
from orch_balancer.router import Router
from orch_balancer.verdict import Cause

# How often a remote peer that does not read is tried again while something waits for it.
RETRY_S = 0.005
# Requests and answers taken in before they are passed on, if no message brings more: the workers and clients that have
# nothing to do need not wait until everybody's were read.
PORTION = 64
NEVER = math.inf
# A deadline may lie centuries ahead; a poll's timeout is a C int of milliseconds.
MAX_WAIT_S = 3600.0
# How long the last answers may take to be read.
LINGER_S = 1.0
UNIX = "unix://"
# At least so long between two collections of what refers to itself, which are made when nothing is admitted.
COLLECT_S = 60.0
# A balancer that was started less than this ago may have been started in place of one that fell, whose clients have
# not come back yet with what was accepted: it does not call itself empty.
RESEND_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the supervisor tells a new balancer. front: endpoints; back: a path."""

    front: list[str]
    back: str
    models: list[str]
    queue_limit: int
    queue_bytes: int
    client_queue_limit: int
    max_attempts: int
    max_payload_bytes: int
    arena: str = ""  # the socket where its descriptor is handed out
    shared_memory_bytes: int = 0
    pinned_memory: bool = False  # workers register it with their GPUs


class Broker:
    """Owns the loop and the link to the supervisor. The router owns requests, Front and Back their peers."""

    def __init__(self, settings: Settings, link: Link, pages_fd: int) -> None:
        self._link = link
        limits = Limits(settings.queue_limit, settings.queue_bytes, settings.client_queue_limit, settings.max_attempts)
        self._watch = Watch()
        epoch = secrets.randbits(32) or 1
        handout = self._handout = Handout(
            settings.arena, settings.shared_memory_bytes, epoch, self._watch, pinned=settings.pinned_memory
        )
        router = self._router = Router(settings.models, limits, epoch, handout.num_bytes)
        self._watch.add(link.fileno(), self._read_link)
        welcome = {
            "epoch": router.epoch,
            "max_payload_bytes": settings.max_payload_bytes,
            "window": settings.client_queue_limit,
            "models": settings.models,
            "arena": handout.path,
        }
        self._to_clients = Outlet()
        self._back = Back(
            router,
            self._watch,
            pages_fd,
            welcome,
            to_clients=self._to_clients,
            opened=self._opened,
            gave_up=self._gave_up,
        )
        self._front = Front(router, self._back, self._watch, welcome, self._to_clients)
        # A backstop for what the SDK refuses to send.
        max_frame_bytes = 2 * settings.max_payload_bytes + wire.MAX_INLINE_BYTES
        self._listeners = [Listener(settings.back, max_frame_bytes, self._watch, self._back)]
        remote = [endpoint for endpoint in settings.front if not endpoint.startswith(UNIX)]
        for endpoint in set(settings.front) - set(remote):
            path = endpoint.removeprefix(UNIX)
            self._listeners.append(Listener(path, max_frame_bytes, self._watch, self._front))
        self._remote = Remote(remote, settings.max_payload_bytes, self._front) if remote else None
        self._poller = zmq.Poller()
        self._enough = 0  # requests and answers, of all that were ever taken in
        if self._remote is not None:
            for readable in (self._remote.socket, self._watch.fileno()):
                self._poller.register(readable, zmq.POLLIN)
        self._said_empty = False
        self._resent_at = time.monotonic() + RESEND_GRACE_S
        self._finished = False
        self._collect_at = 0.0
        self._due_at = NEVER  # when something happens by itself, as far as was known before the last wait

    def run(self) -> int:
        """Serve until the supervisor says stop (OK) or is gone (ORPHANED)."""
        while not self._finished and not self._link.closed:
            self._wait(self._timeout_s())
            self._pass(time.monotonic())
        until = time.monotonic() + LINGER_S
        while self._finished and self._to_clients.blocked and time.monotonic() < until:
            self._wait(RETRY_S)
        if self._remote is not None:
            self._remote.close(lingers=self._finished)
        return Exit.OK if self._finished else Exit.ORPHANED

    def _pass(self, now: float) -> None:
        """What follows from what was taken in."""
        router = self._router
        if now >= self._due_at:
            self._back.tick(now)
            for session, record in router.expire(now):
                self._to_clients.put(session.route, record)
        # Who waits comes first, and then what is learned of it.
        if self._to_clients.pending:
            self._front.flush()
        self._back.send(router.dispatch(now))
        self._back.flush()
        router.observe()
        if self._handout.num_bytes:
            self._handout.tend(router.leases.num_leased)
        if self._back.is_draining or not router.admitting or self._link.unsent:
            self._report()
        if now >= self._collect_at and not router.num_entries:
            self._collect_at = now + COLLECT_S
            gc.collect()

    def _wait(self, timeout_s: float | None) -> None:
        """Sleep until something is to be done, and take in a portion of what has arrived."""
        remote, counts = self._remote, self._router.counts
        self._enough = counts.admitted + counts.answered + PORTION
        if remote is None:
            self._watch.wait(timeout_s, self._is_enough)
            return
        ready = dict(self._poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)))
        if self._watch.is_ready or self._watch.fileno() in ready:
            self._watch.wait(0, self._is_enough)
        if remote.socket in ready:
            remote.read()
        if remote.blocked:
            remote.retry()

    def _is_enough(self) -> bool:
        counts = self._router.counts
        return counts.admitted + counts.answered >= self._enough

    def _timeout_s(self) -> float | None:
        """Until the next thing that happens by itself; None: nothing does."""
        back_at, router_at = self._back.next_deadline(), self._router.next_deadline()
        due_at = self._due_at = min(NEVER if back_at is None else back_at, NEVER if router_at is None else router_at)
        if self._watch.is_ready:
            return 0.0
        if self._remote is not None and self._remote.blocked:
            return RETRY_S
        if not self._router.admitting and time.monotonic() < self._resent_at:
            due_at = min(due_at, self._resent_at)
        if due_at == NEVER:
            return None
        # Rounded up: 1 ms late beats a busy loop.
        return min(MAX_WAIT_S, max(0.0, due_at - time.monotonic())) + 0.001

    # --- the supervisor ------------------------------------------------------------------------------------------

    def _read_link(self) -> None:
        for message in self._link.receive():
            self.handle(message)

    def handle(self, message: Message) -> None:
        """One message of the supervisor."""
        match message.get("do"):
            case "workers":
                self._back.expect([Expected(**worker) for worker in message["workers"]])
            case "lost":
                cause = Cause(message["cause"], message["counts"], message["convicts"], message["group"])
                self._back.lost(message["replica"], message["generation"], cause, tuple(message["running"]))
            case "stats":
                self._link.send(event="stats", seq=message["seq"], **self._stats())
            case "drain":
                self._router.admitting = False
            case "stop":
                self._link.send(event="stopped", unanswered=self._front.dismiss(), **self._stats())
                self._finished = True

    def _opened(self, worker: Expected) -> None:
        self._link.send(event="open", replica=worker.replica, generation=worker.generation)

    def _gave_up(self, worker: Worker) -> None:
        self._link.send(event="gave_up", replica=worker.replica, generation=worker.generation)

    def _report(self) -> None:
        """Tell the supervisor what it waits for: a worker is drained, everything is answered."""
        for worker in self._back.drained():
            self._link.send(event="drained", replica=worker.replica, generation=worker.generation)
        if not self._router.admitting and not self._said_empty and time.monotonic() >= self._resent_at:
            waiting = self._router.num_queued + self._router.num_outstanding
            if not waiting and not self._to_clients.blocked:
                self._said_empty = True
                self._link.send(event="empty")
        if self._link.unsent:
            self._link.flush()

    def _stats(self) -> dict[str, Any]:
        router, counts = self._router, self._router.counts
        return {
            "queue": {
                "queued": router.num_queued,
                "outstanding": router.num_outstanding,
                "by_priority": router.queued_by_priority,
                "answered": counts.answered,
                "failed": counts.failed,
                "rejected": counts.rejected,
                "retried": counts.retried,
                "expired": counts.expired,
                "cancelled": counts.cancelled,
                "lost": counts.lost,
                "poisoned": counts.poisoned,
                "bytes": router.num_bytes,
                "clients": len(router.sessions),
                "malformed": self._front.num_malformed,
            },
            "arena": {
                "bytes": router.leases.total,
                "leased_bytes": router.leases.num_leased,
                "requests": router.leases.num_requests,
                "results": router.leases.num_results,
            },
            "workers": self._back.loads(time.monotonic()),
            **router.figures.told(),
        }
