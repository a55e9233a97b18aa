"""Clients that speak ZeroMQ, over TCP or ipc: one ROUTER socket."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq

from orch import payload, wire
from orch.errors import AddressInUse
from orch_balancer.local import Side, is_listened_to
from orch_balancer.peers import Peer

# Messages read from the socket in one pass. A loop that read everything first left one client unanswered for 15 s
# beside a flooding one; with 16 it waited 69 ms.
MAX_PASS = 16
# Messages that libzmq takes from one peer before it is our turn: with the bound on a pass, what a flood can pile up;
# and for one that does not read: from then on its outbox counts the bytes.
RCVHWM, SNDHWM = 64, 8
# A TCP peer that is silent this long is gone; a local one is watched by its process.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000
LINGER_MS = 1_000
# The sender of a frame that came over the oldest of ZeroMQ's protocols (ZMTP 1.0), which says nothing of it.
NOBODY = Peer(-1, 0)
# Plain integers: looked up and converted once, because to join two of pyzmq's flags costs as much as to send.
NOBLOCK, MORE, RCVMORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.RCVMORE)


class RemoteRoute:
    """One peer of the ROUTER, and what waits for its pipe to take it."""

    def __init__(self, remote: Remote, name: bytes, peer: Peer | None) -> None:
        self.peer = peer
        self.name = name
        self.unsent_bytes = 0
        self._remote = remote
        self._outbox: deque[Sequence[Any]] = deque()
        self._closed = False

    def send(self, message: Sequence[Any]) -> bool | None:
        """Send; False: it waits for room; None: nobody is there any more."""
        if self._closed:
            return None
        if not self._outbox:
            try:
                self._remote.write(self.name, message)
            except zmq.Again:
                pass
            except zmq.ZMQError:
                return None
            else:
                return True
        self._outbox.append(message)
        self.unsent_bytes += payload.nbytes(message[0], message[1:])
        self._remote.blocked[self.name] = self
        return False

    def retry(self) -> None:
        """Send what was kept, as far as the pipe takes it."""
        while self._outbox:
            try:
                self._remote.write(self.name, self._outbox[0])
            except zmq.Again:
                return
            except zmq.ZMQError:
                self.close()
                return
            message = self._outbox.popleft()
            self.unsent_bytes -= payload.nbytes(message[0], message[1:])
        self._remote.blocked.pop(self.name, None)

    def close(self) -> None:
        """Forget it, and what was meant for it; its peer is a stranger from now on."""
        if self._closed:  # the peer may have another route by now
            return
        self._closed = True
        self._outbox.clear()
        self.unsent_bytes = 0
        self._remote.forget(self.name)


class Remote:
    """Owns the ROUTER and its routes.

    It has ROUTER_MANDATORY, so a full pipe (EAGAIN) and a peer that is gone (EHOSTUNREACH) are told apart; without it
    ROUTER drops both in silence (zmq_setsockopt(3)).

    Raises:
        AddressInUse: one of the endpoints cannot be had.
    """

    def __init__(self, endpoints: Sequence[str], max_payload_bytes: int, side: Side) -> None:
        self._side = side
        self._routes: dict[bytes, RemoteRoute] = {}
        self.blocked: dict[bytes, RemoteRoute] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.RCVHWM, RCVHWM)
        self.socket.setsockopt(zmq.SNDHWM, SNDHWM)
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        # A backstop: libzmq answers a larger message by dropping the connection, so the SDK refuses before.
        self.socket.setsockopt(zmq.MAXMSGSIZE, 2 * max_payload_bytes + wire.MAX_INLINE_BYTES)
        if any(endpoint.startswith("tcp:") for endpoint in endpoints):
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        try:
            for endpoint in endpoints:
                self._bind(endpoint)
        except AddressInUse:
            self.close(lingers=False)
            raise

    def _bind(self, endpoint: str) -> None:
        # libzmq takes a path over even from the living.
        if endpoint.startswith("ipc://") and is_listened_to(endpoint.removeprefix("ipc://")):
            raise AddressInUse(f"cannot listen on {endpoint}: another process does; choose another --listen")
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as err:
            raise AddressInUse(f"cannot listen on {endpoint}: {err.strerror}; choose another --listen") from err

    def read(self, limit: int = MAX_PASS) -> None:
        """One bounded pass."""
        receive = self.socket.recv
        for _ in range(limit):
            try:
                name = receive(NOBLOCK)
            except zmq.Again:
                return
            route = self._routes.get(name)
            if route is None:
                first = receive(copy=False)  # a frame, which tells its sender's address
                route = self._routes[name] = RemoteRoute(self, name, peer_of(first))
                head = first.bytes
            else:
                head = receive()
            frames: list[zmq.Frame] = []
            while self.socket.getsockopt(RCVMORE):
                frames.append(receive(copy=False))
            self._side.take(route, head, frames)

    def write(self, name: bytes, message: Sequence[Any]) -> None:
        """One message to one peer. Raises zmq.Again where its pipe is full, another zmq.ZMQError where it is gone."""
        send = self.socket.send
        send(name, MORE)
        last = len(message) - 1
        for i, frame in enumerate(message):
            # The pipe took the route, so it takes the whole message: a high-water mark counts messages.
            send(frame, MORE if i < last else NOBLOCK, copy=not i)

    def retry(self) -> None:
        """The pipes' room has no wake-up of its own."""
        for route in list(self.blocked.values()):
            route.retry()

    def forget(self, name: bytes) -> None:
        """It is a stranger from now on."""
        self._routes.pop(name, None)
        self.blocked.pop(name, None)

    def close(self, *, lingers: bool) -> None:
        """End every connection; `lingers`: after what was sent is out."""
        self._context.destroy(linger=LINGER_MS if lingers else 0)


def peer_of(frame: zmq.Frame) -> Peer | None:
    """The sender of a received frame, or None over TCP.

    libzmq appends ":uid:gid:pid" to the Peer-Address of an ipc connection.
    """
    try:
        address = str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return NOBODY
    parts = address.rsplit(":", 3)
    if len(parts) != len(("address", "uid", "gid", "pid")) or not all(part.isdigit() for part in parts[1:]):
        return None
    address, uid, _gid, pid = parts
    if address.replace(".", "").isdigit():  # an IPv4 address with a port has one number after the colon, not three
        return None
    return Peer(int(uid), int(pid))
