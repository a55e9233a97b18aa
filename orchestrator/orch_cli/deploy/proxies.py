"""`orch deploy nginx` and `orch deploy haproxy`: a proxy's file, once or for as long as the instance changes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from orch import keys, runtime
from orch.config import Config
from orch.errors import ConfigError, NotRunning
from orch.http_settings import is_local
from orch_cli.options import load, name_option
from orch_deploy.checking import nginx_version
from orch_deploy.haproxy import render_haproxy
from orch_deploy.nginx import render_nginx
from orch_deploy.proxy import Options, parts
from orch_deploy.routing import PROXIES, Means
from orch_deploy.site import Server, Site, configured_workers, site

F = TypeVar("F", bound=Callable[..., Any])
LISTEN: Final = re.compile(r"((\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:.]+\]):)?(\d{1,5})")
MAX_PORT: Final = 65_535
MAX_RATE: Final = 1_000_000
MAX_KEPT: Final = 10_000


OPTIONS: Final = (
    click.option("--config", "config_path", metavar="FILE", help="Settings file.  [ORCH_CONFIG; default: ./orch.toml]"),
    click.option(
        "--output", metavar="FILE", help="Write it there, once the proxy's own check passes; unset: print it."
    ),
    click.option("--reload", "now", is_flag=True, help="And have the running proxy take it."),
    click.option("--watch", is_flag=True, help="Keep FILE and the proxy true as replicas come and go, until Ctrl-C."),
    click.option("--server-name", metavar="HOST", help="Clients' name for it; unset: any that no other site has."),
    click.option(
        "--listen",
        metavar="PORT",
        multiple=True,
        help="PORT or HOST:PORT; may be repeated.  [default: 80; with TLS 443]",
    ),
    click.option("--tls-cert", metavar="FILE", help="The certificate and its chain, PEM: serves HTTPS and HTTP/2."),
    click.option("--tls-key", metavar="FILE", help="Its private key, PEM; unset: it is in the same file."),
    click.option(
        "--redirect",
        metavar="PORT",
        multiple=True,
        help="Where plain HTTP is sent on to HTTPS.  [default: 80 beside 443]",
    ),
    click.option("--rate", metavar="N", help="Requests in a second of one client address; more are answered 429."),
    click.option(
        "--allow", metavar="NETWORK", multiple=True, help="Who else may see health and metrics, such as 10.0.0.0/8."
    ),
    click.option(
        "--retry-posts", is_flag=True, help="POST may run twice: repeat it when a command's server dies with it."
    ),
    click.option("--standalone", is_flag=True, help="A whole configuration that an ordinary user can run."),
    click.option("--pid-file", metavar="FILE", help="Where the running proxy notes its process number."),
    click.option("--reload-command", metavar="COMMAND", help="Reloads it, such as 'sudo systemctl reload nginx'."),
    click.option("--binary", metavar="FILE", help="The proxy's program; unset: that on PATH or in /usr/sbin."),
)


def proxy_options(command: F) -> F:
    """Those that nginx and HAProxy share."""
    for option in reversed(OPTIONS):
        command = option(command)
    return name_option(command)


@click.command()
@proxy_options
@click.option("--access-log", metavar="FILE", help="Where requests are logged, or off.")
@click.option("--keepalive", metavar="N", help="Idle connections to the servers that are kept; 0: none.  [default: 64]")
def nginx(**given: Any) -> None:
    """Write nginx's configuration: its `upstream` and `server`, for conf.d or sites-enabled.

    Of the running instance, or of the one that is configured. With --standalone: a whole nginx.conf.
    """
    keepalive = _count("--keepalive", given["keepalive"], 0, MAX_KEPT)
    more = {"version": nginx_version(given["binary"]), "access_log": _log(given["access_log"])}
    _run("nginx", given, more | ({} if keepalive is None else {"keepalive": keepalive}))


@click.command()
@proxy_options
@click.option("--per-server", metavar="N", help="Requests that a server gets at a time; the others wait in HAProxy.")
def haproxy(**given: Any) -> None:
    """Write HAProxy's configuration: a whole one.

    Of the running instance, or of the one that is configured. With --watch, servers come, drain and go without a
    reload.
    """
    _run("haproxy", given, {"per_server": _count("--per-server", given["per_server"], 1, MAX_KEPT) or 0})


def _run(target: str, given: dict[str, Any], more: dict[str, Any]) -> None:
    if given["output"] is None and (given["watch"] or given["now"]):
        raise click.UsageError(f"{'--watch' if given['watch'] else '--reload'} needs --output FILE")
    output = Path(given["output"] or target).absolute()
    config = load({"name": given["name"]}, given["config_path"]).config
    options = _options(given, output, more)
    pid_file = Path(given["pid_file"]) if given["pid_file"] else None
    means = Means(output, options, given["binary"], pid_file, given["reload_command"])
    _warn(config, options)
    if given["watch"]:
        from orch_deploy.watch import keep

        with contextlib.suppress(KeyboardInterrupt):  # the way to end it, not a failure
            keep(config.name, config, target, means, _say)
        return
    found = _site(config)
    if given["output"] is None:
        click.echo({"nginx": render_nginx, "haproxy": render_haproxy}[target](found, options), nl=False)
    elif given["now"]:
        _say(f"{output}: {PROXIES[target](means).apply(found)}")
    else:
        PROXIES[target](means).write(found)
        _say(f"{output} written; {target} does not know yet (--reload tells it)")


def _say(text: str) -> None:
    click.echo(f"orch: {text}", err=True)


# --- whose servers


def _site(config: Config) -> Site:
    """Of the running instance; else of the configured one, which is told."""
    from orch.supervising import control
    from orch_deploy.told import site_of

    try:
        return site_of(control.call(config.name, "servers"), config)
    except NotRunning:
        _say(f"{config.name} does not run: these are the servers that it is configured to have")
    return configured(config)


def configured(config: Config) -> Site:
    """The servers of an instance that does not run: the ports that it tries first, or its gateways' sockets."""
    if config.command:
        servers = configured_workers(config)
    else:
        base = next((base for base in runtime.bases() if _can_make(base)), runtime.bases()[0])
        folder = runtime.directory_in(base, config.name)
        servers = [Server(f"g{number}", f"unix:{folder}/g{number}.http") for number in range(config.gateways)]
    return site(config, servers, live=False)


