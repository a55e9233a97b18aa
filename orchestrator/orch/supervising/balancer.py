"""The supervisor's side of the balancer: started first, started again whenever it dies, told the whole worker set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from orch import runtime
from orch.config import Config
from orch.link import Message
from orch.planning.host import read_host
from orch.supervising.kept import Kept, Printer
from orch.supervising.reactor import Reactor

# The arena is at most this part of the host's memory, or of the control group's.
MEMORY_SHARE: Final = 8


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


def settings_of(config: Config, directory: Path, *, pinned_memory: bool) -> dict[str, Any]:
    """What a balancer is told first. pinned_memory: there are GPUs, which read from such memory directly."""
    return {
        "front": [runtime.front_endpoint(directory), *([config.listen] if config.listen else [])],
        "back": runtime.back_path(directory),
        "models": [config.title],
        "queue_limit": config.queue_limit,
        "queue_bytes": config.queue_bytes,
        "client_queue_limit": config.client_queue_limit,
        "max_attempts": config.max_attempts,
        "max_payload_bytes": config.max_payload_bytes,
        "arena": str(directory / runtime.ARENA),
        "shared_memory_bytes": min(config.shared_memory_bytes, read_host().memory_total_bytes // MEMORY_SHARE),
        "pinned_memory": pinned_memory,
    }
