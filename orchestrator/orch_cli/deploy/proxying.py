"""What a user may choose of a proxy: options that nginx, HAProxy and containers share, and how they are checked."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from orch.errors import ConfigError
from orch_deploy.proxy import Options

F = TypeVar("F", bound=Callable[..., Any])
LISTEN: Final = re.compile(r"((\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:.]+\]):)?(\d{1,5})")
MAX_PORT: Final = 65_535
MAX_RATE: Final = 1_000_000
MAX_KEPT: Final = 10_000

rate_option = click.option(
    "--rate", metavar="N", help="Requests in a second of one client address; more are answered 429."
)
allow_option = click.option(
    "--allow", metavar="NETWORK", multiple=True, help="Who else may see health and metrics, such as 10.0.0.0/8."
)
retry_option = click.option(
    "--retry-posts", is_flag=True, help="POST may run twice: repeat it when a command's server dies with it."
)
force_option = click.option("--force", is_flag=True, help="Replace FILE though it is not as orch wrote it.")


def network_options(command: F) -> F:
    """Those that hold for a proxy wherever it runs."""
    return rate_option(allow_option(retry_option(command)))


def options_of(given: Mapping[str, Any], before: Options, folder: Path, more: Mapping[str, Any]) -> Options:
    """As they are given, and for the rest as `before`: the options of the file that is there. folder: of the file.

    Raises:
        ConfigError: a value that cannot work, or one without another that it needs.
    """
    cert, key = _certificate(given, before)
    if (given["redirect"] or before.redirect) and cert is None:
        raise ConfigError("--redirect sends plain HTTP on to HTTPS, which needs --tls-cert")
    standalone = given["standalone"] or before.standalone
    return Options(
        server_name=given["server_name"] or before.server_name,
        listen=tuple(_listen("--listen", each) for each in given["listen"]) or before.listen,
        redirect=tuple(_listen("--redirect", each) for each in given["redirect"]) or before.redirect,
        tls_cert=cert,
        tls_key=key,
        **{"rate": before.rate, "allow": before.allow, "retry_posts": before.retry_posts} | network_of(given),
        standalone=standalone,
        folder=str(folder),
        # Workers of an nginx that root has started would else be nobody's, who cannot reach root's sockets.
        user="root" if standalone and os.geteuid() == 0 else "",
        **{"access_log": before.access_log, "keepalive": before.keepalive, "per_server": before.per_server}
        | {name: value for name, value in more.items() if value is not None},
    )


def network_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of `network_options` those that are given, as `Options` has them.

    Raises:
        ConfigError: a value that cannot work.
    """
    found: dict[str, Any] = {}
    if given["rate"] is not None:
        found["rate"] = count("--rate", given["rate"], 1, MAX_RATE)
    if given["allow"]:
        found["allow"] = (*Options().allow, *(_network(each) for each in given["allow"]))
    if given["retry_posts"]:
        found["retry_posts"] = True
    return found


def count(flag: str, text: str | None, low: int, high: int) -> int | None:
    """A whole number in these bounds; None where none is given.

    Raises:
        ConfigError: it is none.
    """
    if text is None:
        return None
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(f"{flag} {text}: use a whole number from {low} to {high}")
    return int(text)


def _certificate(given: Mapping[str, Any], before: Options) -> tuple[str | None, str | None]:
    """A certificate and its key, which may be in the same file. A new one comes with its key."""
    cert, key = _pem("--tls-cert", given["tls_cert"]), _pem("--tls-key", given["tls_key"])
    if cert is not None:
        return cert, key or cert
    if key is not None and before.tls_cert is None:
        raise ConfigError(
            f"tls_key = {given['tls_key']} (from --tls-key) is given without --tls-cert; HTTPS needs both"
        )
    return before.tls_cert, key or before.tls_key


def _listen(flag: str, text: str) -> str:
    found = LISTEN.fullmatch(text)
    if not found or not 0 < int(found[4]) <= MAX_PORT:
        raise ConfigError(f"{flag} {text}: use a port from 1 to {MAX_PORT}, or an IP address and a port")
    return text


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ConfigError(f"--allow {text}: use an IP address, or a network such as 10.0.0.0/8") from None


def _pem(flag: str, text: str | None) -> str | None:
    if text is None:
        return None
    path = Path(text).absolute()
    if not path.is_file():
        raise ConfigError(f"{flag} {text}: there is no file {path}")
    return str(path)
