"""A worker's connection to the balancer, and everything else that may wake it: its supervisor, and a signal."""

from __future__ import annotations

import contextlib
import logging
import select
import signal
import socket
import time
from collections.abc import Sequence

from orch import channel, wire
from orch.channel import Channel
from orch.errors import RemoteProtocolError
from orch.link import Link
from orch.wire import Record

log = logging.getLogger(__name__)

# Between two tries to reach a balancer: one that has just fallen takes a moment to come back.
RECONNECT_S = 0.05
# What is not out after this long waits for a balancer that does not read.
SEND_S = 5.0


class Connection:
    """Owns the channel, a new one for each life of the balancer. path: where the balancer listens."""

    def __init__(self, path: str, link: Link) -> None:
        self._path = path
        self._link = link
        self._channel: Channel | None = None
        self._fd = -1  # the channel's
        self.is_lost = True  # nothing more comes from this life of the balancer
        self._opened_at = 0.0
        self._wake, self._wake_writer = socket.socketpair()
        self._wake.setblocking(False)
        self._wake_writer.setblocking(False)
        signal.set_wakeup_fd(self._wake_writer.fileno(), warn_on_full_buffer=False)
        self._poll = select.poll()
        for readable in (self._link, self._wake):
            self._poll.register(readable.fileno(), select.POLLIN)

    def open(self, first: Record) -> None:
        """A new connection in place of the old, and its first record; it stays lost where nobody listens."""
        self.close()
        early_s = self._opened_at + RECONNECT_S - time.monotonic()
        if early_s > 0:
            self.wait(early_s)
        self._opened_at = time.monotonic()
        try:
            self._channel = channel.connect(self._path)
        except OSError:
            return
        self._fd, self.is_lost = self._channel.fileno(), False
        self._poll.register(self._fd, select.POLLIN)
        self.send([first])

    def close(self) -> None:
        """End it, without another word."""
        if self._channel is not None:
            self._poll.unregister(self._fd)
            self._channel.close()
            self._channel, self._fd, self.is_lost = None, -1, True

    def wait(self, timeout_s: float | None) -> bool:
        """Sleep until something happens, at most so long; whether there is something to read."""
        # The poll is in milliseconds; a batch's wait may be shorter, and is then rounded up to one.
        timeout_ms = None if timeout_s is None else max(1, round(timeout_s * 1000)) if timeout_s else 0
        readable = False
        for fd, _ in self._poll.poll(timeout_ms):
            if fd == self._fd:
                readable = True
            elif fd == self._link.fileno():
                self._link.receive()
                if self._link.closed:  # and is readable for ever
                    self._poll.unregister(fd)
            else:
                with contextlib.suppress(BlockingIOError):
                    self._wake.recv(4096)
        return readable

    def wake(self) -> None:
        """From another thread: end its `wait`."""
        with contextlib.suppress(BlockingIOError):
            self._wake_writer.send(b"\0")

    def read(self) -> list[Record]:
        """What has arrived."""
        channel = self._channel
        if channel is None:
            return []
        records: list[Record] = []
        try:
            for head, frames in channel.receive():
                records += wire.decode(head, frames)
        except RemoteProtocolError as err:
            log.error("from the balancer: %s", err)
        self.is_lost = channel.closed
        return records

    def send(self, records: Sequence[Record]) -> None:
        """Pack and send. The frames, which are the model's memory, may be used again when it returns.

        A balancer that does not read for SEND_S is given up, with the connection and all that came over it.
        """
        for message in wire.messages(records):
            if self._channel is not None and not self._channel.send(message):
                self._finish(self._channel)

    def _finish(self, unsent: Channel) -> None:
        writable = select.poll()
        writable.register(unsent.fileno(), select.POLLOUT)
        until = time.monotonic() + SEND_S
        while not unsent.flush():
            left_s = until - time.monotonic()
            if left_s <= 0:
                log.error("the balancer has not read an answer for %.0f s; connecting again", SEND_S)
                self.close()
                return
            writable.poll(left_s * 1000)
