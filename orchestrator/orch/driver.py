"""Who drives a client's socket, and how: sending, receiving, connecting again.

Whoever holds the drive lock drives: a background thread while calls are outstanding, or the caller of `request()`
itself when nothing else is, which saves two hand-overs between threads. Everything that callers submit while the driver
is busy goes out in one packed message.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from orch import connection as connections
from orch import wire
from orch.calls import REQUEST, RESULT, Call, Calls
from orch.connection import Connection
from orch.errors import Closed, NotRunning, OrchError, ProtocolError, RemoteProtocolError
from orch.loans import IDLE_S, Loans
from orch.wire import BUNDLE, Kind, Record

# A balancer that dies is back within a second; an instance that systemd starts again, with its models, later.
RECONNECT_S = 60.0
FAREWELL = Record(Kind.GOODBYE)
CLOSED = "the client was closed before the answer came"
# Messages read in one turn, so that sending and deadlines get theirs.
MAX_PASS = 64
# Results that are resolved before what was submitted meanwhile is sent.
PORTION = 16
# A connection that nobody drove for this long is looked at before it is used; no balancer comes back sooner.
UNWATCHED_S = 0.05


class Refused(Exception):
    """The balancer answered our HELLO with an error."""


class Driver:
    """Owns the connection and the unanswered calls of one client in one process.

    find: the endpoint to connect to, asked when it is time to; raises NotRunning. window: as of `connection.connect`.

    Raises:
        NotRunning: nothing answers within `connect_timeout` seconds.
    """

    def __init__(
        self, find: Callable[[], str], connect_timeout: float, window: int, limits: dict[str, Any] | None = None
    ) -> None:
        self._find = find
        self._window = window
        self._connect_timeout = connect_timeout
        self._drive = threading.Lock()
        self._thread_lock = threading.Lock()
        self._work: queue.SimpleQueue[None] = queue.SimpleQueue()  # whose put() is safe in a finalizer
        self._thread: threading.Thread | None = None
        self._driver: int | None = None  # the thread that drives now
        self._tidies = False  # the background thread looks for chunks that are not used
        self._waiting = False  # it sleeps, and wants to be woken
        # One for this object's whole life, so that nobody writes to it after it is closed.
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wake_fd).atexit = False
        self._calls = Calls()
        self._arrived: deque[Record] = deque()  # received, and not taken in yet
        self._connection: Connection | None = None
        self._farewell = ""
        self._welcomed = False  # on the present connection
        self._patience: float | None = None  # until when the balancer may stay lost
        self._idle_since = 0.0
        self.closed = False
        self.abandoned = False  # this is a forked child's copy of its parent's
        # Of the last WELCOME. A forked child goes by its parent's until it has connected itself.
        self.limits: dict[str, Any] = limits or {}
        if limits is None:
            with self._drive:
                self._connect()

    # --- for any thread ------------------------------------------------------------------------------------------

    def run(self, call: Call) -> bool:
        """Drive the socket until this call is answered, if nothing else is outstanding. False: not done."""
        calls = self._calls
        if not self._drive.acquire(blocking=False):
            return False
        try:
            if calls.pending:
                return False
            calls.submit(call)
            try:
                self._pump(call)
                if not call.done:  # somebody has closed the client
                    call.finish(None, Closed(CLOSED))
            except (OSError, zmq.ZMQError) as err:
                self._broke(err)
            except BaseException:  # Ctrl-C, most likely
                calls.cancel(call)
                raise
        finally:
            self._drive.release()
            if self.closed:
                self._shut_if_closed()
            if calls.pending or (calls.loans.are_any and not self._tidies):
                self._nudge()
        return True

    def submit(self, call: Call) -> None:
        """Queue a call."""
        self._calls.submit(call)
        self._nudge()
        if self.closed:  # looked at last: close() sets it before it ends what was queued
            call.finish(None, Closed(CLOSED))

    def say(self, record: Record) -> None:
        """Queue a record that is no call."""
        self._calls.say(record)
        self._nudge()

    def cancel(self, call: Call) -> None:
        """Nobody waits for it any more."""
        if not self.closed:
            self._calls.cancel(call)
            self._nudge()

    def forsake(self, call: Call) -> None:
        """As `cancel`, for a finalizer, which may run between any two instructions: it takes no lock."""
        if not self.closed and not call.done:
            self._calls.cancel(call)
            self._wake()

    def close(self) -> None:
        """Say GOODBYE. Calls that are not answered yet end in `Closed`."""
        if self.closed:
            return
        self.closed = True
        self._wake()
        if self._driver == threading.get_ident():
            return  # a callback of the driver itself, which closes when it is done
        with self._drive:
            self._shut()

    def release(self) -> None:
        """As `close`, for a finalizer, which may run between any two instructions: it waits for no lock."""
        if not self.closed:
            self.closed = True
            self._wake()
            self._shut_if_closed()

    def _shut_if_closed(self) -> None:
        """Whoever closes while another drives leaves this to the other; called after each release of the lock."""
        if self.closed and not self.abandoned and self._drive.acquire(blocking=False):
            try:
                self._shut()
            finally:
                self._drive.release()

    def _shut(self) -> None:
        connection, self._connection = self._connection, None
        try:
            self._calls.fail_all(lambda: Closed(CLOSED))
        finally:
            self._calls.loans.leave()
            self._calls.loans = Loans()  # the arena is unmapped
            if connection is not None:
                connection.close(FAREWELL)

    def abandon(self) -> Driver:
        """In a forked child: leave the parent's socket alone. Returns a driver that connects with its first call."""
        self.closed = self.abandoned = True
        if self._connection is not None:
            self._connection.abandon()
        return Driver(self._find, self._connect_timeout, self._window, self.limits)

    # --- driving -------------------------------------------------------------------------------------------------

    def _nudge(self) -> None:
        """Something was queued: see that somebody sends it."""
        if self._driver == threading.get_ident():
            return  # a callback of the driver itself, which looks again before it sleeps
        if self._thread is None:
            self._start_thread()
        self._wake()

    def _wake(self) -> None:
        """Let the thread look again, or whoever drives. Takes no lock."""
        if self._work.empty():
            self._work.put(None)
        if self._waiting:
            self._waiting = False
            os.eventfd_write(self._wake_fd, 1)

    def _start_thread(self) -> None:
        with self._thread_lock:
            if self._thread is None and not self.closed:
                self._thread = threading.Thread(target=self._run_thread, name="orch-client", daemon=True)
                self._thread.start()

    def _run_thread(self) -> None:
        while not self.closed:
            if not self._is_woken():
                continue
            with self._drive:
                try:
                    self._pump()
                except BaseException as err:  # noqa: BLE001  whatever it is, nobody is to wait for ever
                    self._broke(err)
            self._shut_if_closed()

    def _is_woken(self) -> bool:
        """Wait for work; where there is none for a while, give back the chunks that are not used."""
        self._tidies = self._calls.loans.are_any
        try:
            self._work.get(timeout=IDLE_S if self._tidies else None)
        except queue.Empty:
            if self._drive.acquire(blocking=False):
                try:
                    self._tidy()
                finally:
                    self._drive.release()
                self._shut_if_closed()
            return False
        return True

    def _tidy(self) -> None:
        connection, loans = self._connection, self._calls.loans
        now = time.monotonic()
        if connection is None or not self._welcomed or now - self._idle_since < IDLE_S:
            return
        try:
            connection.wait(0.0)
            if self._take_all(connection):  # perhaps a grant that came after the last answer
                loans.rest()
                connection.send(loans.news(now))
        except (OSError, zmq.ZMQError) as err:
            self._broke(err)

    def _broke(self, error: BaseException) -> None:
        """Something that must not happen: end every call with it, and begin anew with the next. The lock is held."""
        connection = self._connection
        with contextlib.suppress(BaseException):  # out of a callback, after every call has ended
            self._fail(OrchError(f"the connection to the instance broke: {type(error).__name__}: {error}"))
        if connection is not None:
            with contextlib.suppress(OSError, zmq.ZMQError):
                self._part(connection)

    def _pump(self, call: Call | None = None) -> None:
        """Send, receive and resolve until this call is done, or without one all are. The drive lock is held."""
        calls = self._calls
        self._driver = threading.get_ident()
        try:
            if time.monotonic() - self._idle_since > UNWATCHED_S:
                self._look_after_idling()
            while (not call.done if call else calls.pending) and not self.closed:
                if self._connection is not None:
                    self._turn(self._connection)
                else:
                    self._connect_again()
            if calls.control and self._connection is not None and not self.closed:
                self._send(self._connection)  # a last CANCEL
        finally:
            self._driver = None
            self._idle_since = time.monotonic()

    def _look_after_idling(self) -> None:
        """Nobody watched the connection meanwhile: learn of its loss before something is sent into it."""
        connection = self._connection
        if connection is not None and not self.closed:
            alive = connection.wait(0.0)
            if self._take_all(connection) and not alive:
                self._lost(connection)

    def _turn(self, connection: Connection) -> None:
        calls = self._calls
        self._send(connection)
        self._waiting = True
        try:
            # Looked at once more after `_waiting` is set: whoever queued before saw it unset and did not wake us.
            can_send = self._welcomed and not connection.is_stuck
            ready = self.closed or self._arrived or calls.results or (can_send and calls.sendable)
            alive = connection.wait(0.0 if ready else self._sleep_s())
        finally:
            self._waiting = False
        connected = self._take_all(connection, behind_answers=not alive)
        if connected and not alive:
            self._lost(connection)
        if calls.timed or calls.deadlines or self._patience is not None:
            self._expire(connection)

    def _expire(self, connection: Connection) -> None:
        """End what has waited for too long."""
        now, patience = time.monotonic(), self._patience
        self._calls.expire(now)
        if patience is not None and now > patience:
            self._part(connection)  # the next call looks for the instance anew
            self._fail(NotRunning(f"the instance did not come back within {RECONNECT_S:g} s"))

    def _send(self, connection: Connection) -> None:
        calls = self._calls
        if not self._welcomed or (connection.is_stuck and not connection.flush()):
            return
        records = calls.to_send(time.monotonic(), local=connection.is_local)
        if not records:
            return
        connection.send(records)
        for record in records:
            if record.kind == REQUEST:  # no CANCEL comes behind one
                break
            if record.kind == Kind.CANCEL:
                calls.cancelled(record.request_id)

    def _sleep_s(self) -> float | None:
        until, patience = self._calls.next_deadline(), self._patience
        if patience is not None and (until is None or patience < until):
            until = patience
        return None if until is None else max(0.0, until - time.monotonic())

    def _take_all(self, connection: Connection, *, behind_answers: bool = True) -> bool:
        """Read what has arrived; unless `behind_answers`, what comes after the last answer may be left.

        False: the balancer wants nothing of us any more, and the connection is given up.
        """
        calls, arrived = self._calls, self._arrived
        try:
            if calls.results:  # the rest, after an interrupt
                self._take_results(connection)
            for _ in range(MAX_PASS):
                arrived += connection.receive()
                if not arrived:
                    break
                while arrived:  # an interrupt in between loses none
                    record = arrived[0]
                    if record[0] == RESULT:  # its kind; most are
                        if record[1] & BUNDLE:
                            calls.take(record)  # before it is let go: results that are there twice are ignored
                            arrived.popleft()
                            self._take_results(connection)
                        else:
                            arrived.popleft()
                            calls.take(record)
                        continue
                    arrived.popleft()
                    if record.kind == Kind.HELLO:  # it does not know us: another epoch, or it had given us up
                        self._lost(connection)
                        return True
                    if record.kind == Kind.GOODBYE:  # perhaps it is there again already
                        self._farewell = "was stopped"
                        self._part(connection)
                        return False
                    self._take(record)
                # To find that nothing more is there costs as much as a message.
                if not (behind_answers or calls.sent):
                    break
        except Refused as err:
            self._farewell = f"refused this client: {err}"
            self._part(connection)
            return False
        except RemoteProtocolError as err:
            self._fail(err)
        return True

    def _take_results(self, connection: Connection) -> None:
        """Resolve what has come in bundles, and send meanwhile what that makes callers submit: nobody need wait."""
        calls = self._calls
        while calls.results:
            calls.take_results(PORTION)
            if calls.is_half_unsent:
                self._send(connection)

    def _take(self, record: Record) -> None:
        if record.kind == Kind.WELCOME:
            self.limits = wire.read_map(record.body, wire.WELCOME_FIELDS)
            self._calls.window = max(1, self.limits["window"])
            is_local = self._connection is not None and self._connection.is_local
            self._calls.loans = Loans(self.limits["arena"] if is_local else "", self.limits["epoch"])
            self._welcomed = True
            self._patience = None
        elif record.kind == Kind.ERROR and record.request_id == 0:
            fields = wire.read_map(record.body, wire.ERROR_FIELDS)
            if not self._welcomed:
                raise Refused(fields["message"])
            self._fail(ProtocolError(f"the balancer refused what this client sent: {fields['message']}"))
        elif record.kind == Kind.GRANT:
            self._calls.loans.granted(record)
        else:
            self._calls.take(record)

    # --- connecting ----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Find the instance and shake hands. The drive lock is held."""
        endpoint = self._find()
        try:
            connection = self._connection = connections.connect(endpoint, self._wake_fd, self._window)
        except (OSError, zmq.ZMQError) as err:
            raise OrchError(f"no connection to {endpoint} can be opened: {err}") from err
        deadline = time.monotonic() + self._connect_timeout
        while not self._welcomed:
            left_s = deadline - time.monotonic()
            self._waiting = True
            if self.closed:  # looked at after `_waiting` is set: see _turn
                return
            if left_s <= 0:
                self._part(connection)
                raise NotRunning(
                    f"nothing answers at {endpoint} within {self._connect_timeout:g} s; `orch status` shows what runs, "
                    "`orch up TARGET` starts an instance"
                )
            alive = connection.wait(left_s)
            self._waiting = False
            if not alive:
                connection.reopen()
            if not self._take_all(connection):
                raise NotRunning(f"the instance at {endpoint} {self._farewell}")
        self._idle_since = time.monotonic()

    def _connect_again(self) -> None:
        """Connect, or end every call with the reason why not."""
        try:
            self._connect()
        except OrchError as err:
            self._fail(err)

    def _lost(self, connection: Connection) -> None:
        """The balancer, or the way to it, is gone: connect again, and send again what is unanswered."""
        self._welcomed = False
        if self._patience is None:
            self._patience = time.monotonic() + RECONNECT_S
        self._arrived.clear()
        self._calls.new_balancer()
        connection.reopen()

    def _part(self, connection: Connection) -> None:
        """Give the connection up; what is unanswered waits for another."""
        self._welcomed = False
        self._patience = None
        self._arrived.clear()
        self._calls.new_balancer()
        self._connection = None
        connection.close(FAREWELL)

    def _fail(self, error: OrchError) -> None:
        kind, text = type(error), str(error)
        self._calls.fail_all(lambda: kind(text))
