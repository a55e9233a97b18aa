"""How the replicas of a GPU share it: at the same time, through an MPS server of ours, or in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orch.config import Config
from orch.errors import ConfigError
from orch.planning.cards import Gpu
from orch.supervising import mps
from orch.supervising.events import Event
from orch.supervising.mps import Mps
from orch.supervising.reactor import Reactor


class Owner(Protocol):
    """What becomes of MPS, told to the supervisor."""

    def report(self, event: Event) -> None:
        """Something that a person may want to know."""

    def printed(self, name: str, line: str) -> None:
        """The daemon has printed a line."""

    def mps_died(self, what: str) -> None:
        """The daemon, or its server, is gone: every client on its GPUs is lost."""


class Sharing:
    """Owns whether there is an MPS daemon, and that daemon."""

    def __init__(
        self,
        config: Config,
        gpus: Sequence[Gpu],
        directory: Path,
        environ: Mapping[str, str],
        reactor: Reactor,
        owner: Owner,
    ) -> None:
        self._mode, self._one = config.mps, config.replicas == 1
        self._gpus, self._directory, self._environ = gpus, directory, environ
        self._reactor, self._owner = reactor, owner
        self.mps: Mps | None = None
        self.facts: dict[str, Any] = {"state": "off", "reason": "no GPU"}

    @property
    def max_clients(self) -> int | None:
        """Replicas that one GPU takes because of it; None where there is no daemon."""
        return None if self.mps is None else mps.MAX_CLIENTS

    def start(self, *, must: bool) -> None:
        """Before replica 0, where it is asked for, or may help and can be had; else say why replicas run in turns.

        must: nothing serves yet, so that a daemon asked for and not to be had ends the start.

        Raises:
            ConfigError: it must, and cannot.
        """
        if not self._gpus:
            if self._mode == "on" and must:
                raise ConfigError("mps = on: the replicas run on no GPU; use --mps auto to go on without")
            return
        if self._mode == "off" or (self._mode == "auto" and self._one):
            self.facts = {"state": "off", "reason": "--mps off" if self._mode == "off" else "one replica needs none"}
            return
        reason = mps.why_not(self._gpus)
        if reason is None:
            try:
                uuids = [each.uuid for each in self._gpus]
                self.mps = Mps(self._directory, uuids, self._environ, self._reactor, self._owner)
                self.mps.wait_until_up()
            except mps.UNANSWERED as err:
                reason = f"the control daemon did not start: {err}"
                self.stop()
        self.facts = {"state": "on" if reason is None else "off", "reason": reason}
        if reason is None:
            self._owner.report(Event("mps", "CUDA MPS is on: the replicas of a GPU run at the same time"))
        elif self._mode == "on" and must:
            raise ConfigError(f"mps = on: {reason}; use --mps auto to go on without")
        else:
            text = f"CUDA MPS cannot be used ({reason}): the replicas of a GPU run in turns"
            self._owner.report(Event("warning", text))

    def stop(self) -> None:
        """End the daemon, if there is one."""
        if self.mps is not None:
            self.mps.close()
            self.mps = None
