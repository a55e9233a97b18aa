"""A process that is started again whenever it dies: the balancer, a gateway."""

from __future__ import annotations

import random
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orch.errors import Exit
from orch.link import Message
from orch.supervising import restart
from orch.supervising.output import Lines
from orch.supervising.process import Child
from orch.supervising.reactor import Reactor

STOP_S = 3.0  # to send its last answers; then it is killed


class Printer(Protocol):
    """Who gets the lines of all processes."""

    def printed(self, name: str, line: str) -> None:
        """It has printed a line."""


class Kept(ABC):
    """Owns one process. fds: descriptors that it inherits, and stay ours. To be started once `greet` can be called."""

    def __init__(
        self,
        name: str,
        module: str,
        fds: Sequence[int],
        environ: Mapping[str, str],
        reactor: Reactor,
        printer: Printer,
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self._module, self._fds, self._environ = module, fds, environ
        self._reactor, self._printer, self._clock = reactor, printer, clock
        self._child: Child | None = None
        self._started_at = 0.0
        self._flaps = 0
        self._start_at: float | None = None
        self._kill_at: float | None = None
        self.restarts = -1
        self.stopped = False

    @abstractmethod
    def greet(self) -> None:
        """Tell a new process everything it has to know."""

    @abstractmethod
    def said(self, message: Message) -> None:
        """A message over its link."""

    @abstractmethod
    def died(self, how: str) -> None:
        """Its process ended, as it was told to (`stopped`) or not."""

    @property
    def pid(self) -> int | None:
        """Its process, if it has one now."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start a process and tell it everything.

        Raises:
            OSError: no descriptor, process or memory to be had for the first; a later one is tried again.
        """
        self._start_at = None
        self._started_at = self._clock()
        self.restarts += 1
        try:
            child = self._child = Child(self._module, self._fds, self._environ)
        except OSError as err:
            if not self.restarts:
                raise
            self._again(Exit.BUG)
            self.died(f"could not be started ({err.strerror})")
            return
        lines = Lines(child.output.read, lambda line: self._printer.printed(self.name, line))
        self._reactor.add_lines(child.output, lines)
        self._reactor.add(child.link, self._read)
        self._reactor.add(child.pidfd, lambda: self._ended(lines))
        self.greet()

    def send(self, **message: Any) -> None:
        """Say something; while it is dead, nothing is heard, and a new one is told the state anyway."""
        if self._child is not None:
            self._child.link.send(**message)

    def kill(self) -> None:
        """End a process that does not answer; another is started."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it for good."""
        self.stopped = True
        self._start_at = None
        if self._child is not None:
            self.send(do="stop")
            self._kill_at = self._clock() + STOP_S

    def tick(self, now: float) -> None:
        """Start it again, or kill it, when that is due."""
        if self._start_at is not None and now >= self._start_at:
            self.start()
        if self._kill_at is not None and now >= self._kill_at and self._child is not None:
            self._kill_at = None
            self._child.signal(signal.SIGKILL)
        if self._child is not None and self._child.link.unsent:
            self._child.link.flush()

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._start_at if self._start_at is not None else self._kill_at

    def _read(self) -> None:
        child = self._child
        if child is None:
            return
        for message in child.link.receive():
            self.said(message)
        if child.link.closed:
            self._reactor.remove(child.link)

    def _ended(self, lines: Lines) -> None:
        child = self._child
        assert child is not None
        self._read()
        code = child.reap()
        lines.drain()
        for fileobj in (child.link, child.output, child.pidfd):
            self._reactor.remove(fileobj)
        child.close()
        self._child = None
        if not self.stopped:
            self._again(code)
        self.died(f"died of signal {-code}" if code < 0 else f"exited with code {code}")

    def _again(self, code: int) -> None:
        now = self._clock()
        self._flaps = 0 if now - self._started_at >= restart.HEALTHY_S else self._flaps + 1
        # Without it nothing is served: the first death is answered at once, later ones are spaced.
        delay = restart.delay_s(max(0, self._flaps - 1), code, is_last=True, jitter=random.random())
        self._start_at = now + (delay or 0.0)
