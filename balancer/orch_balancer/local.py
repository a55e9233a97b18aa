"""Peers on this host: who connects to a Unix socket of ours, and the channel to each."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from orch.channel import Channel, credentials
from orch.errors import AddressInUse, RemoteProtocolError
from orch_balancer.peers import Peer, Watch

log = logging.getLogger(__name__)

# Connections that may wait to be accepted; the kernel gives no more than net.core.somaxconn.
BACKLOG = 4096
# Connections accepted in one pass.
MAX_ACCEPTED = 64
# Reads of what a peer has left behind: more than the kernel holds of it.
MAX_LEFT = 64


class Side(Protocol):
    """What is done with messages: by the clients' side, or the workers'."""

    def take(self, route: Any, head: bytes, frames: Sequence[Any]) -> None:
        """A message."""

    def malformed(self, route: Any, error: RemoteProtocolError) -> None:
        """What cannot be read at all."""

    def gone(self, route: Any) -> None:
        """Its connection has ended."""


class LocalRoute:
    """A connection to one peer. Owns its channel."""

    def __init__(self, channel: Channel, peer: Peer, watch: Watch, side: Side) -> None:
        self.peer: Peer | None = peer
        self._channel = channel
        self._fd = channel.fileno()
        self._watch = watch
        self._side = side
        watch.add(self._fd, self.read)

    @property
    def unsent_bytes(self) -> int:
        """What waits for the peer to read."""
        return self._channel.unsent_bytes

    def read(self) -> None:
        """One bounded read, and what is to be done with it."""
        channel, side = self._channel, self._side
        try:
            for head, frames in channel.receive():
                side.take(self, head, frames)
        except RemoteProtocolError as err:
            side.malformed(self, err)
            self.close()
        if channel.closed:
            side.gone(self)
            self.close()

    def read_all(self) -> None:
        """Everything that the peer has said, as far as it has arrived."""
        for _ in range(MAX_LEFT):
            if self._channel.is_dry or self._channel.closed:
                break
            self.read()
        self._channel.is_dry = False

    def send(self, message: Sequence[Any]) -> bool:
        """Write; False: as far as there is room, and the rest later. Whether somebody is there, `read` finds out."""
        sent = self._channel.send(message)
        if not sent:
            self._watch.when_writable(self._fd, self._flush)
        return sent

    def _flush(self) -> None:
        if self._channel.flush():
            self._watch.when_writable(self._fd, None)

    def close(self) -> None:
        """End the connection. What was written before can still be read at the other end."""
        if self._fd >= 0:  # once: another connection may have the number by now
            self._watch.remove(self._fd)
            self._fd = -1
        self._channel.close()


class Listener:
    """Owns a listening socket.

    Raises:
        AddressInUse: somebody else listens there, or nobody can.
    """

    def __init__(self, path: str, max_frame_bytes: int, watch: Watch, side: Side) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._watch = watch
        self._side = side
        self._socket = listen(path)
        # Let go of where no descriptor is left, to take a caller in and turn it away: else it would call for ever.
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        watch.add(self._socket.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED):
            try:
                connection, _ = self._socket.accept()
            except OSError as err:
                if err.errno in (errno.EMFILE, errno.ENFILE):
                    self._turn_away(err)
                return
            pid, uid = credentials(connection)
            LocalRoute(Channel(connection, self._max_frame_bytes), Peer(uid, pid), self._watch, self._side)

    def _turn_away(self, err: OSError) -> None:
        log.error("a connection was turned away: %s; raise the limit of open files (ulimit -n)", err.strerror)
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._socket.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let nobody in any more; who is connected stays."""
        self._watch.remove(self._socket.fileno())
        self._socket.close()
        os.close(self._spare)


def listen(path: str) -> socket.socket:
    """A non-blocking socket that listens at `path`, where nobody else may. Raises AddressInUse."""
    if is_listened_to(path):
        raise AddressInUse(f"cannot listen on unix://{path}: another process does; choose another --listen")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        Path(path).unlink(missing_ok=True)  # an earlier balancer's
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError as err:
        sock.close()
        raise AddressInUse(f"cannot listen on unix://{path}: {err.strerror}; choose another --listen") from err
    sock.setblocking(False)
    return sock


def is_listened_to(path: str) -> bool:
    """Whether a process is there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
