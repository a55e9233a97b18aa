"""A driver that an event loop calls when something has happened: nothing changes hands between threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

from orch.connection import Connection
from orch.driver import Driver
from orch.loans import IDLE_S
from orch.local import LocalConnection


class LoopDriver(Driver):
    """As `Driver`, after `attach`, for calls that are submitted in the loop's own thread.

    What is submitted in one pass of the loop goes out in one message.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _is_due = False  # a turn is coming
    _is_connecting = False
    _timer: asyncio.TimerHandle | None = None
    _watched: LocalConnection | None = None

    def attach(self) -> None:
        """The running loop drives from now on."""
        self._loop = asyncio.get_running_loop()
        self._driver = threading.get_ident()
        self._come()

    def room(self, num_bytes: int) -> memoryview | None:
        """As `Loans.room`, in the loop's own thread."""
        return self._calls.loans.room(num_bytes)

    # --- being called ---------------------------------------------------------------------------------------------

    def _nudge(self) -> None:
        loop = self._loop
        if loop is None or self._is_due:
            return
        if self._driver == threading.get_ident():
            self._is_due = True
            loop.call_soon(self._come)
        else:
            self._wake()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._come)

    def _come(self) -> None:
        """Send, receive and resolve what there is; then say when to come again."""
        self._is_due = False
        if self.closed or self._is_connecting:
            return
        try:
            connection = self._connection
            if connection is None:
                if self._calls.pending:
                    self._connect_elsewhere()
                return
            self._turn(connection)
            if self._arrived or (self._welcomed and not connection.is_stuck and self._calls.sendable):
                self._nudge()
        except BaseException as err:
            self._broke(err)
            if not isinstance(err, Exception):
                raise
        self._watch()
        self._set_timer()

    def _connect_elsewhere(self) -> None:
        """Finding an instance, and shaking hands with it, may take seconds."""
        assert self._loop is not None
        self._is_connecting = True

        def connected(_: object) -> None:
            self._is_connecting = False
            self._come()

        self._loop.run_in_executor(None, self._connect_again).add_done_callback(connected)

    def _watch(self) -> None:
        """Be called when the connection there is now has something."""
        connection = self._connection
        if connection is self._watched or self._loop is None:
            return
        self._unwatch()
        if isinstance(connection, LocalConnection):
            self._loop.add_reader(connection.fileno(), self._come)
            self._watched = connection

    def _unwatch(self) -> None:
        watched, self._watched = self._watched, None
        if watched is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(watched.fileno())

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loop is None or self.closed:
            return
        calls, waits_s = self._calls, []
        if calls.pending or not self._welcomed:
            waits_s = [each for each in (super()._sleep_s(), self._retry_s()) if each is not None]
        elif calls.loans.are_any:
            waits_s = [IDLE_S]
        if waits_s:
            self._timer = self._loop.call_later(min(waits_s), self._tick)

    def _retry_s(self) -> float | None:
        return None if self._watched is None else self._watched.retry_s()

    def _tick(self) -> None:
        self._timer = None
        if not self._calls.pending and self._calls.loans.are_any:
            self._idle_since = min(self._idle_since, time.monotonic() - IDLE_S)
            self._tidy()
        self._come()

    # --- in place of the thread's ------------------------------------------------------------------------------------

    def _sleep_s(self) -> float | None:
        return 0.0

    def _part(self, connection: Connection) -> None:
        self._unwatch()
        super()._part(connection)

    def release(self) -> None:
        """As `close`, for a finalizer, which may run in any thread: the loop lets go of the connection by itself."""
        try:
            if self._loop is not None and not self.closed:
                self._loop.call_soon_threadsafe(self.close)
                return
        except RuntimeError:  # the loop is closed, and watches nothing
            self._watched = None
        super().release()

    def close(self) -> None:
        """Say GOODBYE. Calls that are not answered yet end in `Closed`. In the loop's thread."""
        if not self.closed:
            self.closed = True
            if self._timer is not None:
                self._timer.cancel()
            self._unwatch()
            self._shut()
