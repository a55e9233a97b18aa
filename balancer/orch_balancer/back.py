"""The workers' side: who is open for work, what they answer, and what becomes of it when they die."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from orch import chunk, wire
from orch.errors import RemoteProtocolError
from orch.page import StatusPage
from orch.wire import AnyRecord, Kind, Piece, Received, Record, addressed, as_piece, changed
from orch_balancer.entry import Entry
from orch_balancer.leases import Lease
from orch_balancer.outlet import Outlet, Route
from orch_balancer.peers import Peer, Watch
from orch_balancer.pool import Worker
from orch_balancer.router import Assignment, Router
from orch_balancer.verdict import Cause

log = logging.getLogger(__name__)

# How long a dead worker's requests wait for the supervisor to say why it died.
VERDICT_S = 0.25
RETURN = int(Kind.RETURN)  # to look a member up in its enum costs as much as the rest of a comparison
UNKNOWN_CAUSE = Cause("died", counts=True, convicts=False)


@dataclass(frozen=True, slots=True)
class Expected:
    """A worker process that the supervisor has vouched for. weight: its speed as a share of the fastest kind's."""

    replica: str
    generation: int
    pid: int
    slot: int
    accepting: bool
    weight: float = 1.0


class Back:
    """Owns the workers' routes and pages. What it has for clients is put into `to_clients`.

    `opened` is told of each READY, `gave_up` of each worker that cannot be reached although its process lives.
    """

    def __init__(
        self,
        router: Router,
        watch: Watch,
        pages_fd: int,
        welcome: dict[str, Any],
        *,
        to_clients: Outlet,
        opened: Callable[[Expected], None],
        gave_up: Callable[[Worker], None],
    ) -> None:
        self._router = router
        self._watch = watch
        self._pages_fd = pages_fd
        self._welcome = Record(Kind.WELCOME, body=wire.write_map(**welcome))
        self._to_clients = to_clients
        self._opened = opened
        self._gave_up = gave_up
        self.outlet = Outlet()
        self._workers: dict[Route, Worker] = {}
        self._of_replica: dict[str, Worker] = {}  # the same
        self._pages: dict[str, StatusPage] = {}  # by replica, of open workers
        self._expected: dict[str, Expected] = {}
        self._dying: dict[str, tuple[Worker, float]] = {}  # by replica: dead since, without a cause so far
        self._unreachable: set[str] = set()  # of the dying, those whose process lives as far as is known
        self._draining: set[str] = set()

    # --- messages ------------------------------------------------------------------------------------------------

    def take(self, route: Route, head: bytes, frames: Sequence[Any]) -> None:
        """A message from a worker."""
        worker = self._workers.get(route)
        try:
            if worker is None:
                self._open(route, wire.decode(head, frames)[0])
                return
            records = wire.receive(head, frames)
            if records[0][0] == RETURN:  # its kind; always alone
                self._router.leases.let_go(worker.process, chunk.read_numbers(Received(*records[0]).body))
                return
            self._to_clients.put_answers(self._router.answers(worker, records, time.monotonic()))
        except RemoteProtocolError as err:
            self.malformed(route, err)

    def malformed(self, route: Route, err: RemoteProtocolError) -> None:
        """It is logged; a worker that cannot be understood will be found to be stuck."""
        worker = self._workers.get(route)
        log.error("worker %r: %s", worker.replica if worker else None, err)

    def gone(self, route: Route) -> None:
        """A worker's connection has ended: it is dying, or comes back on another."""
        worker = self._workers.get(route)
        if worker is not None and worker.replica not in self._dying:
            self._unreachable.add(worker.replica)
            self._died(worker)

    def send(self, assignments: Iterable[Assignment]) -> None:
        """Give requests to workers."""
        for worker, entries in assignments:
            granted: list[Piece] = []
            pieces: list[Piece] = []
            for entry in entries:
                if entry.result is not None:
                    granted.append(_granted(entry, entry.result))
                pieces.append((addressed(entry.raw, entry.attempts, entry.ticket), entry.frames))
            self.outlet.put_all(worker.route, granted + pieces if granted else pieces)

    def flush(self) -> None:
        """Send; a worker that does not read is dying."""
        for route in self.outlet.flush():
            self.gone(route)

    def flag(self, running: Iterable[Entry]) -> None:
        """Tell workers, through their status pages, that nobody waits for these."""
        for entry in running:
            page = self._pages.get(entry.worker.replica)
            if page is not None:
                for ticket in entry.tickets:
                    page.cancel(ticket)

    def pass_credit(self, entry: Entry | None, credit: AnyRecord) -> None:
        """A client has read parts of a stream: its worker may send more."""
        if entry is not None and entry.worker is not None:
            self.outlet.put(entry.worker.route, changed(credit, ticket=entry.ticket))

    # --- lives ---------------------------------------------------------------------------------------------------

    def expect(self, workers: list[Expected]) -> None:
        """The supervisor's whole set: who may open, and who is to be drained."""
        self._expected = {worker.replica: worker for worker in workers}
        for worker in list(self._workers.values()):
            expected = self._expected.get(worker.replica)
            if expected is None or expected.generation != worker.generation:
                self._bury(worker, UNKNOWN_CAUSE, is_dead=True)
                continue
            if expected.weight != worker.weight:
                self._router.weigh(worker, expected.weight)
            if worker.accepting and not expected.accepting:
                self._drain(worker)
        for process in self._router.leases.processes:  # of workers that were given up, and may have lived on
            expected = self._expected.get(process[0])
            if expected is None or expected.generation != process[1]:
                self._router.leases.leave_all(process)

    def lost(self, replica: str, generation: int, cause: Cause, running: tuple[int, ...]) -> None:
        """The supervisor says that a worker died, and why."""
        worker = self._of_replica.get(replica)
        if worker is not None and worker.generation == generation:
            self._bury(worker, cause, running, is_dead=True)

    def tick(self, now: float) -> None:
        """Decide without the supervisor's word where it did not come."""
        for worker, since in list(self._dying.values()):
            if now - since >= VERDICT_S:
                lives = worker.replica in self._unreachable
                self._bury(worker, UNKNOWN_CAUSE, is_dead=not lives)
                if lives and worker.replica not in self._of_replica:  # else it has just come back by itself
                    self._gave_up(worker)

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        if not self._dying:
            return None
        return min((since + VERDICT_S for _, since in self._dying.values()), default=None)

    @property
    def is_draining(self) -> bool:
        """Whether `drained` may have something to say."""
        return bool(self._draining)

    def drained(self) -> list[Worker]:
        """Workers asked to drain that have nothing left; each is given once."""
        if not self._draining:
            return []
        empty = [worker for each in self._draining if not (worker := self._of_replica[each]).outstanding]
        self._draining.difference_update(worker.replica for worker in empty)
        return empty

    def loads(self, now: float) -> dict[str, dict[str, float]]:
        """By replica: requests outstanding, seconds since it has answered any of them, all it has ever answered."""
        loads: dict[str, dict[str, float]] = {
            replica: {"outstanding": 0, "busy_s": 0.0, "answered": answered}
            for replica, answered in self._router.answered_by.items()
        }
        for worker in self._workers.values():
            if worker.outstanding:
                load = loads[worker.replica]
                load["outstanding"], load["busy_s"] = len(worker.outstanding), now - worker.began_at
        return loads

    def _open(self, route: Route, first: Record) -> None:
        """READY of a worker that the supervisor has named. Late answers of those that were given up end here too."""
        if first.kind != Kind.READY:
            return
        ready = wire.read_map(first.body, wire.READY_FIELDS)
        expected = self._expected.get(ready["replica"])
        if expected is None or expected.generation != ready["generation"] or not _is(route.peer, expected.pid):
            log.warning("READY from %s.%s, which is not expected: ignored", ready["replica"], ready["generation"])
            return
        replica, now = expected.replica, time.monotonic()
        kept = [number for number in ready["kept"] if type(number) is int]
        previous = self._of_replica.get(replica)
        if previous is not None:  # the same process on a new connection: it has dropped what it held
            self._bury(previous, Cause("reconnected", counts=False), running=())
        self._router.leases.leave_all((replica, expected.generation), but=kept)
        worker = self._router.open(
            replica, expected.generation, route, ready["model"], ready["max_batch_size"], now, expected.weight
        )
        if worker is None:
            log.error("worker %s serves %r, this instance %s", replica, ready["model"], self._router.models)
            return
        self._workers[route] = self._of_replica[replica] = worker
        self._pages[replica] = StatusPage(self._pages_fd, expected.slot)
        if not expected.accepting:
            self._drain(worker)
        self._watch.watch_process(expected.pid, self._process_died)
        self.outlet.put(route, self._welcome)
        self._opened(expected)

    def _drain(self, worker: Worker) -> None:
        self._router.drain(worker)
        self._draining.add(worker.replica)

    def _process_died(self, pid: int) -> None:
        for expected in self._expected.values():
            if expected.pid == pid and (worker := self._of_replica.get(expected.replica)) is not None:
                self._unreachable.discard(worker.replica)
                self._died(worker)

    def _died(self, worker: Worker) -> None:
        """Give it nothing more and wait for the supervisor's word on why, which decides what its requests become."""
        if worker.replica not in self._dying:
            self._router.drain(worker)
            self._dying[worker.replica] = (worker, time.monotonic())

    def _bury(
        self, worker: Worker, cause: Cause, running: tuple[int, ...] | None = None, *, is_dead: bool = False
    ) -> None:
        # What it answered just before its death is already on the way: read it before deciding what to run again.
        worker.route.read_all()
        page = self._pages.pop(worker.replica)
        if running is None:
            running = page.running()
        page.close()
        del self._workers[worker.route], self._of_replica[worker.replica]
        self.outlet.drop(worker.route)
        worker.route.close()
        self._dying.pop(worker.replica, None)
        self._unreachable.discard(worker.replica)
        self._draining.discard(worker.replica)
        held = len(worker.outstanding)
        if is_dead:
            self._router.leases.leave_all(worker.process)
        ended = self._router.lost(worker, cause, running, time.monotonic())
        for session, record in ended:
            self._to_clients.put(session.route, record)
        if held:
            log.warning(
                "%s.%d %s with %d requests, %d of them running: %d ended with an error, the others run again",
                worker.replica, worker.generation, cause.text, held, len(running), len(ended),
            )  # fmt: skip


def _granted(entry: Entry, result: Lease) -> Piece:
    """The chunk that the worker may put the request's result into."""
    return as_piece(Record(Kind.GRANT, ticket=entry.ticket, body=chunk.write_chunks([result.chunk])))


def _is(peer: Peer | None, pid: int) -> bool:
    """Whether the peer is that process; pid 0 comes from another pid namespace and cannot be compared."""
    return peer is not None and peer.uid == os.getuid() and peer.pid in (pid, 0)
