"""The process that keeps a proxy's file true, for `orch up --nginx FILE`: a watcher of our own servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from orch.config import Config
from orch.link import Message
from orch.supervising.events import Event
from orch.supervising.kept import Kept, Printer
from orch.supervising.reactor import Reactor


class Owner(Printer, Protocol):
    """Who is told of its deaths."""

    def report(self, event: Event) -> None:
        """Show it, and keep it."""


class ProxyWriter(Kept):
    """Owns that process; none where the settings name no file. control: the socket on which it asks for the servers."""

    def __init__(
        self,
        config: Config,
        control: Path,
        environ: Mapping[str, str],
        reactor: Reactor,
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        super().__init__("nginx", "orch_deploy.watch", [], environ, reactor, owner, clock)
        self._config, self._control, self._owner = config, control, owner
        if config.nginx is not None:
            self.start()

    def greet(self) -> None:
        output = Path(str(self._config.nginx)).absolute()
        self.send(settings={"output": str(output), "control": str(self._control), "config": self._config.to_json()})

    def said(self, message: Message) -> None:
        """It has nothing to say here: it talks to the control socket, as every watcher does."""

    def died(self, how: str) -> None:
        if not self.stopped:
            self._owner.report(Event("warning", f"the writer of {self._config.nginx} {how}: started again"))
