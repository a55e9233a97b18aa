"""A client's connection to a balancer on its own host: a channel, and a way to be woken."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Sequence

from orch import channel, wire
from orch.channel import Channel, Incoming
from orch.errors import RemoteProtocolError
from orch.wire import Record

# Between two tries to reach a balancer: one that died is back within a second, and others wait for it as well.
RETRY_S, MAX_RETRY_S = 0.01, 0.25


class LocalConnection:
    """Owns the channel; as the protocol `Connection` says."""

    def __init__(self, endpoint: str, wake_fd: int, hello: Record) -> None:
        self.endpoint = endpoint
        self.is_local = True
        self.is_stuck = False
        self._hello = hello
        self._wake_fd = wake_fd
        self._channel: Channel | None = None
        self._arrived: deque[Incoming] = deque()
        self._error: RemoteProtocolError | None = None
        self._retry_s = RETRY_S
        self._retry_at = 0.0
        self._epoll = select.epoll()  # which is itself something to wait for
        self._epoll.register(wake_fd, select.EPOLLIN)
        self._open()

    def _open(self) -> None:
        try:
            self._channel = channel.connect(self.endpoint.removeprefix("unix://"))
        except OSError:
            self._retry_at = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
            return
        self._retry_s = RETRY_S
        self._epoll.register(self._channel.fileno(), select.EPOLLIN)
        self.send([self._hello])

    def _end(self) -> None:
        if self._channel is not None:
            self._epoll.unregister(self._channel.fileno())
            self._channel.close()
            self._channel = None
        self._arrived.clear()
        self._error = None
        self.is_stuck = False

    def reopen(self) -> None:
        """A new connection for the same session."""
        self._end()
        self._open()

    def send(self, records: Sequence[Record]) -> None:
        """Pack and send."""
        channel = self._channel
        if channel is None or not records:
            return
        self.is_stuck = True  # also after an interrupt: `flush` finds out
        for message in wire.messages(records):
            channel.send(message)
        if channel.unsent_bytes:
            self._epoll.modify(channel.fileno(), select.EPOLLIN | select.EPOLLOUT)
        else:
            self.is_stuck = False

    def flush(self) -> bool:
        """Whether everything given to `send` is on its way."""
        channel = self._channel
        if channel is None:
            return False
        if self.is_stuck:
            is_out = channel.flush()
            self._epoll.modify(channel.fileno(), select.EPOLLIN if is_out else select.EPOLLIN | select.EPOLLOUT)
            self.is_stuck = not is_out
        return not self.is_stuck

    def wait(self, timeout_s: float | None) -> bool:
        """Sleep until a message, a wake-up or the time; False: the connection was lost."""
        if self._channel is None:
            until_s = max(0.0, self._retry_at - time.monotonic())
            timeout_s = until_s if timeout_s is None else min(timeout_s, until_s)
        if self._arrived:
            timeout_s = 0.0
        for fd, events in self._epoll.poll(timeout_s):
            if fd == self._wake_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
            elif events != select.EPOLLOUT and self._channel is not None:
                try:
                    self._arrived += self._channel.receive()
                except RemoteProtocolError as err:
                    self._error = err
        if self._channel is None:
            if time.monotonic() >= self._retry_at:
                self._open()
            return True
        return not self._channel.closed or bool(self._arrived)

    def receive(self) -> list[Record]:
        """The records of one message; none: nothing is there. Raises RemoteProtocolError."""
        if self._arrived:
            return wire.decode(*self._arrived.popleft())
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return []

    def fileno(self) -> int:
        """Readable when `wait` has something to do."""
        return self._epoll.fileno()

    def retry_s(self) -> float | None:
        """Seconds until the next try to reach the balancer, which a `wait` makes; None: it is reached."""
        return None if self._channel is not None else max(0.0, self._retry_at - time.monotonic())

    def close(self, farewell: Record) -> None:
        """Say so and close."""
        self.send([farewell])
        self._end()
        self._epoll.close()

    def abandon(self) -> None:
        """In a forked child: the parent's end stays open, and this copy of it does not keep it so."""
        if self._channel is not None:
            self._channel.close()  # and not out of the epoll, which is the parent's too
        self._epoll.close()
