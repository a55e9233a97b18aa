"""A client's connection over ZeroMQ: one DEALER socket, its monitor, and a way to be woken."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from typing import Any

import zmq

from orch import wire
from orch.wire import Record

RECONNECT_MS, MAX_RECONNECT_MS = 10, 250
LINGER_MS = 200
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000
# While the pipe is full; its room has no wake-up of its own worth a second poller.
RETRY_S = 0.005


class RemoteConnection:
    """Owns the socket; as the protocol `Connection` says."""

    def __init__(self, endpoint: str, wake_fd: int, hello: Record) -> None:
        self.endpoint = endpoint
        self.is_local = endpoint.startswith("ipc:")
        self._hello = hello
        self._wake_fd = wake_fd
        self._stuck: list[list[Any]] = []  # messages that the pipe has not taken yet
        self._context = zmq.Context()
        try:
            self._open()
        except BaseException:
            self._context.destroy(linger=0)
            raise

    def _open(self) -> None:
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, MAX_RECONNECT_MS)
        if not self.is_local:
            self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(self.endpoint)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._socket.send(wire.pack_head([self._hello]))

    def reopen(self) -> None:
        """A new socket for the same session: what the old one still holds, either way, is void."""
        self._stuck.clear()
        self._end_monitor()
        self._socket.close(linger=0)
        self._open()

    def _end_monitor(self) -> None:
        self._socket.disable_monitor()  # which only forgets our end
        self._monitor.close(linger=0)

    def send(self, records: Sequence[Record]) -> None:
        """Pack and send; what the pipe does not take now goes with the next `send` or `flush`."""
        if records:
            self._stuck += wire.messages(records)
        self.flush()

    @property
    def is_stuck(self) -> bool:
        """Whether the pipe has not taken everything yet."""
        return bool(self._stuck)

    def flush(self) -> bool:
        """Whether everything given to `send` is on its way."""
        while self._stuck:
            message = self._stuck[0]
            try:
                if len(message) == 1:
                    self._socket.send(message[0], zmq.NOBLOCK)
                else:
                    self._send_frames(message)
            except zmq.Again:
                return False
            del self._stuck[0]
        return True

    def _send_frames(self, message: list[Any]) -> None:
        last = len(message) - 1
        for i, frame in enumerate(message):
            # Only the first frame can find the pipe full; the frames are the caller's memory, sent without a copy.
            self._socket.send(frame, zmq.NOBLOCK | (zmq.SNDMORE if i < last else 0), copy=not i)

    def wait(self, timeout_s: float | None) -> bool:
        """Sleep until a message, a wake-up or the time; False: the connection was lost."""
        if self._stuck:
            timeout_s = RETRY_S if timeout_s is None else min(timeout_s, RETRY_S)
        ready = self._poller.poll(None if timeout_s is None else math.ceil(max(0.0, timeout_s) * 1000))
        lost = False
        for readable, _ in ready:
            if readable is self._socket:
                continue
            if readable is self._monitor:
                lost = True
            else:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
        return not lost

    def receive(self) -> list[Record]:
        """The records of one message; none: nothing is there.

        Raises:
            RemoteProtocolError: the balancer broke the rules.
        """
        receive = self._socket.recv
        try:
            head = receive(zmq.NOBLOCK)
        except zmq.Again:
            return []
        frames = []
        while self._socket.getsockopt(zmq.RCVMORE):
            frames.append(receive(copy=False))
        return wire.decode(head, frames)

    def close(self, farewell: Record) -> None:
        """Say so and close; also after a `reopen` that failed half-way."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send(wire.pack_head([farewell]), zmq.NOBLOCK)
        with contextlib.suppress(zmq.ZMQError):
            self._end_monitor()
        self._context.destroy(linger=LINGER_MS)

    def abandon(self) -> None:
        """In a forked child: the context is the parent's, and must not be touched."""
