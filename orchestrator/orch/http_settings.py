"""The settings of the gateways: fields of `Config`, kept together here. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from orch.errors import ConfigError
from orch.parsing import file_path, http_address, integer, listen_address, one_of, origin, seconds, size, switch
from orch.planning.sizes import GIB, KIB, MIB
from orch.setting import declare

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
# Where the default port is taken and no other was asked for, so many next ones are tried.
PORTS_TRIED = 10


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How HTTP is served."""

    http: str = declare(
        "auto",
        http_address,
        "auto|off|HOST:PORT",
        "auto, off, or an IP address and a port, such as 127.0.0.1:8000",
        f"Where HTTP is served; auto: {DEFAULT_HOST}:{DEFAULT_PORT}, or the next free port; off: nowhere (--no-http).",
    )
    gateways: int = declare(
        1,
        integer(1, 64),
        "N",
        "a whole number from 1 to 64",
        "Processes that serve HTTP; the kernel spreads connections over them.",
    )
    grpc: str = declare(
        "off",
        listen_address,
        "HOST:PORT",
        "off, or an IP address and a port, such as 127.0.0.1:8001",
        "Where the Open Inference Protocol is served over gRPC; off: nowhere.",
    )
    insecure: bool = declare(
        False,
        switch,
        "",
        "yes or no",
        "Serve HTTP to other machines though there are no keys (`orch keys add` makes one).",
        switch=True,
    )
    tls_cert: str | None = declare(
        None, file_path, "FILE", "the path of a PEM file", "The certificate with which HTTPS is served, and its chain."
    )
    tls_key: str | None = declare(None, file_path, "FILE", "the path of a PEM file", "The private key of --tls-cert.")
    cors_origin: str | None = declare(
        None,
        origin,
        "ORIGIN",
        "* or an origin such as https://example.org",
        "Web pages of this origin may use the instance; unset: only those of this host.",
    )
    access_log: Literal["off", "text", "json"] = declare(
        "off",
        one_of("off", "text", "json"),
        "off|text|json",
        "off, text or json",
        "A line for every HTTP request, in the gateway's log.",
    )
    http_max_body_bytes: int = declare(
        256 * MIB,
        size("http_max_body", KIB, 64 * GIB),
        "SIZE",
        "a size from 1KiB to 64GiB, such as 256MiB",
        "The largest body of an HTTP request, also once it is unfolded; a larger one is answered 413.",
    )
    http_max_connections: int = declare(
        4096,
        integer(1, 1_000_000),
        "N",
        "a whole number from 1 to 1000000",
        "Connections of one gateway; the next one is answered 503.",
    )
    http_keep_alive_s: float = declare(
        75.0,
        seconds(1, 86_400),
        "SECONDS",
        "seconds from 1 to 86400 (24h)",
        "How long an HTTP connection may idle before it is closed.",
    )


def is_local(host: str) -> bool:
    """Whether only this host can reach an address."""
    return ipaddress.ip_address(host).is_loopback


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of a setting."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_exposure(settings: HttpSettings, key: str, host: str, *, has_keys: bool) -> None:
    """Other machines may come only with a key, unless the user insists. One of the TLS files needs the other.

    key: of the setting that names the host.

    Raises:
        ConfigError: it is neither.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        given, missing = ("tls_cert", "tls_key") if settings.tls_cert is not None else ("tls_key", "tls_cert")
        raise ConfigError(f"{given} is given without {missing}; HTTPS needs both")
    if not is_local(host) and not has_keys and not settings.insecure:
        raise ConfigError(
            f"{key} = {getattr(settings, key)} would let other machines run the model without a key: "
            "`orch keys add NAME` makes one, --insecure does without, 127.0.0.1 stays on this host"
        )
