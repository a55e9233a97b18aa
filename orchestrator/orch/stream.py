"""The parts of one answer, as they arrive."""

from __future__ import annotations

import queue
from typing import Any, Self

from orch import wire
from orch.calls import Call
from orch.driver import Driver
from orch.wire import Kind, Record

# Credit is given back in pieces of this many parts.
CREDIT_STEP = wire.STREAM_CREDIT // 2


class Stream:
    """An iterator over the parts, in order. Leaving it early cancels the rest."""

    def __init__(self) -> None:
        self._parts: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._taken = 0
        self._ended = False
        self._driver: Driver | None = None
        self._call: Call | None = None

    def bind(self, driver: Driver, call: Call) -> None:
        """The call whose parts these are."""
        self._driver, self._call = driver, call

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
        self.end()
        if value is not None:
            raise value
        raise StopIteration

    def acknowledge(self) -> None:
        """One part was taken: now and then the worker is allowed more."""
        self._taken += 1
        if self._taken % CREDIT_STEP == 0 and self._call is not None and not self._call.done:
            assert self._driver is not None
            self._driver.say(Record(Kind.CREDIT, request_id=self._call.request_id, rows=CREDIT_STEP))

    def end(self) -> None:
        """The end was read: there is nothing to cancel."""
        self._ended = True

    def close(self) -> None:
        """Give up the rest."""
        if not self._ended and self._call is not None and self._driver is not None:
            self._driver.cancel(self._call)
        self._ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
