"""The supervisor's one place to sleep: descriptors with callbacks, and signals as entries of a list."""

from __future__ import annotations

import selectors
import signal
import socket
from collections.abc import Callable, Collection
from typing import Any, Self

from orch.supervising.output import Lines


class Reactor:
    """Owns the selector and, between `__enter__` and `__exit__`, the handlers of the signals it was given."""

    def __init__(self, signals: Collection[signal.Signals] = ()) -> None:
        self.signals: list[int] = []  # arrived, not yet handled; the handlers do nothing but append here
        self._wanted = signals
        self._previous: dict[int, Any] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        self.add(self._wake, lambda: self._wake.recv(4096))

    def __enter__(self) -> Self:
        for number in self._wanted:
            self._previous[number] = signal.signal(number, lambda arrived, _frame: self.signals.append(arrived))
        self._previous_fd = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def add(self, fileobj: Any, callback: Callable[[], object]) -> None:
        """Call when readable."""
        self._selector.register(fileobj, selectors.EVENT_READ, callback)

    def add_lines(self, fileobj: Any, lines: Lines) -> None:
        """Pass on a child's output until its end."""
        self.add(fileobj, lambda: None if lines.pump() else self.remove(fileobj))

    def remove(self, fileobj: Any) -> None:
        """No more; unknown ones are ignored."""
        try:
            self._selector.unregister(fileobj)
        except (KeyError, ValueError):
            pass

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until something is readable, a signal arrives or the time is over; run the callbacks."""
        for key, _ in self._selector.select(timeout_s):
            if self._selector.get_map().get(key.fd) is key:  # an earlier callback may have removed or replaced it
                key.data()
