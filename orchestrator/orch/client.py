"""The client SDK: `Client` for threads, forks and plain programs. (`AsyncClient` in aio.py is a coat over it.)

Whoever holds the drive lock drives the socket: a background thread while calls are outstanding, or the caller of
`request()` itself when nothing else is, which saves two hand-overs between threads. Everything that callers submit
while the driver is busy goes out in one packed message.
"""

from __future__ import annotations

import atexit
import itertools
import os
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from types import TracebackType
from typing import Any, Literal, Self

from orch import payload as payloads
from orch import runtime, wire
from orch.calls import Call, Calls
from orch.connection import Connection
from orch.errors import (
    Closed,
    NoSuchModel,
    NotRunning,
    OrchError,
    Overloaded,
    PayloadTooLarge,
    ProtocolError,
    RemoteProtocolError,
)
from orch.wire import Flag, Kind, Priority, Record

CONNECT_S = 5.0
# A balancer that dies is back within a second; an instance that systemd starts again, with its models, later.
RECONNECT_S = 60.0
# Credit is given back in pieces of this many parts.
CREDIT_STEP = wire.STREAM_CREDIT // 2
# An iteration over map() tries a refused payload again this often; each waits as long as the instance hints.
MAP_RETRIES = 100
MAX_RETRY_S = 1.0

