"""What generated files have to know of one instance, and of where it is to be seen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from orch.config import Config
from orch.supervising.servers import Server

__all__ = ["Server", "Site", "configured_workers", "site"]


@dataclass(frozen=True, slots=True)
class Site:
    """One instance and its servers: command workers, or orch's own gateways.

    live: a running instance has told them; otherwise they are those that it is configured to have.
    """

    config: Config
    servers: tuple[Server, ...]
    live: bool = True

    @property
    def name(self) -> str:
        """The instance's."""
        return self.config.name

    @property
    def kind(self) -> Literal["command", "model"]:
        """Whether the servers are the user's own, or orch's gateways."""
        return "command" if self.config.command else "model"

    @property
    def health(self) -> str | None:
        """The path that answers whether a server is well; None: that it accepts a connection has to be enough."""
        return self.config.health if self.kind == "command" else "/healthz"


def configured_workers(config: Config) -> list[Server]:
    """A command's servers at the ports that they try first; of a number that is not settled yet, the first."""
    count = config.replicas if isinstance(config.replicas, int) else 1
    return [Server(f"r{number}", f"127.0.0.1:{config.first_port + number}") for number in range(count)]


def site(config: Config, servers: Sequence[Server], *, live: bool = True) -> Site:
    """Of a running instance (the servers that it tells), or of a configured one."""
    return Site(config, tuple(servers), live)
