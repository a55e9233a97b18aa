"""An instance as it runs in a container: where things are there, and which settings that changes. Pure.

The image's Dockerfile makes the same user and directories. An nginx beside it shares its network: before a command
there always is one, as nothing else takes its requests.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from orch.config import Config
from orch.errors import ConfigError
from orch.http_settings import DEFAULT_HOST, DEFAULT_PORT, split
from orch_deploy.nginx import render_nginx
from orch_deploy.proxy import Options
from orch_deploy.site import Server, Site, configured_workers

UID: Final = 10001
MODEL_DIR, STATE_DIR, RUNTIME_DIR = "/model", "/var/lib/orch", "/run/orch"
# What loads data with several processes (torch's DataLoader) and NCCL pass it through /dev/shm, of which a container
# has 64 MiB unless told otherwise. orch's own arena is not there.
SHM_MIB: Final = 1024
# Stopping takes the drain, then at most 10 s until workers are killed, 3 s each for balancer and gateways, and some.
STOP_S: Final = 20
EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  inside a container; what may come in is told outside
# Ports below may not be opened by an ordinary user; inside they are moved: 80 to 8080, 443 to 8443.
FIRST_ORDINARY, MOVED_BY = 1024, 8000
NGINX_PORT: Final = 8080  # one that an ordinary user may have
NGINX_VERSION: Final = (1, 28, 0)
NGINX_TAG: Final = "1.28"  # of its images


@dataclass(frozen=True, slots=True)
class Choices:
    """What the settings do not say. gpus: how many, where the settings name none.

    nginx: one is wanted before a model. publish: where HTTP is to be reached; "": where the settings say. cert, key:
    where the TLS files are to be found inside. limits: rate, allow and retry_posts of nginx's `Options`.
    """

    gpus: int | None = None
    nginx: bool = False
    publish: str = ""
    cert: str = ""
    key: str = ""
    limits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Port:
    """A port inside, and where outside it is to be reached."""

    name: str
    inside: int
    host: str
    outside: int


@dataclass(frozen=True, slots=True)
class Inside:
    """config: as it has to be inside. name: that containers may have. gpus: their indexes; a count; None for all.

    front: the configuration of the nginx beside it; "" for none. tls: certificate and key outside, for whoever serves.
    """

    name: str
    config: Config
    ports: tuple[Port, ...]
    gpus: tuple[int, ...] | int | None
    has_keys: bool
    tls: tuple[str, str] | None
    front: str

    @property
    def http(self) -> Port | None:
        """Where HTTP comes in."""
        return next((port for port in self.ports if port.name == "http"), None)

    @property
    def is_model(self) -> bool:
        """Whether orch's gateways answer, and not a command's own servers."""
        return not self.config.command

    @property
    def stop_s(self) -> int:
        """How long a stop may take."""
        return math.ceil(self.config.drain_timeout_s) + STOP_S

    @property
    def start_s(self) -> int:
        """How long until the first replica serves, or `orch up` has given up: it tries twice."""
        return 2 * math.ceil(self.config.load_timeout_s) + STOP_S


def inside(config: Config, choices: Choices) -> Inside:
    """What changes for `config` in a container.

    Raises:
        ConfigError: something of it is not to be had in a container.
    """
    _check_target(config)
    has_front = choices.nginx or bool(config.command)
    if choices.limits and not has_front:
        flag = "--" + next(iter(choices.limits)).replace("_", "-")
        raise ConfigError(f"{flag} is for an nginx, and none is chosen: add --with-nginx")
    gateways = () if config.command else _ports(config)
    tls = (config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    changed: dict[str, Any] = {port.name: f"{EVERYWHERE}:{port.inside}" for port in gateways}
    changed |= {"nginx": None, "nginx_reload": None}  # a proxy of the host, which nobody reaches from inside
    if config.gpu_indexes:
        changed["device"] = "cuda"  # a container counts its own GPUs from 0
    if tls:
        changed |= (
            {"tls_cert": None, "tls_key": None} if has_front else {"tls_cert": choices.cert, "tls_key": choices.key}
        )
    ports, front = gateways, ""
    if has_front:
        ports, front = _behind_nginx(config, gateways, choices, has_tls=tls is not None)
    if choices.publish:
        ports = tuple(_published(port, choices.publish) if port.name == "http" else port for port in ports)
        if not any(port.name == "http" for port in ports):
            raise ConfigError(f"publish = {choices.publish} (from --publish): http is off; leave one of the two out")
    return Inside(
        name=dns_name(config.name),
        config=dataclasses.replace(config, **changed),
        ports=ports,
        gpus=_gpus(config, choices.gpus),
        has_keys=bool(gateways) and not config.insecure,
        tls=tls,
        front=front,
    )


def dns_name(text: str) -> str:
    """A name that containers, services and labels may have (RFC 1123): of an instance's name its letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].rstrip("-") or "instance"


def _ports(config: Config) -> tuple[Port, ...]:
    """Of the gateways."""
    ports = []
    for name, address in (("http", config.http), ("grpc", config.grpc)):
        if address != "off":
            outside = f"{DEFAULT_HOST}:{DEFAULT_PORT}" if address == "auto" else address
            number = split(outside)[1]
            inside_number = number if number >= FIRST_ORDINARY else number + MOVED_BY
            ports.append(_published(Port(name, inside_number, "", 0), outside))
    return tuple(ports)


def _published(port: Port, address: str) -> Port:
    host, _, number = address.rpartition(":")  # with the brackets of IPv6
    return dataclasses.replace(port, host=host, outside=int(number))


def _behind_nginx(
    config: Config, gateways: tuple[Port, ...], choices: Choices, *, has_tls: bool
) -> tuple[tuple[Port, ...], str]:
    """The ports with nginx's in place of the gateways', and its configuration."""
    if config.command:
        if not isinstance(config.replicas, int):
            raise ConfigError(
                f"replicas = {config.replicas}: in a container nobody tells nginx how many came of it; give a number"
            )
        servers = configured_workers(config)
        http = Port("http", NGINX_PORT, DEFAULT_HOST, DEFAULT_PORT)
    else:
        if config.http == "off":
            raise ConfigError(
                "http = off: nginx would have nothing to stand before; leave --with-nginx or http = off out"
            )
        http = gateways[0]
        servers = [Server("gateways", f"127.0.0.1:{http.inside}")]
        http = dataclasses.replace(http, inside=NGINX_PORT + (http.inside == NGINX_PORT))
    options = Options(
        listen=(str(http.inside),),
        access_log="/dev/stdout",
        version=NGINX_VERSION,
        tls_cert=choices.cert if has_tls else None,
        tls_key=choices.key if has_tls else None,
        **choices.limits,
    )
    return (http, *gateways[1:]), render_nginx(Site(config, tuple(servers), live=False), options)


def _gpus(config: Config, wanted: int | None) -> tuple[int, ...] | int | None:
    if config.device == "cpu":
        if wanted:
            raise ConfigError(f"gpus = {wanted} (from --gpus): device is cpu; leave one of the two out")
        return ()
    if config.gpu_indexes and wanted is not None:
        raise ConfigError(f"gpus = {wanted} (from --gpus): device = {config.device} names them already")
    return config.gpu_indexes or wanted


def _check_target(config: Config) -> None:
    path = PurePosixPath(config.target.rpartition(":")[0])
    if path.suffix == ".py" and (path.is_absolute() or ".." in path.parts):
        raise ConfigError(
            f"target = {config.target}: a container sees the model's folder as {MODEL_DIR}; "
            "name the file from that folder, such as model.py:Name"
        )
