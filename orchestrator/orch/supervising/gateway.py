"""The supervisor's side of the gateways: their processes, and what they are told."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from orch import keys
from orch.config import Config
from orch.link import Message
from orch.supervising.kept import Kept, Printer
from orch.supervising.listeners import Listeners
from orch.supervising.reactor import Reactor


class Owner(Printer, Protocol):
    """What the gateways tell their supervisor."""

    def gateway_failed(self, message: Message) -> None:
        """One cannot start; it is tried again."""

    def gateway_died(self, name: str, how: str) -> None:
        """A process ended that was not told to: it is started again."""

    def gateways_gone(self) -> None:
        """All of them ended, as they were told to."""


class _Gateway(Kept):
    def __init__(
        self,
        number: int,
        sockets: Sequence[socket.socket],
        address: str,
        environ: Mapping[str, str],
        reactor: Reactor,
        owner: Gateways,
        clock: Callable[[], float],
    ) -> None:
        fds = [each.fileno() for each in sockets]
        super().__init__(f"g{number}", "orch_gateway", fds, environ, reactor, owner.owner, clock)
        self._all = owner
        self.address = address
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
            case "left":
                self._all.left(self.name)
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
        self._leaving: set[str] = set()  # gateways that still answer what is new to them
        self._then: Callable[[], None] | None = None  # to be called when these are done
        self._listeners = listeners
        self.ever_bound = False  # one of them has served
        self.stopped = False
        self.outlived = listeners is not None and listeners.outlives  # by the address that all of them have
        pairs = zip(listeners.sockets, listeners.addresses, strict=True) if listeners is not None else ()
        self.url = listeners.url if listeners is not None else None
        self._each = [
            _Gateway(number, sockets, address, environ, reactor, self, clock)
            for number, (sockets, address) in enumerate(pairs)
        ]
        for gateway in self._each:
            gateway.start()

    @property
    def facts(self) -> list[dict[str, Any]]:
        """One row for each, for the status."""
        return [
            {
                "id": each.name,
                "pid": each.pid,
                "restarts": each.restarts,
                "url": self.url,
                "address": each.address,
                "http": each.http,
            }
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
        elif self._then is not None:
            gateway.send(do="leave")

    def send_models(self, models: Sequence[Message]) -> None:
        """What every model is, and whether it serves; the whole, never a difference. Sent when it has changed."""
        if models != self._models:
            self._models = models
            for each in self._each:
                each.send(do="models", models=list(models))

    def drain(self, then: Callable[[], None]) -> None:
        """Refuse what is new, and call `then`.

        Listeners that were handed over have new connections wait for our successor instead, none refused; `then` is
        called when the connections that we have are gone.
        """
        if self._listeners is None or not self._listeners.given or not self.ever_bound:
            self._refuse()
            then()
            return
        self._then = then
        self._leaving = {each.name for each in self._each if each.pid is not None}
        self._listeners.unlink()
        for each in self._each:
            each.send(do="leave")
        self.left("")

    def left(self, name: str) -> None:
        """A gateway has no connection any more, or no process."""
        self._leaving.discard(name)
        if self._then is not None and not self._leaving and not self._draining:
            self._refuse()
            self._then()

    def _refuse(self) -> None:
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
        self.left(gateway.name)
        if not self.stopped:
            self.owner.gateway_died(gateway.name, how)
        elif self.all_gone:
            self.owner.gateways_gone()


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
        "handed_over": listeners.given,
    }
