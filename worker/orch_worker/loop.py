"""The worker's loop: receive, batch, run, answer the batch in one message.

Short batches are run by the thread that does the rest: what arrives meanwhile waits in the socket. Beside long ones
another thread does it.
"""

from __future__ import annotations

import gc
import logging
import queue
import signal
import sys
import threading
import time
from collections import deque
from typing import Any

from orch import chunk, wire
from orch.errors import DeadlineExceeded, Exit, ModelError, RequestError
from orch.link import Link
from orch.page import NUM_CANCELLED, Phase, StatusPage
from orch.wire import Flag, Kind, Record
from orch_worker.batching import Batcher, Item
from orch_worker.connection import Connection
from orch_worker.engine import DeviceLost, Engine
from orch_worker.shared import Shared
from orch_worker.target import describe
from orch_worker.work import Batch, Work, failed, is_unwanted

log = logging.getLogger(__name__)

# A stream whose reader grants no credit for this long is ended: it would hold the whole worker.
STALL_S = 60.0
CREDIT_POLL_S = 1.0
# From this mean time of a batch on, while full batches wait, the rest of the work is done beside it, until the mean
# falls below the second. It costs two hand-overs between threads, 0.1 ms, and saves reading, unpacking and sending.
OVERLAP_S, SHORT_S = 0.004, 0.002
# So many batches in a row for which the model had to wait, and the other thread brings nothing.
MAX_LATE = 8
# How long a model that holds the interpreter's lock keeps it from the other thread meanwhile.
SWITCH_S = 0.0005
LOOK_S = 1.0
# While the model keeps what it was given, it is looked at this often whether it still does.
KEPT_S = 0.25
# For every record: to look a member up in its enum costs as much as the rest of a comparison.
REQUEST, GRANT, STREAM, BUNDLE = int(Kind.REQUEST), int(Kind.GRANT), Flag.STREAM, Flag.BUNDLE
# A NamedTuple's own constructor is a Python function, and takes three times as long.
new_tuple = tuple.__new__


