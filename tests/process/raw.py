"""A peer on the bare wire, over either transport: what a client or a worker would never send, this one can."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import zmq

from orch import channel, wire
from orch.channel import Incoming
from orch.wire import Kind, Record
from tests.process.harness import FACTOR, moment

PATIENCE_S = 5.0


class Raw(Protocol):
    """One connection, which may be lost without a word."""

    def send(self, message: Sequence[bytes]) -> None:
        """The frames of a message, the first of them its head, whatever they are. Lost where nobody reads."""

    def receive(self, within_s: float = PATIENCE_S) -> list[Record] | None:
        """The records of the next message; None: none came in that time, or the connection has ended."""

    def close(self) -> None:
        """Without a goodbye."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def connect(endpoint: str, *, narrow: bool = False) -> Raw:
    """A connection to a balancer's endpoint, for use with `with`. narrow: with the smallest buffers there are."""
    return Local(endpoint.removeprefix("unix://")) if endpoint.startswith("unix://") else Remote(endpoint, narrow)


def greeting(session: bytes) -> list[bytes]:
    """HELLO, as a message."""
    return [wire.pack_head([Record(Kind.HELLO, body=wire.write_map(session=session, sdk="test", window=0))])]


class _Closing:
    def close(self) -> None:
        """Of a subclass."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Local(_Closing):
    """Over a Unix socket."""

    def __init__(self, path: str) -> None:
        self._channel = channel.connect(path)
        self._arrived: deque[Incoming] = deque()

    def send(self, message: Sequence[bytes]) -> None:
        done = self._channel.send(message)
        until = moment() + PATIENCE_S * FACTOR
        while not done and moment() < until:
            self._poll(select.POLLOUT, 0.1)
            done = self._channel.flush()

    def receive(self, within_s: float = PATIENCE_S) -> list[Record] | None:
        until = moment() + within_s * FACTOR
        while not self._arrived and not self._channel.closed and (left_s := until - moment()) > 0:
            if self._poll(select.POLLIN, left_s):
                self._arrived += self._channel.receive()
        return wire.decode(*self._arrived.popleft()) if self._arrived else None

    def _poll(self, events: int, within_s: float) -> Any:
        poll = select.poll()
        poll.register(self._channel.fileno(), events)
        return poll.poll(1000 * within_s)

    def close(self) -> None:
        self._channel.close()


class Remote(_Closing):
    """Over ZeroMQ."""

    def __init__(self, endpoint: str, narrow: bool) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        if narrow:
            self._socket.setsockopt(zmq.RCVHWM, 1)
            self._socket.setsockopt(zmq.RCVBUF, 4096)
        self._socket.setsockopt(zmq.SNDTIMEO, int(1000 * PATIENCE_S * FACTOR))
        self._socket.connect(endpoint)

    def send(self, message: Sequence[bytes]) -> None:
        self._socket.send_multipart(message)

    def receive(self, within_s: float = PATIENCE_S) -> list[Record] | None:
        if not self._socket.poll(int(1000 * within_s * FACTOR)):
            return None
        head, *frames = self._socket.recv_multipart()
        return wire.decode(head, frames)

    def close(self) -> None:
        self._context.destroy(linger=500)
