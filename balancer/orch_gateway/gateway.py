"""One gateway: the HTTP server, the application behind it, and the link to the supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orch import keys as key_file
from orch.errors import ConfigError, Exit
from orch.link import Link, Message
from orch_gateway.about import About
from orch_gateway.accesslog import AccessLog
from orch_gateway.app import App
from orch_gateway.asking import Supervisor
from orch_gateway.counts import HttpCounts
from orch_gateway.manners import Keys, Origins, Paces
from orch_gateway.messages import Request, Response
from orch_gateway.models import Models
from orch_gateway.rates import SharedPaces
from orch_gateway.running import Running
from orch_gateway.served import Served
from orch_gateway.server import Server
from orch_gateway.service import Service
from orch_gateway.tracing import exporters

if TYPE_CHECKING:
    from orch_gateway.grpc_service import GrpcServer
    from orch_gateway.otel import Tracing

log = logging.getLogger(__name__)

# How often counts are told and the key file is looked at.
TELL_S: Final = 1.0
RATES: Final = "rates"
# Answers that are under way when the gateway is told to stop get so long; the supervisor's patience is longer.
STOP_S: Final = 2.0
# Spans that are not sent yet get so long.
FLUSH_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """What the supervisor tells first. access_log: "off", "text" or "json". local: bound to loopback.

    handed_over: somebody else holds the shared listeners, too; connections wait there until requests may be served.
    """

    endpoint: str
    control: str
    keys: str
    keys_required: bool
    local: bool
    max_body_bytes: int
    max_connections: int
    keep_alive_s: float
    access_log: str
    cors_origin: str | None
    tls_cert: str | None
    tls_key: str | None
    grpc: str | None
    share_grpc: bool
    handed_over: bool = False


class Gateway:
    """Owns everything of one gateway process."""

    def __init__(self, settings: Settings, link: Link, sockets: list[socket.socket]) -> None:
        self._settings, self._link, self._sockets = settings, link, sockets
        self._loop = asyncio.get_running_loop()
        self._models = Models()
        self._keys = Keys(key_file.digest_of, settings.keys_required, paces_in(Path(settings.control).parent).take)
        self._keys_path, self._keys_seen = Path(settings.keys), 0
        self._counts, self._told = HttpCounts(), 0
        self._num_answered = 0
        self._stopped = asyncio.Event()
        self._leaving: asyncio.Task[None] | None = None
        self._accepts = asyncio.Event()  # requests may be served, or wait for a worker
        if not settings.handed_over:
            self._accepts.set()
        self._service = Service(settings.endpoint)
        supervisor = Supervisor(settings.control, time.monotonic)
        self._served = Served(self._models, self._service, supervisor)
        about = About(self._models, self._served, supervisor)
        running = Running(self._models, self._service, settings.max_body_bytes)
        routes = [*running.routes(), *about.routes()]
        about.describe(routes)
        self._tracing = tracing_of(os.environ)
        origins = Origins(settings.cors_origin or "", settings.local)
        self._app = App(routes, self._keys, origins, time.monotonic, self._tracing)
        self._grpc: GrpcServer | None = None
        self._log = None
        if settings.access_log != "off":
            self._log = AccessLog(settings.access_log, self._loop.call_later)
        self._server = Server(
            self._app.handle,
            self._answered,
            lend=self._service.lend,
            max_body_bytes=settings.max_body_bytes,
            max_connections=settings.max_connections,
            keep_alive_s=settings.keep_alive_s,
            tls=tls_context(settings.tls_cert, settings.tls_key),
        )

    async def run(self) -> int:
        """Serve until told to stop, or until the supervisor is gone."""
        self._loop.add_reader(self._link.fileno(), self._read)
        self._look_at_keys()
        shared = [each for each in self._sockets if each.family is not socket.AF_UNIX]
        await self._server.start([each for each in self._sockets if each not in shared])
        opening = self._loop.create_task(self._open(shared))
        if self._accepts.is_set():
            await opening
        if self._settings.grpc is not None:
            self._grpc = await self._start_grpc(self._settings.grpc)
            await self._grpc.tell_health(ready=self._is_ready)
        self._link.send(event="bound")
        telling = self._loop.create_task(self._tell())
        await self._stopped.wait()
        telling.cancel()
        opening.cancel()
        if self._leaving is not None:
            self._leaving.cancel()
        if self._grpc is not None:
            await self._grpc.stop(STOP_S)
        await self._server.stop(STOP_S)
        if self._log is not None:
            self._log.flush()
        await self._service.close()
        if self._tracing is not None:
            self._tracing.stop(FLUSH_S)
        return Exit.ORPHANED if self._link.closed else Exit.OK

    def handle(self, message: Message) -> None:
        """A message of the supervisor."""
        match message.get("do"):
            case "models":
                self._models.replace(message["models"])
                if any(each["accepts"] for each in message["models"]):
                    self._accepts.set()
            case "leave":
                self._leaving = self._loop.create_task(self._leave())
            case "drain":
                self._app.draining = self._served.draining = True
            case "stop":
                self._stopped.set()

    async def _open(self, sockets: list[socket.socket]) -> None:
        await self._accepts.wait()
        await self._server.start(sockets)

    async def _leave(self) -> None:
        await self._server.leave()
        self._link.send(event="left")

    def _read(self) -> None:
        for message in self._link.receive():
            self.handle(message)
        if self._link.closed:
            self._loop.remove_reader(self._link.fileno())
            self._stopped.set()

    @property
    def _is_ready(self) -> bool:
        return bool(self._models.all) and not any(reason for _, reason in self._models.all)

    async def _start_grpc(self, address: str) -> GrpcServer:
        """Serve gRPC, too.

        Raises:
            ConfigError: what it needs is not installed.
            AddressInUse: somebody else listens there.
        """
        try:
            from orch_gateway import grpc_front
        except ImportError as err:
            raise ConfigError(f"grpc = {address} needs packages that are missing: pip install gpu-orch[grpc]") from err
        settings = self._settings
        asks = grpc_front.AsksForKeys(self._keys, time.monotonic)
        interceptors = [asks] if self._tracing is None else [grpc_front.Traces(self._tracing), asks]
        server = grpc_front.server(self._served, interceptors, settings.max_body_bytes, share_port=settings.share_grpc)
        await server.start(address, grpc_front.credentials(settings.tls_cert, settings.tls_key))
        return server

    def _answered(self, request: Request, response: Response, num_bytes: int) -> None:
        now = time.monotonic()
        self._num_answered += 1
        self._counts.count(request.route, response.status, now - request.began)
        if self._log is not None:
            self._log.note(request, response, num_bytes, now)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            self._look_at_keys()
            if self._grpc is not None:
                await self._grpc.tell_health(ready=self._is_ready)
            if self._num_answered != self._told:
                self._told = self._num_answered
                self._link.send(event="http", http=self._counts.facts)

    def _look_at_keys(self) -> None:
        """Take in what `orch keys` has changed. A file that cannot be read lets nobody in who was not let in before."""
        try:
            changed_at = self._keys_path.stat().st_mtime_ns
        except OSError:
            changed_at = 0
        if changed_at == self._keys_seen:
            return
        self._keys_seen = changed_at
        try:
            self._keys.replace(key_file.read(self._keys_path))
        except ConfigError as err:
            self._keys.required = True
            log.error("%s; the keys stay as they were", err)


def paces_in(directory: Path) -> Paces | SharedPaces:
    """How fast keys may ask, of all gateways of the instance together; directory: the instance's own."""
    try:
        return SharedPaces(directory / RATES)
    except OSError as err:
        log.error("the rates of keys count at each gateway by itself: %s", err)
        return Paces()