PriorityName = Literal["high", "normal", "low"]
PRIORITIES = {"high": Priority.HIGH, "normal": Priority.NORMAL, "low": Priority.LOW}

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """A connection to a running instance, safe to share between threads and to carry over a fork.

    endpoint: "ipc:///path" or "tcp://127.0.0.1:port"; None: find the instance `name` on this host.
    connect_timeout: seconds until an instance that does not answer counts as not running.

    Raises:
        NotRunning: nothing answers there.

    An array given to `submit`, `map` or `stream` belongs to orch until its call is done, because it is sent without a
    copy; `copy=True` takes a snapshot. `request` is always safe: it blocks.
    """

    def __init__(
        self, endpoint: str | None = None, *, name: str = "default", connect_timeout: float = CONNECT_S
    ) -> None:
        self._endpoint = endpoint
        self._name = name
        self._connect_timeout = connect_timeout
        self._closed = False
        self._limits: dict[str, Any] = {}  # of the last WELCOME; a forked child goes by its parent's
        self._reset()
        _clients.add(self)
        with self._drive:
            self._connect()

    def _reset(self) -> None:
        """As new, also in a forked child: locks and threads do not survive a fork."""
        self._pid = os.getpid()
        self._drive = threading.Lock()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._driver: int | None = None
        self._waiting = False
        self._calls = Calls()
        self._ids = itertools.count(1)
        self._connection: Connection | None = None
        self._welcomed = False  # on the present connection
        self._lost_at: float | None = None
        self._thread_lock = threading.Lock()

    # --- what users call -----------------------------------------------------------------------------------------

    def request(
        self,
        payload: Any,
        *,
        timeout: float | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        retry: bool = True,
    ) -> Any:
        """Run one input and wait for its output. timeout: seconds; None: as long as it takes.

        retry: whether it may be run again if its worker dies. Raises what orch.errors lists under RequestError, and
        TypeError for a payload that cannot travel.
        """
        self._check()
        # Free, and nothing outstanding: drive the socket ourselves.
        if self._drive.acquire(blocking=False):
            try:
                if not self._calls.pending:
                    box = _Box()
                    call = self._make(payload, box.settle, timeout, model, priority, retry)
                    self._calls.submit(call)
                    try:
                        self._pump(lambda: call.done)
                    except BaseException:  # Ctrl-C, most likely
                        self._calls.cancel(call)
                        raise
                    return box.open()
            finally:
                self._release()
        return self.submit(payload, timeout=timeout, model=model, priority=priority, retry=retry).result()

    def submit(
        self,
        payload: Any,
        *,
        timeout: float | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        retry: bool = True,
        copy: bool = False,
    ) -> Future[Any]:
        """Send one input; the future gets its output or error. `cancel()` works until then."""
        self._check()
        future: CallFuture = CallFuture()
        call = self._make(payload, future.settle, timeout, model, priority, retry, copy=copy)
        future.bind(self, call)
        self._enqueue(call)
        return future

    def map(
        self,
        inputs: Iterable[Any],
        *,
        concurrency: int = 256,
        progress: bool = False,
        timeout: float | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        retry: bool = True,
    ) -> Iterator[Any]:
        """Outputs in the order of the inputs, with at most `concurrency` calls outstanding.

        Inputs are taken as outputs are read, so memory stays bounded. A full queue is waited for. progress: show a
        bar, where standard error is a terminal. timeout: seconds for each input.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency = {concurrency}; it must be at least 1")
        options: dict[str, Any] = {"timeout": timeout, "model": model, "priority": priority, "retry": retry}
        return self._map(inputs, concurrency, progress, options)

    def stream(
        self,
        payload: Any,
        *,
        timeout: float | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        retry: bool = True,
    ) -> Stream:
        """Run one input whose output comes in parts: `for part in client.stream(payload)`.

        After the first part it is not retried: the loop ends in WorkerLost if the worker dies. `close()` cancels it.
        """
        stream = Stream(self)
        stream.open(payload, timeout, model, priority, retry)
        return stream

    def close(self) -> None:
        """End the connection. Calls that are not answered yet end in `Closed`."""
        if self._closed or self._pid != os.getpid():
            self._closed = True
            return
        self._closed = True
        self._work.set()
        self._interrupt()
        with self._drive:
            self._calls.fail_all(lambda: Closed("the client was closed before the answer came"))
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def models(self) -> list[str]:
        """Names of the models that the instance serves."""
        return list(self._limits["models"])

    # --- calls ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._pid != os.getpid():
            self._after_fork()
        if self._closed:
            raise Closed("this client is closed; make a new one")

    def _make(
        self,
        payload: Any,
        settle: Callable[[Any, BaseException | None], None],
        timeout: float | None,
        model: str | None,
        priority: str,
        retry: bool,
        *,
        copy: bool = False,
        on_part: Callable[[Any], None] | None = None,
    ) -> Call:
        limits = self._limits
        body, frames = payloads.encode(payload)
        if copy and frames:
            frames = tuple(memoryview(bytes(frame)) for frame in frames)
        call = Call(
            next(self._ids),
            body,
            frames,
            settle,
            flags=(0 if retry else Flag.NO_RETRY) | (Flag.STREAM if on_part is not None else 0),
            priority=_priority(priority),
            model=_model_number(model, limits["models"]),
            deadline=None if timeout is None else time.monotonic() + _seconds(timeout),
            on_part=on_part,
        )
        if call.num_bytes > limits["max_payload_bytes"]:
            raise PayloadTooLarge(
                f"the payload has {call.num_bytes} bytes; this instance takes {limits['max_payload_bytes']} "
                "(`orch up --max-payload` raises it)"
            )
        return call

    def _enqueue(self, call: Call) -> None:
        self._calls.submit(call)
        self._nudge()

    def _say(self, record: Record) -> None:
        self._calls.say(record)
        self._nudge()

    def _cancel(self, call: Call) -> None:
        if self._pid == os.getpid():
            self._calls.cancel(call)
            self._nudge()

    def _map(self, inputs: Iterable[Any], concurrency: int, progress: bool, options: dict[str, Any]) -> Iterator[Any]:
        window: deque[tuple[Any, Future[Any]]] = deque()
        try:
            with _progress_bar(inputs, shown=progress) as advance:
                for each in inputs:
                    if len(window) >= concurrency:
                        yield self._first(window, options)
                        advance()
                    window.append((each, self.submit(each, **options)))
                while window:
                    yield self._first(window, options)
                    advance()
        finally:  # also when the iteration is given up half-way
            for _, future in window:
                future.cancel()

    def _first(self, window: deque[tuple[Any, Future[Any]]], options: dict[str, Any]) -> Any:
        each, future = window.popleft()
        for _ in range(MAP_RETRIES):
            try:
                return future.result()
            except Overloaded as err:
                time.sleep(min(MAX_RETRY_S, err.retry_after_s or 0.01))
                future = self.submit(each, **options)
        return future.result()

    # --- driving the socket --------------------------------------------------------------------------------------

    def _nudge(self) -> None:
        """Something was queued: see that somebody sends it."""
        if self._driver == threading.get_ident():
            return  # a callback of the driver itself, which looks again before it sleeps
        if self._thread is None:
            self._start_thread()
        self._work.set()
        self._interrupt()

    def _interrupt(self) -> None:
        connection = self._connection
        if self._waiting and connection is not None:
            self._waiting = False
            connection.wake()

    def _start_thread(self) -> None:
        with self._thread_lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run_thread, name="orch-client", daemon=True)
                self._thread.start()

    def _run_thread(self) -> None:
        while not self._closed:
            self._work.wait()
            self._work.clear()
            with self._drive:
                if self._closed:
                    return
                try:
                    self._pump(lambda: not self._calls.pending)
                except OrchError:
                    pass  # every call has it already

    def _release(self) -> None:
        self._drive.release()
        if self._calls.pending:
            self._nudge()

    def _pump(self, finished: Callable[[], bool]) -> None:
        """Send, receive and resolve until `finished`. The drive lock is held."""
        self._driver = threading.get_ident()
        try:
            if self._connection is None:
                self._connect()
            while not finished() and not self._closed:
                self._turn()
            if self._calls.control and self._connection is not None and not self._closed:
                self._send()  # a last CANCEL
        finally:
            self._driver = None

    def _turn(self) -> None:
        connection, calls = self._connection, self._calls
        assert connection is not None
        self._send()
        self._waiting = True
        try:
            # Looked at once more after `_waiting` is set: whoever queued before saw it unset and did not wake us.
            alive = connection.wait(0.0 if self._welcomed and calls.sendable else self._sleep_s())
        finally:
            self._waiting = False
        try:
            for record in connection.receive():
                self._take(record)
        except RemoteProtocolError as err:
            self._fail(err)
        calls.expire(time.monotonic())
        if not alive:
            self._lost()
        self._check_patience()

    def _send(self) -> None:
        connection, calls = self._connection, self._calls
        assert connection is not None
        if not self._welcomed or not connection.flush() or not calls.sendable:
            return
        records = list(calls.to_send(time.monotonic(), local=connection.is_local))
        connection.send(records)
        for record in records:
            if record.kind == Kind.CANCEL:
                calls.cancelled(record.request_id)

    def _sleep_s(self) -> float | None:
        times = [at for at in (self._calls.next_deadline(), self._patience()) if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _take(self, record: Record) -> None:
        if record.kind == Kind.WELCOME:
            self._limits = wire.read_map(record.body, wire.WELCOME_FIELDS)
            self._calls.window = max(1, self._limits["window"])
            self._welcomed = True
            self._lost_at = None
        elif record.kind == Kind.HELLO:  # the balancer does not know us: another epoch, or it had given us up
            self._lost()
        elif record.kind == Kind.GOODBYE:
            self._calls.fail_all(lambda: NotRunning(f"instance {self._name!r} was stopped"))
            self._lost()
        elif record.kind == Kind.ERROR and record.request_id == 0:
            fields = wire.read_map(record.body, wire.ERROR_FIELDS)
            self._fail(ProtocolError(f"the balancer refused what this client sent: {fields['message']}"))
        else:
            self._calls.take(record)

    # --- connecting ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Find the instance and shake hands. The drive lock is held."""
        endpoint = self._endpoint or runtime.front_endpoint(runtime.find(self._name))
        self._connection = Connection(endpoint)
        self._lost_at = time.monotonic()
        deadline = self._lost_at + self._connect_timeout
        while not self._welcomed:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self._connection.close()
                self._connection = None
                raise NotRunning(
                    f"nothing answers at {endpoint} within {self._connect_timeout:g} s; `orch status` shows what runs, "
                    "`orch up TARGET` starts an instance"
                )
            self._connection.wait(left_s)
            for record in self._connection.receive():
                self._take(record)

    def _lost(self) -> None:
        """The balancer, or the way to it, is gone: connect again, and send again what is unanswered."""
        assert self._connection is not None
        self._welcomed = False
        if self._lost_at is None:
            self._lost_at = time.monotonic()
        self._calls.new_balancer()
        self._connection.reopen()

    def _patience(self) -> float | None:
        return None if self._lost_at is None else self._lost_at + RECONNECT_S

    def _check_patience(self) -> None:
        patience = self._patience()
        if patience is not None and time.monotonic() > patience:
            self._fail(NotRunning(f"the instance did not come back within {RECONNECT_S:g} s"))
            self._lost_at = time.monotonic()

    def _fail(self, error: OrchError) -> None:
        kind, text = type(error), str(error)
        self._calls.fail_all(lambda: kind(text))

    def _after_fork(self) -> None:
        """In the child: leave the parent's socket alone, and start over with the next call."""
        abandoned = self._calls
        self._abandoned = self._connection  # never closed here: it is the parent's
        self._reset()
        abandoned.fail_all(lambda: Closed("this call belongs to the process that this one was forked from"))


