"""Who is at the other end of a local connection, and whether that process still lives."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import NamedTuple

import zmq


class Peer(NamedTuple):
    """Credentials of an ipc peer, as the kernel took them at connect (SO_PEERCRED). pid 0: in another pid namespace."""

    uid: int
    pid: int


def peer_of(frame: zmq.Frame) -> Peer | None:
    """The sender of a received frame, or None over TCP.

    libzmq appends ":uid:gid:pid" to the Peer-Address of an ipc connection.
    """
    parts = str(frame.get("Peer-Address")).rsplit(":", 3)
    if len(parts) != len(("address", "uid", "gid", "pid")) or not all(part.isdigit() for part in parts[1:]):
        return None
    address, uid, _gid, pid = parts
    if address.replace(".", "").isdigit():  # an IPv4 address with a port has one number after the colon, not three
        return None
    return Peer(int(uid), int(pid))


class Watch:
    """One epoll for everything that is no ZeroMQ socket: the loop polls its single descriptor however many there are.

    Owns the pidfds.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._pidfds: dict[int, int] = {}
        self._on_death: dict[int, list[Callable[[int], None]]] = {}  # by pid

    def fileno(self) -> int:
        """For the poller."""
        return self._epoll.fileno()

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` when `fd` is readable."""
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def watch_process(self, pid: int, on_death: Callable[[int], None]) -> bool:
        """Call `on_death(pid)` once, when the process is gone. False: it is gone already."""
        if pid in self._pidfds:
            if on_death not in self._on_death[pid]:
                self._on_death[pid].append(on_death)
            return True
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError:  # no pidfd here (ENOSYS, EPERM under a sandbox): other signs of death remain
            return True

        def died() -> None:
            callbacks = self._on_death[pid]
            self._close(pid)
            for callback in callbacks:
                callback(pid)

        self._pidfds[pid], self._on_death[pid] = fd, [on_death]
        self.add(fd, died)
        return True

    def watches(self, pid: int) -> bool:
        """Whether a process's death will be noticed."""
        return pid in self._pidfds

    def forget_process(self, pid: int, on_death: Callable[[int], None]) -> None:
        """Do not call `on_death` for it any more; others may still watch it."""
        callbacks = self._on_death.get(pid, [])
        if on_death in callbacks:
            callbacks.remove(on_death)
            if not callbacks:
                self._close(pid)

    def _close(self, pid: int) -> None:
        fd = self._pidfds.pop(pid)
        del self._on_death[pid], self._handlers[fd]
        os.close(fd)  # which also takes it out of the epoll

    def dispatch(self) -> None:
        """Call the handlers of what is readable now."""
        for fd, _ in self._epoll.poll(0):
            if handler := self._handlers.get(fd):
                handler()