def _can_make(folder: Path) -> bool:
    there = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    return os.access(there, os.W_OK | os.X_OK)


def _warn(config: Config, options: Options) -> None:
    """A model without keys was for this host alone; a proxy opens it to whoever reaches the proxy."""
    hosts = [parts(each)[0].removesuffix(":").strip("[]") for each in options.listens]
    if config.command or all(host and is_local(host) for host in hosts):
        return
    if not config.insecure and not keys.read(keys.path_of(config.name)):
        _say(f"warning: {config.name} has no keys, so that whoever reaches the proxy may use it: `orch keys add NAME`")


# --- options


def _options(given: dict[str, Any], output: Path, more: dict[str, Any]) -> Options:
    if (given["tls_cert"] is None) and (given["tls_key"] is not None):
        raise ConfigError(
            f"tls_key = {given['tls_key']} (from --tls-key) is given without --tls-cert; HTTPS needs both"
        )
    if given["redirect"] and given["tls_cert"] is None:
        raise ConfigError("--redirect sends plain HTTP on to HTTPS, which needs --tls-cert")
    cert = _pem("--tls-cert", given["tls_cert"])
    return Options(
        server_name=given["server_name"] or "_",
        listen=tuple(_listen("--listen", each) for each in given["listen"]),
        redirect=tuple(_listen("--redirect", each) for each in given["redirect"]),
        tls_cert=cert,
        tls_key=_pem("--tls-key", given["tls_key"]) or cert,
        rate=_count("--rate", given["rate"], 1, MAX_RATE),
        allow=(*Options().allow, *(_network(each) for each in given["allow"])),
        retry_posts=given["retry_posts"],
        standalone=given["standalone"],
        folder=str(output.parent),
        # Workers of an nginx that root has started would else be nobody's, who cannot reach root's sockets.
        user="root" if given["standalone"] and os.geteuid() == 0 else "",
        **more,
    )


def _listen(flag: str, text: str) -> str:
    found = LISTEN.fullmatch(text)
    if not found or not 0 < int(found[4]) <= MAX_PORT:
        raise ConfigError(f"{flag} {text}: use a port from 1 to {MAX_PORT}, or an IP address and a port")
    return text


def _count(flag: str, text: str | None, low: int, high: int) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(f"{flag} {text}: use a whole number from {low} to {high}")
    return int(text)


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


def _log(text: str | None) -> str:
    return "" if text is None else text if text == "off" else str(Path(text).absolute())
