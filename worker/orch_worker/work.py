"""What is done with a batch: unpack the payloads, run the model, pack the answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any

from orch import bundles, payload, wire
from orch.errors import ModelError, PayloadTooLarge, RemoteProtocolError, RequestError
from orch.page import StatusPage
from orch.wire import Flag, Kind, Priority, Record
from orch_worker.engine import DeviceLost, Engine, Failure
from orch_worker.shared import Shared
from orch_worker.target import describe

log = logging.getLogger(__name__)

NS = 1_000_000_000
# For every record: to look a member up in its enum costs as much as the rest of a comparison.
RESULT, NORMAL = int(Kind.RESULT), int(Priority.NORMAL)
ARENA, NO_RETRY, BUNDLE = Flag.ARENA, Flag.NO_RETRY, Flag.BUNDLE
# Outputs that no later batch can change: they are packed beside it.
LASTING = frozenset([bytes, str, int, float, bool, type(None), Failure])
# A NamedTuple's own constructor is a Python function, and takes three times as long.
new_tuple = tuple.__new__


class Batch:
    """Requests that run together. `requests` and `inputs` are those that could be read, in order, bundles whole."""

    num_rows = 0
    times = 0  # how it went, as `wire.pack_times` says
    took_s = 0.0
    sent: threading.Event | None = None  # set once nothing refers to memory of the model's own
    lost: DeviceLost | None = None

    def __init__(self, waits_since: float) -> None:
        self.waits_since = waits_since  # when the first of them arrived
        self.tickets: list[int] = []
        self.requests: list[Record] = []
        self.inputs: list[Any] = []
        self.once: list[int] = []  # the places of inputs that may not be run again after a failed batch
        self.outputs: list[Any] = []  # of `requests`, that are not packed yet
        self.answers: list[Record] = []


class Work:
    """Owns nothing that changes between two batches, except what the balancer allows."""

    def __init__(self, engine: Engine, page: StatusPage, shared: Shared) -> None:
        self.engine = engine
        self.max_payload_bytes = 1 << 62  # until the balancer says
        self._page = page
        self._shared = shared

    def unpack(self, requests: list[Record], batch: Batch) -> None:
        """Into what can be run then; what cannot be read is answered in it already."""
        body: bytes
        frames: Sequence[Any]
        for request in requests:
            _, flags, _, _, _, _, ticket, _, rows, body, frames = request
            if flags & BUNDLE:
                self._unpack_bundle(request, batch)
                continue
            batch.tickets.append(ticket)
            batch.num_rows += rows
            try:
                if flags & ARENA:
                    body, frames = self._shared.frames(request)
                value = payload.decode(body, frames)
            except RemoteProtocolError as err:
                batch.answers.append(failed(request, RequestError(f"the payload could not be read: {err}")))
                continue
            if flags & NO_RETRY:
                batch.once.append(len(batch.inputs))
            batch.inputs.append(value)
            batch.requests.append(request)

    def _unpack_bundle(self, bundle: Record, batch: Batch) -> None:
        try:
            values = list(map(payload.decode, bundle.frames))
        except RemoteProtocolError:  # one of them
            self.unpack(bundles.singles(bundle), batch)
            return
        if bundle.flags & NO_RETRY:
            batch.once += range(len(batch.inputs), len(batch.inputs) + bundle.rows)
        batch.tickets += range(bundle.ticket, bundle.ticket + bundle.rows)
        batch.num_rows += bundle.rows
        batch.inputs += values
        batch.requests.append(bundle)

    def run(self, batch: Batch) -> None:
        """Its answers, or outputs that `finish` may pack later. Nothing of ours refers to what the requests held then.

        Raises:
            DeviceLost: nothing in this process can work any more.
        """
        started_at = time.monotonic()
        self._page.begin_batch(batch.tickets, int(started_at * NS))
        if batch.inputs:
            batch.outputs = self.engine.run(batch.inputs, batch.once)
            batch.inputs.clear()
            batch.times = wire.pack_times(started_at - batch.waits_since, time.monotonic() - started_at)
            if not LASTING.issuperset(map(type, batch.outputs)):
                self.finish(batch)
                if any(answer.frames and not answer.flags & BUNDLE for answer in batch.answers):  # not bodies
                    batch.sent = threading.Event()
            if self._shared.is_pinned:
                self._shared.synchronize()
        batch.took_s = time.monotonic() - started_at

    def finish(self, batch: Batch) -> None:
        """Pack the outputs that are not yet packed. Raises DeviceLost."""
        if batch.outputs:
            outputs, times = iter(batch.outputs), batch.times
            for request in batch.requests:
                if request.flags & BUNDLE:
                    batch.answers += self._pack_bundle(request, list(islice(outputs, request.rows)), times)
                else:
                    batch.answers.append(self.pack(request, next(outputs), RESULT, times))
        batch.requests, batch.outputs = [], []

    def _pack_bundle(self, bundle: Record, outputs: list[Any], times: int) -> list[Record]:
        """One answer for all of it; where an output is large, or none, one for each."""
        try:
            packed = list(map(payload.encode, outputs))
        except (MemoryError, TypeError):  # of one of them
            pairs = zip(bundles.singles(bundle), outputs, strict=True)
            return [self.pack(request, output, RESULT, times) for request, output in pairs]
        bodies = tuple([body for body, frames in packed if not frames])
        sizes = list(map(len, bodies))
        if len(bodies) < len(outputs) or sum(sizes) > wire.BUNDLE_BYTES or max(sizes) > self.max_payload_bytes:
            each = zip(bundles.singles(bundle), packed, strict=True)
            return [self._answer(request, body, frames, RESULT, times) for request, (body, frames) in each]
        _, _, _, _, _, request_id, ticket, _, rows, _, _ = bundle
        return [new_tuple(Record, (RESULT, BUNDLE, NORMAL, 0, 0, request_id, ticket, times, rows, b"", bodies))]

    def read_stream(self, request: Record) -> Any:
        """The payload. A stream may take any time, and its input outlive the connection. Raises RemoteProtocolError."""
        if request.flags & ARENA:
            return payload.decode(*self._shared.frames(request, copied=True))
        return payload.decode(request.body, request.frames)

    def pack(self, request: Record, output: Any, kind: int, times: int = 0) -> Record:
        """The answer that carries an output, or says why it cannot. Raises DeviceLost."""
        if isinstance(output, Failure):
            return failed(request, ModelError(output.text))
        try:
            body, frames = payload.encode(output)
        except MemoryError as err:
            log.error("an output could not be packed: %s", describe(err))
            return failed(request, ModelError(f"its output could not be packed: {describe(err)}"))
        except TypeError as err:
            self.engine.check_device(err.__cause__ or err)  # a kernel's error may show only when its output is read
            log.error("an output cannot travel: %s", err)
            return failed(request, ModelError(f"its output cannot travel: {err}"))
        return self._answer(request, body, frames, kind, times)

    def _answer(self, request: Record, body: bytes, frames: tuple[Any, ...], kind: int, times: int) -> Record:
        """The answer that carries this, if it may."""
        size = payload.nbytes(body, frames) if frames else len(body)
        if size > self.max_payload_bytes:
            return failed(
                request,
                PayloadTooLarge(f"the result has {size} bytes; the limit is {self.max_payload_bytes} (--max-payload)"),
            )
        flags = 0
        if frames and kind == RESULT and (descriptor := self._shared.put(request.ticket, frames)) is not None:
            flags, body, frames = ARENA, descriptor + body, ()
        return new_tuple(
            Record,
            (kind, flags, NORMAL, 0, 0, request.request_id, request.ticket, times, 1, body, frames),
        )


def is_unwanted(request: Record, cancelled: AbstractSet[int], now_ns: int) -> bool:
    """Whether a request, or any of a bundle, has missed its deadline or was cancelled, by its ticket."""
    _, flags, _, _, _, _, ticket, deadline_ns, num, _, _ = request
    if 0 < deadline_ns <= now_ns:
        return True
    return not cancelled.isdisjoint(range(ticket, ticket + num)) if flags & BUNDLE else ticket in cancelled


def failed(request: Record, error: RequestError) -> Record:
    """The answer that says what went wrong."""
    return wire.error_record(request.request_id, error.code, str(error), ticket=request.ticket)
