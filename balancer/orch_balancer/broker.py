"""The hot loop: one synchronous pass after another over two ROUTER sockets.

A pass reads a bounded number of messages from each side, lets the router decide, and sends each peer one packed
message. Bodies are never decoded and large frames never copied.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import zmq

from orch.errors import Exit
from orch.link import Link, Message
from orch_balancer.back import Back, Expected
from orch_balancer.front import Front
from orch_balancer.handout import Handout
from orch_balancer.peers import Watch
from orch_balancer.pool import Worker
from orch_balancer.router import Cause, Limits, Router
from orch_balancer.sockets import LINGER_MS, MAX_PASS, bind

# Messages that libzmq takes from one peer before it is our turn: with the bound on a pass, what a flood can pile up.
FRONT_RCVHWM, BACK_RCVHWM = 64, 1_000
# How often a peer that does not read is tried again while something waits for it.
RETRY_MS = 5
# A deadline may lie centuries ahead; a poll's timeout is a C int of milliseconds.
MAX_WAIT_S = 3600.0
# A balancer that was started less than this ago may have been started in place of one that fell, whose clients have
# not come back yet with what was accepted: it does not call itself empty.
RESEND_GRACE_S = 1.0


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
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        front = bind(self._context, settings.front, FRONT_RCVHWM, settings.max_payload_bytes)
        back = bind(self._context, [settings.back], BACK_RCVHWM, settings.max_payload_bytes)
        self._watch.add(link.fileno(), self._read_link)
        welcome = {
            "epoch": router.epoch,
            "max_payload_bytes": settings.max_payload_bytes,
            "window": settings.client_queue_limit,
            "models": settings.models,
            "arena": handout.path,
        }
        self._back = Back(
            back,
            router,
            self._watch,
            pages_fd,
            welcome,
            answer=self._answer,
            opened=self._opened,
            gave_up=self._gave_up,
        )
        self._front = Front(front, router, self._back, self._watch, welcome)
        self._poller = zmq.Poller()
        self._readers = {back: self._back.read, front: self._front.read}
        for readable in (back, front, self._watch.fileno()):
            self._poller.register(readable, zmq.POLLIN)
        self._said_empty = False
        self._resent_at = time.monotonic() + RESEND_GRACE_S
        self._finished = False

    def run(self) -> int:
        """Serve until the supervisor says stop (OK) or is gone (ORPHANED)."""
        while not self._finished and not self._link.closed:
            self._read(self._poller.poll(self._timeout_ms()))
            now = time.monotonic()
            self._back.tick(now)
            for session, record in self._router.expire(now):
                self._answer(session.route, record)
            self._back.send(self._router.dispatch(now))
            self._back.flush()
            self._front.flush()
            self._handout.tend(self._router.leases.num_leased)
            self._report()
        self._context.destroy(linger=LINGER_MS if self._finished else 0)
        return Exit.OK if self._finished else Exit.ORPHANED

    def _read(self, readable: list[tuple[Any, int]]) -> None:
        """Only what has something. The watch comes first: who is gone is not to be given what is read next."""
        named = dict(readable)
        if self._watch.fileno() in named:
            self._watch.dispatch()
        # To look for a second message costs as much as to poll again, and while next to nothing is on its way there
        # is none; under load, what is read in one pass is packed into one message.
        limit = MAX_PASS if self._router.num_entries > 1 else 1
        for socket, read in self._readers.items():
            if socket in named:
                read(limit)

    def _timeout_ms(self) -> int | None:
        """Until the next thing that happens by itself; None: nothing does."""
        if self._front.outlet.blocked or self._back.outlet.blocked:
            return RETRY_MS
        times = [at for at in (self._back.next_deadline(), self._router.next_deadline()) if at is not None]
        now = time.monotonic()
        if not self._router.admitting and now < self._resent_at:
            times.append(self._resent_at)
        if not times:
            return None
        wait_s = min(MAX_WAIT_S, max(0.0, min(times) - now))
        return int(wait_s * 1000) + 1  # rounded up: 1 ms late beats a busy loop

    def _answer(self, route: bytes, record: Any) -> None:
        self._front.outlet.put(route, record)

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
            if not waiting and not self._front.outlet.blocked:
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
                "answered": counts.answered,
                "rejected": counts.rejected,
                "retried": counts.retried,
                "expired": counts.expired,
                "cancelled": counts.cancelled,
                "lost": counts.lost,
                "poisoned": counts.poisoned,
                "bytes": router.num_bytes,
                "clients": len(router.sessions),
                "malformed": self._front.malformed,
            },
            "arena": {
                "bytes": router.leases.total,
                "leased_bytes": router.leases.num_leased,
                "requests": router.leases.num_requests,
                "results": router.leases.num_results,
            },
            "workers": self._back.loads(time.monotonic()),
        }