def tracing_of(environ: Mapping[str, str]) -> Tracing | None:
    """Where the environment asks for traces. What they need may be missing: requests are answered without them, too."""
    wanted = exporters(environ)
    if not wanted:
        return None
    try:
        from orch_gateway.otel import Tracing

        return Tracing(wanted)
    except ImportError:
        log.error("the environment asks for traces (OTEL_...), and they need packages: pip install gpu-orch[otel]")
    except ConfigError as err:
        log.error("no traces: %s", err)
    return None


def tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    """For a server with this certificate; None for plain HTTP.

    Raises:
        ConfigError: the files cannot be used.
    """
    if certificate is None or key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password="")  # else OpenSSL asks whoever sits at the terminal
    except OSError as err:  # ssl.SSLError is one
        raise ConfigError(_why_no_tls(certificate, key, err)) from err
    context.set_alpn_protocols(["http/1.1"])
    return context


def _why_no_tls(certificate: str, key: str, err: OSError) -> str:
    """Which of the two files is wrong, and how: OpenSSL does not say."""
    for setting, path in (("tls_cert", certificate), ("tls_key", key)):
        try:
            Path(path).open("rb").close()
        except OSError as unreadable:
            return f"{setting} = {path}: it cannot be read: {unreadable.strerror}"
    if getattr(err, "reason", None) == "KEY_VALUES_MISMATCH":
        return f"tls_key = {key}: it is not the key of tls_cert = {certificate}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(certificate)
    except ssl.SSLError:
        return f"tls_cert = {certificate}: it holds no certificate in PEM"
    return f"tls_key = {key}: it holds no private key in PEM, or one with a pass phrase; HTTPS needs one without"