class CallFuture(Future[Any]):
    """A future whose cancel() reaches the balancer."""

    def bind(self, client: Client, call: Call) -> None:
        """Tell it what it stands for."""
        self._client, self._call = client, call

    def cancel(self) -> bool:
        """Give up waiting; a request that is still queued will not run."""
        cancelled = super().cancel()
        if cancelled:
            self._client._cancel(self._call)  # noqa: SLF001  one thing in two classes
        return cancelled

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The answer."""
        try:
            if error is not None:
                self.set_exception(error)
            else:
                self.set_result(value)
        except InvalidStateError:
            pass  # cancelled at the same moment


class _Box:
    """A future without the parts that only other threads need."""

    __slots__ = ("error", "value")

    def settle(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error = value, error

    def open(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class Stream:
    """The parts of one answer, in order; an iterator. Leaving it early cancels the rest."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._parts: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._taken = 0
        self._ended = False
        self._call: Call | None = None

    def open(self, payload: Any, timeout: float | None, model: str | None, priority: str, retry: bool) -> None:
        """Send it."""
        client = self._client
        client._check()  # noqa: SLF001  one thing in two classes, here and below
        self._call = client._make(payload, self.settle, timeout, model, priority, retry, on_part=self.put)
        client._enqueue(self._call)  # noqa: SLF001

    def ended(self) -> None:
        """The end was read."""
        self._ended = True

    def put(self, part: Any) -> None:
        """A part has arrived; in the driver's thread."""
        self._parts.put(("part", part))

    def settle(self, _value: Any, error: BaseException | None) -> None:
        """The end, or an error; in the driver's thread."""
        self._parts.put(("end", error))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._ended:
            raise StopIteration
        what, value = self._parts.get()
        if what == "part":
            self.acknowledge()
            return value
        self._ended = True
        if value is not None:
            raise value
        raise StopIteration

    def acknowledge(self) -> None:
        """One part was taken: now and then the worker is allowed more."""
        self._taken += 1
        if self._taken % CREDIT_STEP == 0 and self._call is not None and not self._call.done:
            self._client._say(  # noqa: SLF001
                Record(Kind.CREDIT, request_id=self._call.request_id, rows=CREDIT_STEP)
            )

    def close(self) -> None:
        """Give up the rest."""
        if not self._ended and self._call is not None:
            self._ended = True
            self._client._cancel(self._call)  # noqa: SLF001

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _progress_bar:  # noqa: N801  used like a function
    """A bar on a terminal's standard error, or nothing."""

    def __init__(self, inputs: Iterable[Any], *, shown: bool) -> None:
        self._bar: Any = None
        if shown and sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import Progress
            except ImportError:
                return
            total = len(inputs) if hasattr(inputs, "__len__") else None
            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("requests", total=total)

    def __enter__(self) -> Callable[[], None]:
        if self._bar is None:
            return lambda: None
        self._bar.start()
        return lambda: self._bar.advance(self._task)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _priority(name: str) -> int:
    try:
        return PRIORITIES[name]
    except KeyError:
        raise ValueError(f"priority = {name!r}; it must be high, normal or low") from None


def _seconds(timeout: float) -> float:
    if not 0 < timeout < 1e9:
        raise ValueError(f"timeout = {timeout!r}; it must be a positive number of seconds, or None")
    return timeout


def _model_number(model: str | None, models: list[str]) -> int:
    if model is None:
        return 0
    if model not in models:
        raise NoSuchModel(f"this instance serves {', '.join(models)}, not {model!r}")
    return models.index(model)


def _forked() -> None:
    for client in list(_clients):
        client._after_fork()  # noqa: SLF001


def _close_all() -> None:
    for client in list(_clients):
        client.close()


os.register_at_fork(after_in_child=_forked)
atexit.register(_close_all)
