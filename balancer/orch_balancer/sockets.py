"""The two ROUTER sockets: how they are set up, and how a message is read from one."""

from __future__ import annotations

import socket as sockets
from collections.abc import Collection
from typing import Any

import zmq

from orch import wire
from orch.errors import AddressInUse

# Messages read from one socket in one pass. A loop that read everything first left one client unanswered for 15 s
# beside a flooding one; with 16 it waited 69 ms.
MAX_PASS = 16
# Messages that libzmq takes for one peer that does not read them; from then on its outbox counts the bytes.
SNDHWM = 8
# A TCP peer that is silent this long is gone; a local one is watched by its process.
HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 15_000
LINGER_MS = 1_000
# Plain integers: looked up and converted once.
NOBLOCK, RCVMORE = int(zmq.NOBLOCK), int(zmq.RCVMORE)


def bind(
    context: zmq.Context[zmq.Socket[bytes]], endpoints: list[str], rcvhwm: int, max_payload_bytes: int
) -> zmq.Socket[bytes]:
    """A listening ROUTER.

    Raises:
        AddressInUse: one of the endpoints cannot be had.
    """
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.RCVHWM, rcvhwm)
    socket.setsockopt(zmq.SNDHWM, SNDHWM)
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    # A backstop: libzmq answers a larger message by dropping the connection, so the SDK refuses before.
    socket.setsockopt(zmq.MAXMSGSIZE, 2 * max_payload_bytes + wire.MAX_INLINE_BYTES)
    if any(endpoint.startswith("tcp:") for endpoint in endpoints):
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    for endpoint in endpoints:
        if endpoint.startswith("ipc://") and _is_listened_to(endpoint.removeprefix("ipc://")):
            raise AddressInUse(f"cannot listen on {endpoint}: another process does; choose another --listen")
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as err:
            raise AddressInUse(f"cannot listen on {endpoint}: {err.strerror}; choose another --listen") from err
    return socket


def _is_listened_to(path: str) -> bool:
    """Whether a process is there: libzmq takes a path over even from the living."""
    with sockets.socket(sockets.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def receive(socket: zmq.Socket[bytes], known: Collection[bytes]) -> tuple[bytes, Any, list[zmq.Frame]] | None:
    """Route, head and further frames of the next message, or None.

    The head of a known route is bytes; that of an unknown one is a frame, which tells its sender's address.
    """
    try:
        route = socket.recv(NOBLOCK)
    except zmq.Again:
        return None
    head = socket.recv(copy=route in known)
    frames: list[zmq.Frame] = []
    while socket.getsockopt(RCVMORE):
        frames.append(socket.recv(copy=False))
    return route, head, frames
