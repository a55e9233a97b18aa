"""The supervisor's side of the gateways: their listening sockets, their processes, and what they are told.

The sockets are ours and outlive a gateway: while one starts again, new connections wait in the kernel, and none is
refused.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from orch import keys
from orch.config import Config
from orch.errors import AddressInUse, ConfigError
from orch.http_settings import DEFAULT_HOST, DEFAULT_PORT, PORTS_TRIED, check_exposure, is_local, split
from orch.link import Message
from orch.supervising.kept import Kept, Printer
from orch.supervising.reactor import Reactor

BACKLOG: Final = 1024


class Owner(Printer, Protocol):
    """What the gateways tell their supervisor."""

    def gateway_failed(self, message: Message) -> None:
        """One cannot start; it is tried again."""

    def gateway_died(self, name: str, how: str) -> None:
        """A process ended that was not told to: it is started again."""

    def gateways_gone(self) -> None:
        """All of them ended, as they were told to."""


class Listeners:
    """Owns the listening sockets, one for each gateway, all of the same address.

    Raises:
        ConfigError: the address may not be listened on.
        AddressInUse: somebody else does.
    """

    def __init__(self, config: Config, *, has_keys: bool) -> None:
        host, port = split(config.http) if config.http != "auto" else (DEFAULT_HOST, DEFAULT_PORT)
        check_exposure(config, "http", host, has_keys=has_keys)
        self.local = is_local(host)
        if config.grpc != "off":
            check_exposure(config, "grpc", split(config.grpc)[0], has_keys=has_keys)
            self.local = self.local and is_local(split(config.grpc)[0])
        self.moved = False
        self.sockets: list[socket.socket] = []
        for tried in range(PORTS_TRIED if config.http == "auto" else 1):
            try:
                self.sockets = _listen(host, port + tried, config.gateways)
            except OSError as err:
                reason = err.strerror or str(err)
            else:
                self.moved = tried > 0
                break
        else:
            asked = f"http = {config.http}" if config.http != "auto" else f"no port from {port} on is free on {host}"
            raise AddressInUse(f"{asked}: {reason}; choose another --http HOST:PORT, or --no-http")
        self.scheme = "https" if config.tls_cert else "http"
        self.port: int = self.sockets[0].getsockname()[1]
        shown = DEFAULT_HOST if host == "0.0.0.0" else host  # noqa: S104  what a client of this host can use
        self.url = f"{self.scheme}://{f'[{shown}]' if ':' in shown else shown}:{self.port}"

    def close(self) -> None:
        """Listen no more."""
        for each in self.sockets:
            each.close()


class _Gateway(Kept):
    def __init__(
        self,
        number: int,
        fd: int,
        environ: Mapping[str, str],
        reactor: Reactor,
        owner: Gateways,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(f"g{number}", "orch_gateway", [fd], environ, reactor, owner.owner, clock)
        self._all = owner
        self.http: Message = {}

    def greet(self) -> None:
        self.http = {}
        self._all.greet(self)

    def said(self, message: Message) -> None:
        match message.get("event"):
            case "bound":
                self._all.ever_bound = True
            case "http":
                self.http = message["http"]
            case "failed":
                self._all.owner.gateway_failed(message)

    def died(self, how: str) -> None:
        self._all.died(self, how)


class Gateways:
    """Owns the gateways' processes. None at all (`listeners` is None) is a number of gateways, too."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        listeners: Listeners | None,
        environ: Mapping[str, str],
        reactor: Reactor,
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        self.owner = owner
        self._settings = settings
        self._models: Sequence[Message] = ()
        self._draining = False
        self.ever_bound = False  # one of them has served
        self.stopped = False
        sockets = listeners.sockets if listeners is not None else []
        self.url = listeners.url if listeners is not None else None
        self._each = [
            _Gateway(number, each.fileno(), environ, reactor, self, clock) for number, each in enumerate(sockets)
        ]
        for gateway in self._each:
            gateway.start()

    @property
    def facts(self) -> list[dict[str, Any]]:
        """One row for each, for the status."""
        return [
            {"id": each.name, "pid": each.pid, "restarts": each.restarts, "url": self.url, "http": each.http}
            for each in self._each
        ]

    @property
    def all_gone(self) -> bool:
        """Whether no process is left."""
        return all(each.pid is None for each in self._each)

    def greet(self, gateway: Kept) -> None:
        """Tell a new process what all of them were told."""
        gateway.send(settings=dict(self._settings))
        gateway.send(do="models", models=list(self._models))
        if self._draining:
            gateway.send(do="drain")

    def send_models(self, models: Sequence[Message]) -> None:
        """What every model is, and whether it serves; the whole, never a difference. Sent when it has changed."""
        if models != self._models:
            self._models = models
            for each in self._each:
                each.send(do="models", models=list(models))

    def drain(self) -> None:
        """Refuse what is new."""
        self._draining = True
        for each in self._each:
            each.send(do="drain")

    def stop(self) -> None:
        """End them for good."""
        self.stopped = True
        for each in self._each:
            each.stop()

    def tick(self, now: float) -> None:
        """Start them again, or kill them, when that is due."""
        for each in self._each:
            each.tick(now)

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return min((at for each in self._each if (at := each.next_deadline()) is not None), default=None)

    def died(self, gateway: Kept, how: str) -> None:
        """One has ended."""
        if not self.stopped:
            self.owner.gateway_died(gateway.name, how)
        elif self.all_gone:
            self.owner.gateways_gone()


def open_listeners(config: Config) -> tuple[Listeners | None, str]:
    """The sockets, if there are to be any, and what is to be said of them.

    Raises:
        ConfigError, AddressInUse: as `Listeners`, where the user has asked for the address.
    """
    if config.http == "off":
        if config.grpc != "off":
            raise ConfigError(f"grpc = {config.grpc}: the gateways serve HTTP too; give --http an address, not off")
        return None, ""
    try:
        has_keys = bool(keys.read(keys.path_of(config.name)))
        listeners = Listeners(config, has_keys=has_keys)
    except AddressInUse as err:
        if config.http != "auto":
            raise
        return None, f"serving without HTTP: {err}"
    if listeners.moved:
        return listeners, f"port {DEFAULT_PORT} is taken: HTTP is at {listeners.url} (--http chooses an address)"
    return listeners, ""


def settings_of(config: Config, listeners: Listeners, endpoint: str, control: str) -> dict[str, Any]:
    """What a gateway is told first."""
    return {
        "endpoint": endpoint,
        "control": control,
        "keys": str(keys.path_of(config.name)),
        "keys_required": not listeners.local and not config.insecure,
        "local": listeners.local,
        "max_body_bytes": config.http_max_body_bytes,
        "max_connections": config.http_max_connections,
        "keep_alive_s": config.http_keep_alive_s,
        "access_log": config.access_log,
        "cors_origin": config.cors_origin,
        "tls_cert": config.tls_cert,
        "tls_key": config.tls_key,
        "grpc": config.grpc if config.grpc != "off" else None,
        "share_grpc": config.gateways > 1,
    }


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
