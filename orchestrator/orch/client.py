"""The client SDK: `Client`, for threads, forks and plain programs; `AsyncClient` (aio.py) is a coat over it."""

from __future__ import annotations

import atexit
import itertools
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

from orch import payload as payloads
from orch import runtime
from orch.calls import Call
from orch.connection import check_endpoint
from orch.driver import Driver
from orch.errors import Closed, NoSuchModel, Overloaded, PayloadTooLarge
from orch.future import CallFuture
from orch.progress import progress_bar
from orch.stream import Parts, Reading, Sink, Stream
from orch.wire import Flag, Priority

CONNECT_S = 5.0
# An iteration over map() tries a refused payload again this often; each waits as long as the instance hints.
MAP_RETRIES = 100
MIN_RETRY_S, MAX_RETRY_S = 0.01, 1.0
MAX_TIMEOUT_S = 1e9

PriorityName = Literal["high", "normal", "low"]
NORMAL = int(Priority.NORMAL)
PRIORITIES = {"high": int(Priority.HIGH), "normal": NORMAL, "low": int(Priority.LOW)}


# How one call is to be run: timeout, model, priority and retry, as the keyword arguments of `Client.request`.
Options = tuple[float | None, str | None, str, bool]


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_parents: list[Driver] = []  # in a forked child: never collected, because that would close what is the parent's


class Client:
    """A connection to a running instance, safe to share between threads and to carry over a fork.

    endpoint: "unix:///path", "ipc:///path" or "tcp://host:port"; None: find the instance `name` on this host.
    name: None: $ORCH_NAME, as for every command, else "default".
    connect_timeout: seconds until an instance that does not answer counts as not running.
    window: requests under way at one time, of which the instance grants as many as it queues in all; those behind them
        wait here. 0: its --client-queue-limit. For one who speaks for many, as a web server does.

    Raises:
        NotRunning: nothing answers there.
        ConfigError: `endpoint` is none.

    It is closed when it is collected; a future or a stream that is not done keeps it.

    An array given to `submit`, `map` or `stream` belongs to orch until its call is done, because it is sent without a
    copy; `submit(..., copy=True)` takes a snapshot. `request` is always safe: it blocks.
    """

    _driven_by: ClassVar[type[Driver]] = Driver

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        name: str | None = None,
        connect_timeout: float = CONNECT_S,
        window: int = 0,
    ) -> None:
        name = name or os.environ.get("ORCH_NAME") or "default"
        self._ids = itertools.count(1)
        given = None if endpoint is None else check_endpoint(endpoint)
        # The driver's thread, and so the driver, must not refer to this object.
        self._own(self._driven_by(lambda: given or runtime.front_endpoint(runtime.find(name)), connect_timeout, window))
        _clients.add(self)

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
        box, driver = _Box(), self._driver
        call = self._make(payload, box.settle, (timeout, model, priority, retry))
        # With nothing else outstanding this thread drives the socket itself.
        if driver.run(call):
            if box.error is not None:
                raise box.error
            return box.value
        future = CallFuture(self, driver)
        future.call, call.settle = call, future.settle
        driver.submit(call)
        return future.result()

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
        return self._submit(payload, (timeout, model, priority, retry), copy=copy)

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
        check_concurrency(concurrency)
        return self._map(inputs, concurrency, progress, (timeout, model, priority, retry))

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
        parts = Parts()
        return Stream(parts, self._start_stream(parts, payload, (timeout, model, priority, retry)))

    def close(self) -> None:
        """End the connection. Calls that are not answered yet end in `Closed`."""
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def models(self) -> list[str]:
        """Names of the models that the instance serves."""
        return list(self._driver.limits["models"])

    # --- inside --------------------------------------------------------------------------------------------------

    def _own(self, driver: Driver) -> None:
        self._driver = driver
        self._finalizer = weakref.finalize(self, driver.release)
        self._finalizer.atexit = False  # _close_all does it

    def _make(
        self,
        payload: Any,
        settle: Callable[[Any, BaseException | None], None],
        options: Options,
        on_part: Callable[[Any], None] | None = None,
    ) -> Call:
        """A call that may be submitted; everything that can be wrong with it is said here."""
        driver = self._driver
        if driver.closed:
            raise Closed("this client is closed; make a new one")
        limits = driver.limits
        body, frames = payloads.encode(payload)
        timeout, model, priority, retry = options
        call = Call(
            next(self._ids),
            body,
            frames,
            settle,
            (0 if retry else Flag.NO_RETRY) | (0 if on_part is None else Flag.STREAM),
            NORMAL if priority == "normal" else _priority(priority),
            0 if model is None else _model_number(model, limits["models"]),
            None if timeout is None else time.monotonic() + _seconds(timeout),
            on_part,
        )
        if call.num_bytes > limits["max_payload_bytes"]:
            raise PayloadTooLarge(
                f"the payload has {call.num_bytes} bytes; this instance takes {limits['max_payload_bytes']} "
                "(`orch up --max-payload` raises it)"
            )
        return call

    def _map(self, inputs: Iterable[Any], concurrency: int, progress: bool, options: Options) -> Iterator[Any]:
        window: deque[tuple[Any, Future[Any]]] = deque()
        try:
            with progress_bar(inputs, shown=progress) as advance:
                for each in inputs:
                    if len(window) >= concurrency:
                        yield self._first(window, options)
                        advance()
                    window.append((each, self._submit(each, options)))
                while window:
                    yield self._first(window, options)
                    advance()
        finally:  # also when the iteration is given up half-way
            for _, future in window:
                future.cancel()

    def _first(self, window: deque[tuple[Any, Future[Any]]], options: Options) -> Any:
        for attempt in range(MAP_RETRIES):
            try:
                output = window[0][1].result()
            except Overloaded as err:
                under_way, wait_s = before_retry([future for _, future in window], attempt, err)
                if under_way:
                    wait(under_way, timeout=wait_s)
                else:
                    time.sleep(wait_s)
                for i in refused([future for _, future in window]):
                    window[i] = (window[i][0], self._submit(window[i][0], options))
            else:
                window.popleft()
                return output
        return window.popleft()[1].result()

    def _start_stream(self, sink: Sink, payload: Any, options: Options) -> Reading:
        driver = self._driver
        call = self._make(payload, sink.settle, options, sink.put)
        reading = Reading(self, driver, call)
        driver.submit(call)
        return reading

    def _start(self, payload: Any, settle: Callable[[Any, BaseException | None], None], options: Options) -> Call:
        call = self._make(payload, settle, options)
        self._driver.submit(call)
        return call

    def _submit(self, payload: Any, options: Options, *, copy: bool = False) -> CallFuture:
        driver = self._driver
        future = CallFuture(self, driver)
        future.call = call = self._make(payload, future.settle, options)
        if copy:
            call.frames = tuple(memoryview(bytes(frame)) for frame in call.frames)
        driver.submit(call)
        return future

    def _after_fork(self) -> None:
        """In the child: start over with the next call."""
        if not self._driver.closed:
            self._finalizer.detach()
            _parents.append(self._driver)
            self._own(self._driver.abandon())


