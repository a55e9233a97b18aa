"""The parts of one answer, as they arrive."""

from __future__ import annotations

import queue
import weakref
from typing import Any, Protocol, Self

from orch import wire
from orch.calls import Call
from orch.driver import Driver
from orch.errors import Closed
from orch.wire import Kind, Record

# Credit is given back in pieces of this many parts.
CREDIT_STEP = wire.STREAM_CREDIT // 2


class Sink(Protocol):
    """Where the parts go. The call refers to it, so it must not refer to whoever reads."""

    def put(self, part: Any) -> None:
        """A part has arrived; in the driver's thread."""

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The end, or an error; in the driver's thread."""


class Parts:
    """Parts that wait for a thread to read them."""

    def __init__(self) -> None:
        self.arrived: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def put(self, part: Any) -> None:
        """A part has arrived; in the driver's thread."""
        self.arrived.put(("part", part))

    def settle(self, _value: Any, error: BaseException | None) -> None:
        """The end, or an error; in the driver's thread."""
        self.arrived.put(("end", error))


class Reading:
    """The reader's side of a streaming call: it gives credit, and cancels the rest when it is closed or collected."""

    def __init__(self, client: object, driver: Driver, call: Call) -> None:
        self._client: object = client  # which is not collected before the end
        self._driver = driver
        self._call = call
        self._taken = 0
        self._finalizer = weakref.finalize(self, driver.forsake, call)
        self._finalizer.atexit = False

    @property
    def ended(self) -> bool:
        """Read to the end, or given up."""
        return not self._finalizer.alive

    def check_process(self) -> None:
        """Raise `Closed` in a process forked from the stream's own, where no part ever arrives."""
        if self._driver.abandoned:
            raise Closed("this stream belongs to the process that this one was forked from")

    def acknowledge(self) -> None:
        """One part was taken: now and then the worker is allowed more."""
        self._taken += 1
        if self._taken % CREDIT_STEP == 0 and not self._call.done and not self._driver.closed:
            self._driver.say(Record(Kind.CREDIT, request_id=self._call.request_id, rows=CREDIT_STEP))

    def end(self) -> None:
        """The end was read: there is nothing to cancel."""
        self._finalizer.detach()
        self._client = None

    def close(self) -> None:
        """Give up the rest."""
        if self._finalizer.detach() is not None:
            self._driver.cancel(self._call)
        self._client = None


class Stream:
    """An iterator over the parts, in order. Leaving it early cancels the rest."""

    def __init__(self, parts: Parts, reading: Reading) -> None:
        self._parts = parts
        self._reading = reading

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._reading.ended:
            raise StopIteration
        self._reading.check_process()
        what, value = self._parts.arrived.get()
        if what == "part":
            self._reading.acknowledge()
            return value
        self._reading.end()
        if value is not None:
            raise value
        raise StopIteration

    def close(self) -> None:
        """Give up the rest; a thread that waits for the next part stops waiting."""
        if not self._reading.ended:
            self._reading.close()
            self._parts.settle(None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
