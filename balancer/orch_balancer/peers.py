"""What the loop waits for: readable descriptors, and processes that may die."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from typing import NamedTuple

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
# Descriptors asked for at one time. The kernel gives them in turns, so nobody starves however many there are.
MAX_READY = 64


class Peer(NamedTuple):
    """Who is at the other end, as the kernel took it at connect (SO_PEERCRED). pid 0: in another pid namespace."""

    uid: int
    pid: int


class Watch:
    """Owns the loop's one epoll, with a handler for each descriptor, and the pidfds."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, int] = {}  # events by descriptor, of those that are still to be served; the last first
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], object]] = {}
        self._pidfds: dict[int, int] = {}
        self._on_death: dict[int, list[Callable[[int], None]]] = {}  # by pid

    def fileno(self) -> int:
        """Readable when something in it is."""
        return self._epoll.fileno()

    def wait(self, timeout_s: float | None, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Sleep until something is ready, None: for as long as it takes; call the handlers of what is.

        is_enough: asked after each but the last; what is not served then comes first the next time.
        """
        ready = self._ready
        if not ready:
            ready.update(reversed(self._epoll.poll(timeout_s, MAX_READY)))
        while ready:
            fd, events = ready.popitem()
            if events & WRITABLE and (write := self._writers.get(fd)):
                write()
            # Also an error or a hang-up: to read tells which.
            if events != WRITABLE and (read := self._readers.get(fd)):
                read()
            if ready and is_enough():
                break

    @property
    def is_ready(self) -> bool:
        """Whether the last `wait` has left something."""
        return bool(self._ready)

    def add(self, fd: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever `fd` is readable, or hung up."""
        self._epoll.register(fd, READABLE)
        self._readers[fd] = handler

    def when_writable(self, fd: int, handler: Callable[[], object] | None) -> None:
        """Call `handler` whenever there is room to write as well; None: not any more."""
        if handler is None:
            if self._writers.pop(fd, None) is not None:
                self._epoll.modify(fd, READABLE)
        else:
            if fd not in self._writers:
                self._epoll.modify(fd, READABLE | WRITABLE)
            self._writers[fd] = handler

    def remove(self, fd: int) -> None:
        """Before it is closed."""
        if self._readers.pop(fd, None) is not None:
            self._writers.pop(fd, None)
            self._ready.pop(fd, None)  # another may have the number next
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

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
        del self._on_death[pid]
        self.remove(fd)
        os.close(fd)
