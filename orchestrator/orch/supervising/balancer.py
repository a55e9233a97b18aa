"""The supervisor's side of the balancer: started first, started again whenever it dies, told the whole worker set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orch.link import Message
from orch.supervising.kept import Kept, Printer
from orch.supervising.reactor import Reactor


class Owner(Printer, Protocol):
    """What the balancer's process tells its supervisor."""

    def balancer_said(self, message: Message) -> None:
        """A message over its link."""

    def balancer_died(self, how: str) -> None:
        """Its process ended, as it was told to (`stopped`) or not."""


class Balancer(Kept):
    """Owns the balancer's process."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        pages_fd: int,
        environ: Mapping[str, str],
        reactor: Reactor,
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        super().__init__("balancer", "orch_balancer", [pages_fd], environ, reactor, owner, clock)
        self._settings = settings
        self._owner = owner
        self._workers: Sequence[Message] = ()
        self._admitting = True
        self.start()

    def greet(self) -> None:
        self.send(settings=dict(self._settings))
        self.send_workers(self._workers)
        if not self._admitting:
            self.send(do="drain")

    def said(self, message: Message) -> None:
        self._owner.balancer_said(message)

    def died(self, how: str) -> None:
        self._owner.balancer_died(how)

    def send_workers(self, workers: Sequence[Message]) -> None:
        """The whole set of workers that may open, never a difference."""
        self._workers = workers
        self.send(do="workers", workers=list(workers))

    def drain(self) -> None:
        """Admit no more."""
        self._admitting = False
        self.send(do="drain")
