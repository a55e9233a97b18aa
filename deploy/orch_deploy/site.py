"""What generated files have to know of one instance, and of where it is to be seen. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orch.config import Config


@dataclass(frozen=True, slots=True)
class Server:
    """One process that speaks HTTP. address: `host:port`, or `unix:/path`. draining: it takes no new request."""

    id: str
    address: str
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """One instance and its servers: command workers, or orch's own gateways."""

    config: Config
    servers: tuple[Server, ...]

    @property
    def name(self) -> str:
        """The instance's."""
        return self.config.name


def site(config: Config, servers: Sequence[Server]) -> Site:
    """Of a running instance (the servers that it tells), or of a configured one."""
    return Site(config, tuple(servers))
