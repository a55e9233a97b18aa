"""The worker's one loop: receive, batch, run, answer the batch in one message.

Synchronous on purpose: what arrives while a batch runs waits in ZeroMQ's own pipe.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import secrets
import select
import signal
import socket as sockets
import time
from typing import Any

import zmq

from orch import chunk, payload, wire
from orch.errors import DeadlineExceeded, Exit, ModelError, PayloadTooLarge, RemoteProtocolError, RequestError
from orch.link import Link
from orch.page import NUM_CANCELLED, Phase, StatusPage
from orch.wire import Flag, Kind, Priority, Record
from orch_worker.batching import Batcher, Item
from orch_worker.engine import DeviceLost, Engine, Failure, Row
from orch_worker.shared import Shared
from orch_worker.target import describe

log = logging.getLogger(__name__)

# Messages read between two batches. The balancer sends at most two batches ahead, so this is never reached for long.
MAX_PASS = 64
# A stream whose reader grants no credit for this long is ended: it would hold the whole worker.
STALL_S = 60.0
CREDIT_POLL_MS = 1000
# What ZeroMQ has not sent after this long waits for a balancer that does not read: the connection is given up.
SEND_S = 5.0
SEND_POLL_S = 0.1
RECONNECT_MS, MAX_RECONNECT_MS = 10, 200
# While the model keeps what it was given, it is looked at this often whether it still does.
KEPT_S = 0.25
# For every record: to look a member up in its enum costs as much as the rest of a comparison.
REQUEST, RESULT, NORMAL = int(Kind.REQUEST), int(Kind.RESULT), int(Priority.NORMAL)
STREAM, ARENA, NO_RETRY = Flag.STREAM, Flag.ARENA, Flag.NO_RETRY
# A NamedTuple's own constructor is a Python function, and takes three times as long.
new_tuple = tuple.__new__
# Between two tries to map the arena: a balancer that has just fallen takes a moment to come back.
UNMAPPED_S = 0.1


class Loop:
    """Owns the socket to the balancer and the batcher."""

    def __init__(
        self, endpoint: str, ready: dict[str, Any], engine: Engine, batcher: Batcher, page: StatusPage, link: Link
    ) -> None:
        self._endpoint = endpoint
        self._ready = ready
        self._engine = engine
        self._batcher = batcher
        self._page = page
        self._link = link
        self._timed = False  # a request that waits may have a deadline
        self._cancelled: dict[int, None] = {}  # in order of arrival; no more than the page could tell at once
        self._sending: zmq.MessageTracker | None = None  # of the frames sent last, until they are known to be out
        self._copies = False
        self._credit: dict[int, int] = {}
        self._shared = Shared()
        self._unmapped = False  # the arena cannot be had: what comes over this connection could not be read
        self._max_payload_bytes = 1 << 62  # until the balancer says
        self._stopping = False
        self._wake, self._wake_writer = sockets.socketpair()
        self._wake.setblocking(False)
        self._wake_writer.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        self._others = select.epoll()  # what is rarely readable, as one item of the poller: it pays by the item
        for readable in (self._link.fileno(), self._wake.fileno()):
            self._others.register(readable, select.EPOLLIN)
        signal.signal(signal.SIGTERM, self._on_term)
        self._context = zmq.Context()
        self._connect()

    def _on_term(self, *_: object) -> None:
        self._stopping = True

    def _connect(self) -> None:
        """A new socket and a new name for every connection: what an earlier life of the balancer sent is void."""
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        name = f"{self._ready['replica']}.{self._ready['generation']}.{secrets.token_hex(4)}"
        self._socket.setsockopt(zmq.ROUTING_ID, name.encode())
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(self._endpoint)
        self._socket.send(
            wire.pack_head([Record(Kind.READY, body=wire.write_map(**self._ready, kept=self._shared.kept))])
        )
        self._poller = zmq.Poller()
        for readable in (self._socket, self._monitor, self._others.fileno()):
            self._poller.register(readable, zmq.POLLIN)

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until SIGTERM (OK), the supervisor's end (ORPHANED) or the device's (DEVICE_LOST)."""
        self._page.enter(Phase.IDLE)
        # The model and its libraries stay: the collector need not go through all they hold again and again.
        gc.collect()
        gc.freeze()
        try:
            while not self._stopping and not self._link.closed:
                wait_s = self._batcher.wait_s(time.monotonic())
                self._receive(wait_s)
                if self._unmapped:
                    time.sleep(UNMAPPED_S)
                    self._new_epoch()
                    continue
                self._let_go()
                self._drop_unwanted()
                if self._batcher.wait_s(time.monotonic()) == 0.0 and self._is_sent():
                    self._run(self._batcher.take())
        except DeviceLost:
            self._socket.close(linger=0)
            return Exit.DEVICE_LOST
        self._page.enter(Phase.STOPPING)
        self._context.destroy(linger=0 if self._link.closed else 1000)
        return Exit.OK if self._stopping else Exit.ORPHANED

    def _receive(self, wait_s: float | None) -> None:
        """Wait (None: for as long as it takes), and read what is there.

        The poll comes first: to try to read where nothing is costs more than the poll.
        """
        if wait_s == 0.0:
            self._read()
            return
        if self._shared.kept:
            wait_s = KEPT_S if wait_s is None else min(wait_s, KEPT_S)
        # The poll is in milliseconds; a batch's wait may be shorter, and is then rounded up to one.
        timeout_ms = None if wait_s is None else max(1, round(wait_s * 1000))
        for readable, _ in self._poller.poll(timeout_ms):
            if readable is self._socket:
                self._read()
            elif readable is self._monitor:
                self._new_epoch()
                return
            else:
                self._look_at_others()

    def _look_at_others(self) -> None:
        self._link.receive()
        with contextlib.suppress(BlockingIOError):
            self._wake.recv(4096)

    def _new_epoch(self) -> None:
        log.info("the balancer is gone; connecting again")
        self._socket.disable_monitor()
        self._monitor.close(linger=0)  # which disable_monitor() does not do
        self._socket.close(linger=0)
        self._batcher = Batcher(self._batcher.max_batch_size, self._batcher.max_wait_s)
        self._timed = False
        self._cancelled.clear()
        self._sending = None
        self._shared.forget()
        self._unmapped = False
        self._connect()

    def _read(self) -> int:
        """Take in the messages that have arrived; how many."""
        receive, noblock = self._socket.recv, zmq.NOBLOCK
        for count in range(MAX_PASS):
            try:
                head = receive(noblock)
            except zmq.Again:
                return count
            frames = []
            while self._socket.getsockopt(zmq.RCVMORE):
                frames.append(receive(copy=False))
            try:
                self._accept(wire.decode(head, frames))
            except RemoteProtocolError as err:
                log.error("from the balancer: %s", err)
        return MAX_PASS

    def _accept(self, records: list[Record]) -> None:
        now = time.monotonic()
        arrived: list[Item] = []
        for record in records:
            if record.kind == REQUEST:
                arrived.append(new_tuple(Item, (record, record.rows, bool(record.flags & STREAM), now)))
                if record.deadline_ns:
                    self._timed = True
            elif record.kind == Kind.CREDIT:
                if record.ticket in self._credit:
                    self._credit[record.ticket] += record.rows
            elif record.kind == Kind.GRANT:
                self._shared.grant(record.ticket, chunk.read_chunks(record.body))
            elif record.kind == Kind.WELCOME:
                welcome = wire.read_map(record.body, wire.WELCOME_FIELDS)
                self._max_payload_bytes = welcome["max_payload_bytes"]
                self._map(welcome["arena"], welcome["epoch"])
        if arrived:
            self._batcher.add(arrived, now)

    def _map(self, path: str, epoch: int) -> None:
        try:
            self._shared.open(path, epoch)
        except OSError as err:
            log.error("the shared memory at %s cannot be mapped: %s", path, err)
            self._unmapped = True

    def _let_go(self) -> None:
        """Give back what the model does not keep any more."""
        if self._shared.kept and (numbers := self._shared.let_go()):
            self._send([Record(Kind.RETURN, body=chunk.write_numbers(numbers))])

    def _drop_unwanted(self) -> None:
        """Answer, without running them, requests that were cancelled or have missed their deadline."""
        self._read_cancelled()
        if not (self._cancelled or self._timed):
            return
        now_ns = time.monotonic_ns()

        def unwanted(request: Record) -> bool:
            return request.ticket in self._cancelled or 0 < request.deadline_ns <= now_ns

        if dropped := self._batcher.drop(unwanted):
            self._end([self._error(each, DeadlineExceeded("its deadline passed before it ran")) for each in dropped])
        if not len(self._batcher):
            self._timed = False
            self._cancelled.clear()

    def _read_cancelled(self) -> None:
        if new := self._page.newly_cancelled():
            self._cancelled.update(dict.fromkeys(new))
            while len(self._cancelled) > NUM_CANCELLED:
                del self._cancelled[next(iter(self._cancelled))]

    # --- running -------------------------------------------------------------------------------------------------

    def _run(self, batch: list[Record]) -> None:
        started_ns = time.monotonic_ns()
        self._page.begin_batch([request.ticket for request in batch], started_ns)
        if batch[0].flags & STREAM:
            self._stream(batch[0])
        else:
            self._answer(batch)
            took_s = (time.monotonic_ns() - started_ns) / 1e9
            self._batcher.cost.observe(sum([request.rows for request in batch]), took_s)
        self._page.end_batch()

    def _answer(self, batch: list[Record]) -> None:
        self._end(self._run_rows(batch))

    def _end(self, answers: list[Record]) -> None:
        """Send final answers. Nothing of ours refers to what their requests held; the model may."""
        kept = self._shared.end([answer.ticket for answer in answers])
        if kept:
            answers = [each._replace(flags=each.flags | Flag.KEPT) if each.ticket in kept else each for each in answers]
        self._send(answers)

    def _run_rows(self, batch: list[Record]) -> list[Record]:
        """The answers. When it returns, nothing of ours refers to what the requests held."""
        rows: list[Row] = []
        runs: list[Record] = []
        answers: list[Record] = []
        for request in batch:
            try:
                # _read_payload for most of them, without the call.
                plain = not (request.frames or request.flags & ARENA)
                value = payload.decode(request.body) if plain else self._read_payload(request)
                rows.append(new_tuple(Row, (value, not request.flags & NO_RETRY)))
            except RemoteProtocolError as err:
                answers.append(self._error(request, RequestError(f"the payload could not be read: {err}")))
            else:
                runs.append(request)
        outputs = self._engine.run(rows) if rows else []
        return answers + [self._result(request, output) for request, output in zip(runs, outputs, strict=True)]

    def _read_payload(self, request: Record) -> Any:
        if request.flags & Flag.ARENA:
            # A stream may take any time, and its input outlive the connection.
            return payload.decode(
                *(self._shared.copied if request.flags & Flag.STREAM else self._shared.frames)(request)
            )
        return payload.decode(request.body, request.frames)

    def _result(self, request: Record, output: Any, kind: int = RESULT) -> Record:
        if isinstance(output, Failure):
            return self._error(request, ModelError(output.text))
        try:
            body, frames = payload.encode(output)
        except MemoryError as err:
            log.error("an output could not be packed: %s", describe(err))
            return self._error(request, ModelError(f"its output could not be packed: {describe(err)}"))
        except TypeError as err:
            self._engine.check_device(err.__cause__ or err)  # a kernel's error may show only when its output is read
            log.error("an output cannot travel: %s", err)
            return self._error(request, ModelError(f"its output cannot travel: {err}"))
        size = payload.nbytes(body, frames) if frames else len(body)
        if size > self._max_payload_bytes:
            return self._error(
                request,
                PayloadTooLarge(f"the result has {size} bytes; the limit is {self._max_payload_bytes} (--max-payload)"),
            )
        flags = 0
        if frames and kind == RESULT and (descriptor := self._shared.put(request.ticket, frames)) is not None:
            flags, body, frames = Flag.ARENA, descriptor + body, ()
        return new_tuple(
            Record,
            (kind, flags, NORMAL, 0, 0, request.request_id, request.ticket, wire.NO_DEADLINE, 1, body, frames),
        )

    @staticmethod
    def _error(request: Record, error: RequestError) -> Record:
        return wire.error_record(request.request_id, error.code, str(error), ticket=request.ticket)

    def _send(self, answers: list[Record]) -> None:
        for run in wire.messages(answers) if len(answers) > 1 else [answers]:  # any one record fits a message
            head, *frames = wire.encode(run)
            self._socket.send(head, zmq.SNDMORE if frames else 0)
            for i, frame in enumerate(frames, 1):
                more = zmq.SNDMORE if i < len(frames) else 0
                self._sending = self._socket.send(frame, more, copy=self._copies, track=not (self._copies or more))

    def _is_sent(self) -> bool:
        """Wait until the frames of the last answers are out: they are the model's memory, which it may use again.

        False: they were not within SEND_S. Then they are void, with the connection and all that came over it.
        """
        until = time.monotonic() + SEND_S
        while self._sending is not None:
            try:
                self._sending.wait(SEND_POLL_S)
            except zmq.NotDone:
                if self._monitor.poll(0):  # nobody will read them
                    return True
                if time.monotonic() >= until:
                    log.error("the balancer has not read an answer for %.0f s; connecting again", SEND_S)
                    self._copies = True
                    self._new_epoch()
                    return False
            else:
                self._sending = None
        return True

    # --- streams -------------------------------------------------------------------------------------------------

    def _stream(self, request: Record) -> None:
        self._credit[request.ticket] = wire.STREAM_CREDIT
        try:
            last = self._parts(request)
        except DeviceLost:
            raise
        except BaseException as err:
            self._engine.check_device(err)
            log.error("a stream failed: %s", describe(err), exc_info=err)
            last = self._error(request, ModelError(describe(err)))
        finally:
            del self._credit[request.ticket]
        self._end([last])

    def _parts(self, request: Record) -> Record:
        """Send the parts as they come; returns the record that ends the stream."""
        parts = self._engine.stream(self._read_payload(request))
        for part in parts:
            refusal = self._await_credit(request)
            record = refusal or self._result(request, part, Kind.PART)
            if record.kind == Kind.ERROR:
                parts.close()  # type: ignore[attr-defined]  # a generator: its finally blocks run now
                return record
            self._send([record])
            self._credit[request.ticket] -= 1
            self._page.progress(time.monotonic_ns())
            if not self._is_sent():
                parts.close()  # type: ignore[attr-defined]
                return self._error(request, RequestError("the balancer does not read"))
        return Record(Kind.END, request_id=request.request_id, ticket=request.ticket)

    def _await_credit(self, request: Record) -> Record | None:
        """Wait until the reader has room; the error to end with if it is gone, late or stalled."""
        stalled_at = time.monotonic() + STALL_S
        while True:
            self._read()
            self._read_cancelled()
            if request.ticket in self._cancelled or self._stopping or self._link.closed or self._monitor.poll(0):
                return self._error(request, RequestError("cancelled, or the balancer is gone"))
            if 0 < request.deadline_ns <= time.monotonic_ns():
                return self._error(request, DeadlineExceeded("its deadline passed while it was streaming"))
            if self._credit[request.ticket] > 0:
                return None
            if time.monotonic() > stalled_at:
                return self._error(request, RequestError(f"its reader took no part for {STALL_S:.0f} s"))
            self._page.progress(time.monotonic_ns())
            if self._others.fileno() in dict(self._poller.poll(CREDIT_POLL_MS)):
                self._look_at_others()