class Loop:
    """Owns the batcher, and what the balancer has said besides."""

    def __init__(
        self, path: str, ready: dict[str, Any], engine: Engine, batcher: Batcher, page: StatusPage, link: Link
    ) -> None:
        self._ready = ready
        self._batcher = batcher
        self._page = page
        self._link = link
        self._timed = False  # a request that waits may have a deadline
        self._cancelled: dict[int, None] = {}  # in order of arrival; no more than the page could tell at once
        self._credit: dict[int, int] = {}
        self._shared = Shared()
        self._work = Work(engine, page, self._shared)
        self._failure: BaseException | None = None
        self._stopping = False
        self._connection = Connection(path, link)
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, *_: object) -> None:
        self._stopping = True
        self._connection.wake()  # the other thread may have looked already

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until SIGTERM (OK), the supervisor's end (ORPHANED) or the device's (DEVICE_LOST)."""
        self._page.enter(Phase.IDLE)
        # The model and its libraries stay: the collector need not go through all they hold again and again.
        gc.collect()
        gc.freeze()
        try:
            while not self._ends:
                self._turn()
        except DeviceLost:
            self._connection.close()
            return Exit.DEVICE_LOST
        self._page.enter(Phase.STOPPING)
        return Exit.OK if self._stopping else Exit.ORPHANED

    @property
    def _ends(self) -> bool:
        return self._stopping or self._link.closed

    def _turn(self) -> None:
        """One batch after another, all in this thread: nothing is quicker for short ones."""
        batcher = self._batcher
        self._take_in(batcher.wait_s(time.monotonic()))
        if batcher.wait_s(time.monotonic()) != 0.0:
            return
        if batcher.cost.mean_s >= OVERLAP_S and batcher.is_full and not batcher.next_is_alone:
            self._overlap()
            return
        batch, requests = Batch(batcher.oldest_at), batcher.take()
        if requests[0].flags & STREAM:
            self._stream(requests[0])
            return
        self._work.unpack(requests, batch)
        self._work.run(batch)
        self._finish(batch)
        self._page.end_batch()

    def _take_in(self, wait_s: float | None) -> None:
        """What has arrived, after waiting for it; None: for as long as it takes."""
        connection = self._connection
        if connection.is_lost:
            self._connect()
            if connection.is_lost:
                return
            wait_s = None
        shared = self._shared
        if shared.kept and wait_s != 0.0:
            wait_s = KEPT_S if wait_s is None else min(wait_s, KEPT_S)
        # The poll comes first: to try to read where nothing is costs more.
        if connection.wait(wait_s):
            self._accept(connection.read())
            if connection.is_lost:
                self._batcher.clear()  # nobody waits for it any more
                return
        if shared.kept:
            self._let_go()
        cancelled = self._page.newly_cancelled()
        if cancelled or self._cancelled or self._timed:
            self._drop_unwanted(cancelled)

    def _finish(self, batch: Batch) -> None:
        if batch.lost is not None:
            raise batch.lost
        self._work.finish(batch)
        self._connection.send(self._shared.end(batch.answers))
        self._batcher.ran(batch.num_rows, batch.took_s, time.monotonic())
        if batch.sent is not None:
            batch.sent.set()

    # --- batches that take their time ----------------------------------------------------------------------------

    def _overlap(self) -> None:
        """Run the model in this thread, and do everything else in another meanwhile: the model need not wait for it.

        Until batches are short again, or the model waits for them, or one must be run otherwise. What is ours belongs
        to the other thread till then.
        """
        given: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        finished: deque[Batch] = deque()
        feeder = threading.Thread(target=self._feed, args=(given, finished), name="orch-feed", daemon=True)
        interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        feeder.start()
        while (batch := given.get()) is not None:
            try:
                self._work.run(batch)
                self._page.end_batch()
            except DeviceLost as err:
                batch.lost = err
            sent = batch.sent
            finished.append(batch)
            self._connection.wake()
            del batch  # nothing of ours refers to what the model has returned
            while sent is not None and not sent.wait(LOOK_S) and feeder.is_alive():
                pass
        feeder.join()
        sys.setswitchinterval(interval_s)
        if self._failure is not None:
            raise self._failure

    def _feed(self, given: queue.SimpleQueue[Batch | None], finished: deque[Batch]) -> None:
        """The other thread: it gives the model a batch, then a full one ahead, and answers what is finished."""
        num_given = num_late = 0
        try:
            while True:
                while finished:
                    num_given -= 1
                    self._finish(finished.popleft())
                is_over = num_late == MAX_LATE or self._batcher.cost.mean_s < SHORT_S
                if is_over or self._ends or self._batcher.next_is_alone:
                    if not num_given:
                        return
                elif self._is_due(num_given):
                    num_late = 0 if num_given else num_late + 1
                    batch = Batch(self._batcher.oldest_at)
                    self._work.unpack(self._batcher.take(), batch)
                    given.put(batch)
                    del batch  # nothing here refers to what it holds, once it is answered
                    num_given += 1
                    continue
                if num_given and self._connection.is_lost:
                    self._connection.close()  # what runs is void, and was read from memory that must stay until then
                    self._connection.wait(None)
                else:
                    self._take_in(None if num_given else self._batcher.wait_s(time.monotonic()))
        except BaseException as err:  # noqa: BLE001  it ends the worker, which is the other thread's to do
            self._failure = err
        finally:
            given.put(None)

    def _is_due(self, num_given: int) -> bool:
        """Whether the model is to be given the next batch: when it has none, or one more that cannot grow."""
        if not num_given:
            return self._batcher.wait_s(time.monotonic()) == 0.0
        return num_given == 1 and self._batcher.is_full

    # --- the balancer's side ------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Begin anew: what an earlier life of the balancer sent is void."""
        self._batcher.clear()
        self._timed = False
        self._cancelled.clear()
        self._shared.forget()
        body = wire.write_map(**self._ready, kept=list(self._shared.kept))
        self._connection.open(Record(Kind.READY, body=body))

    def _accept(self, records: list[Record]) -> None:
        now = time.monotonic()
        arrived: list[Item] = []
        for record in records:
            kind, flags, _, _, _, _, _, deadline_ns, rows, _, _ = record
            if kind == REQUEST:
                arrived.append(new_tuple(Item, (record, rows, flags & STREAM != 0, now, flags & BUNDLE != 0)))
                if deadline_ns:
                    self._timed = True
            elif kind == GRANT:
                self._shared.grant(record.ticket, chunk.read_chunks(record.body))
            elif kind == Kind.CREDIT:
                if record.ticket in self._credit:
                    self._credit[record.ticket] += rows
            elif kind == Kind.WELCOME:
                welcome = wire.read_map(record.body, wire.WELCOME_FIELDS)
                self._work.max_payload_bytes = welcome["max_payload_bytes"]
                self._map(welcome["arena"], welcome["epoch"])
        if arrived:
            self._batcher.add(arrived, now)

    def _map(self, path: str, epoch: int) -> None:
        try:
            self._shared.open(path, epoch)
        except OSError as err:
            # What comes over this connection could not be read. A balancer that has just fallen may have sent it.
            log.error("the shared memory at %s cannot be mapped: %s", path, err)
            self._connection.close()

    def _let_go(self) -> None:
        """Give back what the model does not keep any more."""
        if numbers := self._shared.let_go():
            self._connection.send([Record(Kind.RETURN, body=chunk.write_numbers(numbers))])

    def _drop_unwanted(self, newly_cancelled: list[int]) -> None:
        """Answer, without running them, requests that were cancelled or have missed their deadline."""
        self._remember(newly_cancelled)
        cancelled, now_ns = self._cancelled.keys(), time.monotonic_ns()
        if dropped := self._batcher.drop(lambda request: is_unwanted(request, cancelled, now_ns)):
            late = [failed(each, DeadlineExceeded("its deadline passed before it ran")) for each in dropped]
            self._connection.send(self._shared.end(late))
        self._timed = self._timed and self._batcher.holds(lambda request: request.deadline_ns != 0)
        if not len(self._batcher):
            self._cancelled.clear()

    def _remember(self, newly_cancelled: list[int]) -> None:
        self._cancelled.update(dict.fromkeys(newly_cancelled))
        while len(self._cancelled) > NUM_CANCELLED:
            del self._cancelled[next(iter(self._cancelled))]

    # --- streams -------------------------------------------------------------------------------------------------

    def _stream(self, request: Record) -> None:
        self._page.begin_batch([request.ticket], time.monotonic_ns())
        self._credit[request.ticket] = wire.STREAM_CREDIT
        try:
            last = self._parts(request)
        except DeviceLost:
            raise
        except BaseException as err:
            self._work.engine.check_device(err)
            log.error("a stream failed: %s", describe(err), exc_info=err)
            last = failed(request, ModelError(describe(err)))
        finally:
            del self._credit[request.ticket]
        self._connection.send(self._shared.end([last]))
        self._page.end_batch()

    def _parts(self, request: Record) -> Record:
        """Send the parts as they come; returns the record that ends the stream."""
        parts = self._work.engine.stream(self._work.read_stream(request))
        for part in parts:
            refusal = self._await_credit(request)
            record = refusal or self._work.pack(request, part, Kind.PART)
            if record.kind == Kind.ERROR:
                parts.close()  # type: ignore[attr-defined]  # a generator: its finally blocks run now
                return record
            self._connection.send([record])
            self._credit[request.ticket] -= 1
            self._page.progress(time.monotonic_ns())
        return Record(Kind.END, request_id=request.request_id, ticket=request.ticket)

    def _await_credit(self, request: Record) -> Record | None:
        """Wait until the reader has room; the error to end with if it is gone, late or stalled."""
        stalled_at = time.monotonic() + STALL_S
        while True:
            self._accept(self._connection.read())
            self._remember(self._page.newly_cancelled())
            if request.ticket in self._cancelled or self._stopping or self._link.closed or self._connection.is_lost:
                return failed(request, RequestError("cancelled, or the balancer is gone"))
            if 0 < request.deadline_ns <= time.monotonic_ns():
                return failed(request, DeadlineExceeded("its deadline passed while it was streaming"))
            if self._credit[request.ticket] > 0:
                return None
            if time.monotonic() > stalled_at:
                return failed(request, RequestError(f"its reader took no part for {STALL_S:.0f} s"))
            self._page.progress(time.monotonic_ns())
            self._connection.wait(CREDIT_POLL_S)
