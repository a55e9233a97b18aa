"""The gateways' listening sockets.

They are ours and outlive a gateway: while one starts again, new connections wait in the kernel, and none is refused.
Those that a service manager handed over outlive us, too. Beside the port that all of them share, each gateway has a
Unix socket of its own, by which a proxy tells them apart.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from orch import keys
from orch.config import Config
from orch.errors import AddressInUse, ConfigError
from orch.http_settings import DEFAULT_HOST, DEFAULT_PORT, PORTS_TRIED, check_exposure, is_local, split
from orch.supervising import inherited

BACKLOG: Final = 1024


class Listeners:
    """Owns the listening sockets: for each gateway one of the address that all share, and a Unix socket of its own.

    directory: where the Unix sockets are. given: listeners that we were started with; they replace the first kind,
    whatever the settings say, and stay open elsewhere when we close them.

    Raises:
        ConfigError: the address may not be listened on.
        AddressInUse: somebody else does.
    """

    def __init__(self, config: Config, directory: Path, given: Sequence[socket.socket] = (), *, has_keys: bool) -> None:
        self.given = bool(given)
        wanted = [dataclasses.replace(config, http=_shown(each)) for each in given] or [config]
        config = wanted[0]
        host, port = split(config.http) if config.http != "auto" else (DEFAULT_HOST, DEFAULT_PORT)
        self.local = True
        for one in wanted:
            own_host = split(one.http)[0] if one.http != "auto" else host
            check_exposure(one, "http", own_host, has_keys=has_keys)
            self.local = self.local and is_local(own_host)
        if config.grpc != "off":
            check_exposure(config, "grpc", split(config.grpc)[0], has_keys=has_keys)
            self.local = self.local and is_local(split(config.grpc)[0])
        self.moved = False
        self.sockets: list[list[socket.socket]] = []  # of each gateway, those of the shared address
        for tried in range(PORTS_TRIED if config.http == "auto" else 1):
            try:
                if given:
                    self.sockets = [[each.dup() for each in given] for _ in range(config.gateways)]
                else:
                    self.sockets = [[each] for each in _listen(host, port + tried, config.gateways)]
            except OSError as err:
                reason = err.strerror or str(err)
            else:
                self.moved = tried > 0
                break
        else:
            asked = f"http = {config.http}" if config.http != "auto" else f"no port from {port} on is free on {host}"
            raise AddressInUse(f"{asked}: {reason}; choose another --http HOST:PORT, or --no-http")
        self.scheme = "https" if config.tls_cert else "http"
        self.port: int = self.sockets[0][0].getsockname()[1]
        shown = DEFAULT_HOST if host == "0.0.0.0" else host  # noqa: S104  what a client of this host can use
        self.url = f"{self.scheme}://{f'[{shown}]' if ':' in shown else shown}:{self.port}"
        for each in given:
            each.close()  # each gateway has its own copy
        # A port that outlives us is the better way in for a proxy: it is there while we start again. But it speaks TLS
        # where we do, which Unix sockets never do.
        self.outlives = self.given and config.tls_cert is None
        self.shared = f"{f'[{shown}]' if ':' in shown else shown}:{self.port}"
        self.paths = [directory / f"g{number}.http" for number in range(config.gateways)]
        for own, path in zip(self.sockets, self.paths, strict=True):
            own.append(_listen_at(path))

    @property
    def addresses(self) -> list[str]:
        """Of each gateway, where a proxy is to find it."""
        return [self.shared if self.outlives else f"unix:{path}" for path in self.paths]

    def unlink(self) -> None:
        """Take the Unix sockets out of sight: who looks for one goes elsewhere, who has connected is served."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Listen no more."""
        for own in self.sockets:
            for each in own:
                each.close()


def open_listeners(config: Config, directory: Path) -> tuple[Listeners | None, str]:
    """The sockets, if there are to be any, and what is to be said of them. directory: the instance's.

    Raises:
        ConfigError, AddressInUse: as `Listeners`, where the user has asked for the address.
    """
    given = inherited.take(os.environ)
    if config.http == "off" or config.command:
        for each in given:
            each.close()
        if config.grpc != "off":
            raise ConfigError(f"grpc = {config.grpc}: the gateways serve HTTP too; give --http an address, not off")
        if config.command and keys.read(keys.path_of(config.name)):
            return None, f"the keys of {config.name} guard nothing: the servers of a command ask for none of orch"
        why = "a command has its own" if config.command else "http = off"
        return None, f"the service manager holds a socket for HTTP, and {why}: nobody serves it" if given else ""
    try:
        has_keys = bool(keys.read(keys.path_of(config.name)))
        listeners = Listeners(config, directory, given, has_keys=has_keys)
    except AddressInUse as err:
        if config.http != "auto":
            raise
        return None, f"serving without HTTP: {err}"
    if listeners.moved:
        return listeners, f"port {DEFAULT_PORT} is taken: HTTP is at {listeners.url} (--http chooses an address)"
    return listeners, ""


def _shown(given: socket.socket) -> str:
    """The address of a socket, in the words of the setting."""
    host, port = given.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen_at(path: Path) -> socket.socket:
    """A Unix socket for this user, and for the group that the runtime directory lets in (`runtime.RuntimeDir`)."""
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    own.bind(str(path))
    path.chmod(0o660)
    own.listen(BACKLOG)
    return own


def _listen(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets that listen on one address.

    Raises:
        OSError: somebody else does, or it is no address of this host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Sockets that share a port are of one user, perhaps another instance of ours: only one that does not share sees it.
    with socket.socket(family, socket.SOCK_STREAM) as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind((host, port))
        port = first.getsockname()[1]
        if count == 1:
            first.listen(BACKLOG)
            return [first.dup()]
    found: list[socket.socket] = []
    try:
        for _ in range(count):
            each = socket.socket(family, socket.SOCK_STREAM)
            found.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind((host, port))
            each.listen(BACKLOG)
    except OSError:
        for each in found:
            with suppress(OSError):
                each.close()
        raise
    return found
