"""Sending to peers that may not be reading: one packed message per peer and pass, an outbox where the pipe is full."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import zmq

from orch import payload, wire
from orch.wire import AnyRecord, Piece, as_piece

# What may wait for one peer beyond ZeroMQ's own pipe. A peer that lets more pile up does not read; it is dropped.
MAX_OUTBOX_BYTES = 64 * 1024 * 1024
# Plain integers, because to join two of pyzmq's flags costs as much as to send.
NOBLOCK, MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)


class Outlet:
    """Owns what is on its way out of one ROUTER socket.

    The socket has ROUTER_MANDATORY, so a full pipe (EAGAIN) and a peer that is gone (EHOSTUNREACH) are told apart;
    without it ROUTER drops both in silence (zmq_setsockopt(3)).
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket
        self._pending: dict[bytes, list[Piece]] = {}
        self._outboxes: dict[bytes, deque[list[Any]]] = {}
        self._outbox_bytes: dict[bytes, int] = {}

    def put(self, route: bytes, record: AnyRecord) -> None:
        """Send with the next `flush`."""
        piece = as_piece(record)
        pending = self._pending.get(route)
        if pending is None:
            self._pending[route] = [piece]
        else:
            pending.append(piece)

    def put_all(self, route: bytes, pieces: Iterable[Piece]) -> None:
        """Send these, in order, with the next `flush`."""
        self._pending.setdefault(route, []).extend(pieces)

    def flush(self) -> list[bytes]:
        """Send what is put and what waits in outboxes. Returns the routes to give up: gone, or not reading."""
        failed = [route for route in list(self._outboxes) if not self._retry(route)]
        if self._pending:
            pending, self._pending = self._pending, {}
            for route, pieces in pending.items():
                # Every message is sent or kept, also behind one that could not be.
                if route not in failed and not all([self._send(route, each) for each in wire.pack(pieces)]):  # noqa: C419
                    failed.append(route)
        for route in failed:
            self.drop(route)
        return failed

    @property
    def blocked(self) -> bool:
        """Whether an outbox waits for its peer to read."""
        return bool(self._outboxes)

    def drop(self, route: bytes) -> None:
        """Forget what was meant for a peer."""
        self._pending.pop(route, None)
        self._outboxes.pop(route, None)
        self._outbox_bytes.pop(route, None)

    def _send(self, route: bytes, message: list[Any]) -> bool:
        if route in self._outboxes:
            return self._keep(route, message)
        try:
            self._write(route, message)
        except zmq.Again:
            return self._keep(route, message)
        except zmq.ZMQError:
            return False
        return True

    def _write(self, route: bytes, message: list[Any]) -> None:
        send = self.socket.send
        send(route, MORE)
        last = len(message) - 1
        for i, frame in enumerate(message):
            # The pipe took the route, so it takes the whole message: a high-water mark counts messages.
            send(frame, MORE if i < last else NOBLOCK, copy=not i)

    def _keep(self, route: bytes, message: list[Any]) -> bool:
        box = self._outboxes.setdefault(route, deque())
        held = self._outbox_bytes.get(route, 0)
        size = payload.nbytes(message[0], message[1:])
        if held and held + size > MAX_OUTBOX_BYTES:
            return False
        box.append(message)
        self._outbox_bytes[route] = held + size
        return True

    def _retry(self, route: bytes) -> bool:
        box = self._outboxes[route]
        while box:
            try:
                self._write(route, box[0])
            except zmq.Again:
                return True
            except zmq.ZMQError:
                return False
            message = box.popleft()
            self._outbox_bytes[route] -= payload.nbytes(message[0], message[1:])
        del self._outboxes[route], self._outbox_bytes[route]
        return True
