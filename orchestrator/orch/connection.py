"""A client's connection to a balancer: one DEALER socket, its monitor, and a way to be woken."""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
from collections.abc import Sequence
from typing import Any

import zmq

from orch import wire
from orch.errors import ConfigError
from orch.version import __version__
from orch.wire import Kind, Record

RECONNECT_MS, MAX_RECONNECT_MS = 10, 250
LINGER_MS = 200
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000
IPC_PATH_MAX = zmq.IPC_PATH_MAX_LEN
PORT_MAX = 65_535


def check_endpoint(endpoint: str) -> str:
    """An endpoint that a client can connect to; unlike a balancer, it may go to any host.

    Raises:
        ConfigError: it is none.
    """
    path = endpoint.removeprefix("ipc://")
    num_bytes = len(os.fsencode(path))
    tcp = re.fullmatch(r"tcp://(?:[\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", endpoint, re.ASCII)
    if path != endpoint and path.startswith("/") and "\0" not in path:
        if num_bytes <= IPC_PATH_MAX:
            return endpoint
        problem = f"its path has {num_bytes} bytes and a socket's may have {IPC_PATH_MAX}"
    elif tcp and 1 <= int(tcp[1]) <= PORT_MAX:
        return endpoint
    else:
        problem = "it is not an endpoint"
    raise ConfigError(
        f"endpoint = {endpoint!r}: {problem}; allowed are ipc:///absolute/path and tcp://host:port. `orch status` "
        "shows an instance's; without an endpoint, the instance is found by its name"
    )


class Connection:
    """Owns the socket. One thread at a time.

    wake_fd: an eventfd that interrupts `wait`; it is its owner's, who closes it after this.
    """

    def __init__(self, endpoint: str, wake_fd: int) -> None:
        self.endpoint = endpoint
        self.is_local = endpoint.startswith("ipc:")
        self._session = secrets.token_bytes(wire.SESSION_BYTES)
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
        body = wire.write_map(session=self._session, sdk=__version__)
        self._socket.send(wire.pack_head([Record(Kind.HELLO, body=body)]))

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
        # Any one record fits a message.
        for run in wire.messages(records) if len(records) > 1 else [records] if records else []:
            self._stuck.append(wire.encode(run))
        self.flush()

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
        # The pipe's room has no wake-up of its own worth a second poller: it is tried again soon.
        if self._stuck:
            timeout_s = 0.005 if timeout_s is None else min(timeout_s, 0.005)
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

    def close(self) -> None:
        """Say GOODBYE and close; also after a `reopen` that failed half-way."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send(wire.pack_head([Record(Kind.GOODBYE)]), zmq.NOBLOCK)
        with contextlib.suppress(zmq.ZMQError):
            self._end_monitor()
        self._context.destroy(linger=LINGER_MS)