class Outcome(Protocol):
    """What the futures of threads and of asyncio have in common."""

    def done(self) -> bool:
        """Whether there is an answer, or an error."""

    def exception(self) -> BaseException | None:
        """The error of one that is done."""


F = TypeVar("F", bound=Outcome)


def before_retry(futures: list[F], attempt: int, error: Overloaded) -> tuple[list[F], float]:
    """What to wait for before the refused ones of a map() are sent again, and for how many seconds at most.

    That is what was accepted, for it made the queue full; with nothing of ours in it, the time that the instance hints.
    """
    under_way = [future for future in futures if not future.done()]
    if under_way:
        return under_way, MAX_RETRY_S
    # Nothing at first: those that filled the queue may be done already.
    return [], min(MAX_RETRY_S, error.retry_after_s or MIN_RETRY_S) if attempt else 0.0


def refused(futures: list[F]) -> list[int]:
    """Indexes of those that a full queue refused."""
    return [i for i, future in enumerate(futures) if future.done() and isinstance(future.exception(), Overloaded)]


def check_concurrency(concurrency: int) -> None:
    """Raise ValueError unless it is a number of calls."""
    if concurrency < 1:
        raise ValueError(f"concurrency = {concurrency}; it must be at least 1")


class _Box:
    """A future without the parts that only other threads need."""

    __slots__ = ("error", "value")

    def settle(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error = value, error


def _priority(name: str) -> int:
    try:
        return PRIORITIES[name]
    except KeyError:
        raise ValueError(f"priority = {name!r}; it must be high, normal or low") from None


def _seconds(timeout: float) -> float:
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout = {timeout!r}; it must be a number of seconds, or None")
    if not 0 < timeout < MAX_TIMEOUT_S:
        raise ValueError(f"timeout = {timeout!r}; it must be a positive number of seconds, or None")
    return timeout


def _model_number(model: str, models: list[str]) -> int:
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
