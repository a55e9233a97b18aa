"""The future of one call."""

from __future__ import annotations

import logging
import threading
from _thread import RLock  # threading.RLock is a function that looks for it, and takes three times as long
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from orch.errors import Closed

if TYPE_CHECKING:
    from orch.calls import Call
    from orch.client import Client
    from orch.driver import Driver

log = logging.getLogger("concurrent.futures")
PENDING, FINISHED = "PENDING", "FINISHED"
DONE = frozenset({"CANCELLED", "CANCELLED_AND_NOTIFIED", FINISHED})


class CallFuture(Future[Any]):
    """A future whose cancel() reaches the balancer, and which does not wait in a process forked from its own.

    A Condition is the most expensive part of a future, and most futures are looked at by a callback, or when they are
    done: it is made when somebody waits. What changes the state holds the lock that it is then made of.
    """

    def __init__(self, client: Client, driver: Driver) -> None:
        # In place of Future's own, which makes a Condition: all that it sets besides.
        self._state = PENDING
        self._result = None
        self._exception = None
        self._waiters = []
        self._done_callbacks: list[Callable[[Future[Any]], Any]] = []
        self._lock = RLock()
        self._made: threading.Condition | None = None
        self._client: Client | None = client  # which is not collected before the answer
        self._driver = driver
        self.call: Call | None = None

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]
        """For Future's own methods, and for wait() and as_completed()."""
        with self._lock:
            if self._made is None:
                self._made = threading.Condition(self._lock)
            return self._made

    def _check_process(self) -> None:
        # Looks at no lock: another thread of the parent may have held it when this process was forked.
        if self._driver.abandoned and self._state not in DONE:
            raise Closed("this call belongs to the process that this one was forked from")

    def done(self) -> bool:
        """Whether there is an answer, an error, or nobody who waits for one."""
        return self._state in DONE

    def result(self, timeout: float | None = None) -> Any:
        """The output. Raises the call's error, or TimeoutError after `timeout` seconds, when the call goes on."""
        if self._state == FINISHED and self._exception is None:
            return self._result
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The call's error, or None."""
        if self._state == FINISHED:
            return self._exception
        self._check_process()
        return super().exception(timeout)

    def add_done_callback(self, fn: Callable[[Future[Any]], Any]) -> None:
        """Call `fn` with this future when it is done; at once if it is."""
        if self._state not in DONE:
            self._done_callbacks.append(fn)
            if self._state not in DONE:
                return
            try:  # it was answered meanwhile: a callback is its who takes it out, and no lock is needed
                self._done_callbacks.remove(fn)
            except ValueError:
                return
        self._call_back(fn)

    def _invoke_callbacks(self) -> None:
        callbacks = self._done_callbacks
        while callbacks:
            try:
                fn = callbacks.pop(0)
            except IndexError:  # another thread has taken the last
                return
            self._call_back(fn)

    def _call_back(self, fn: Callable[[Future[Any]], Any]) -> None:
        try:
            fn(self)
        except Exception:
            log.exception("exception calling callback for %r", self)  # as Future's own

    def cancel(self) -> bool:
        """Give up waiting; a request that is still queued will not run."""
        cancelled = super().cancel()
        if cancelled and self.call is not None:
            self._driver.cancel(self.call)
        if cancelled:
            self._client = None
        return cancelled

    def settle(self, value: Any, error: BaseException | None) -> None:
        """The answer. Ignored if the call was cancelled at the same moment."""
        self._client = None
        with self._lock:
            if self._state in DONE:
                return
            self._result, self._exception = value, error
            self._state = FINISHED
            if self._made is not None:  # else nobody has waited
                for waiter in self._waiters:
                    waiter.add_result(self) if error is None else waiter.add_exception(self)
                self._made.notify_all()
        if self._done_callbacks:
            self._invoke_callbacks()
