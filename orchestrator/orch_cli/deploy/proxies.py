"""`orch deploy nginx` and `orch deploy haproxy`: a proxy's file, once or for as long as the instance changes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from orch import keys, runtime
from orch.config import Config
from orch.errors import NotRunning
from orch.http_settings import is_local
from orch_cli.deploy.proxying import MAX_KEPT, allow_option, count, force_option, options_of, rate_option, retry_option
from orch_cli.options import load, name_option, read_file
from orch_deploy import proxy, writing
from orch_deploy.checking import nginx_version
from orch_deploy.haproxy import render_haproxy
from orch_deploy.nginx import render_nginx
from orch_deploy.proxy import Options, parts
from orch_deploy.routing import PROXIES, Means
from orch_deploy.site import Server, Site, configured_workers, site

F = TypeVar("F", bound=Callable[..., Any])


OPTIONS: Final = (
    click.option("--config", "config_path", metavar="FILE", help="Settings file.  [ORCH_CONFIG; default: ./orch.toml]"),
    click.option(
        "--output", metavar="FILE", help="Write it there, once the proxy's own check passes; unset: print it."
    ),
    force_option,
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
    rate_option,
    allow_option,
    retry_option,
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
@click.option(
    "--keepalive", metavar="N", help="Idle connections to servers that are kept.  [default: 64; to a command's 0]"
)
def nginx(**given: Any) -> None:
    """Write nginx's configuration: its `upstream` and `server`, for conf.d or sites-enabled.

    Of the running instance, or of the one that is configured. With --standalone: a whole nginx.conf.
    """
    more = {
        "version": nginx_version(given["binary"]),
        "access_log": _log(given["access_log"]),
        "keepalive": count("--keepalive", given["keepalive"], 0, MAX_KEPT),
    }
    _run("nginx", given, more)


@click.command()
@proxy_options
@click.option("--per-server", metavar="N", help="Requests that a server gets at a time; the others wait in HAProxy.")
def haproxy(**given: Any) -> None:
    """Write HAProxy's configuration: a whole one.

    Of the running instance, or of the one that is configured. With --watch, servers come, drain and go without a
    reload.
    """
    _run("haproxy", given, {"per_server": count("--per-server", given["per_server"], 1, MAX_KEPT)})


def _run(target: str, given: dict[str, Any], more: dict[str, Any]) -> None:
    for key, flag in (("watch", "--watch"), ("now", "--reload"), ("force", "--force")):
        if given["output"] is None and given[key]:
            raise click.UsageError(f"{flag} needs --output FILE")
    output = Path(given["output"] or target).absolute()
    config = load({"name": given["name"]}, given["config_path"]).config
    before = Options() if given["output"] is None else _before(output, target)
    options = options_of(given, before, output.parent, more)
    pid_file = Path(given["pid_file"]) if given["pid_file"] else None
    means = Means(output, options, given["binary"], pid_file, given["reload_command"], given["force"])
    if given["watch"]:
        from orch_deploy.watch import keep

        with contextlib.suppress(NotRunning):  # it is waited for
            _warn(_site(config, given["config_path"]), options)
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it, not a failure
            keep(config.name, config, target, means, _say)
        return
    found = _site(config, given["config_path"])
    if not found.live:
        _say(f"{config.name} does not run: these are the servers that it is configured to have")
    _warn(found, options)
    if given["output"] is None:
        click.echo({"nginx": render_nginx, "haproxy": render_haproxy}[target](found, options), nl=False)
        return
    kept = PROXIES[target](means)
    if given["now"]:
        _say(f"{output}: {kept.apply(found)}")
    else:
        kept.write(found)
        _say(f"{output} written; {kept.next_step(found)}")


def _before(output: Path, target: str) -> Options:
    """The options that the file was made with: those of now, but for what is given."""
    chosen = proxy.read_stamp(writing.content_of(output))
    return proxy.options_of(chosen) if chosen.get("target") == target else Options()


def _say(text: str) -> None:
    click.echo(f"orch: {text}", err=True)


# --- whose servers


def _site(config: Config, config_path: str | None) -> Site:
    """Of the running instance; else of the configured one.

    Raises:
        NotRunning: there is none, and no settings tell what it would be.
    """
    from orch.supervising import control
    from orch_deploy.told import site_of

    try:
        return site_of(control.call(config.name, "servers"), config)
    except NotRunning as err:
        file = read_file(config_path)[0]
        if not (config.target or config.command) or file.get("name", config.name) != config.name:
            raise NotRunning(
                f"{err}; nor is it configured: name the settings file that says what it runs (--config FILE)"
            ) from None
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


def _warn(found: Site, options: Options) -> None:
    """A model without keys was for this host alone, as a command's servers were; a proxy opens them to its clients."""
    hosts = [parts(each)[0].removesuffix(":").strip("[]") for each in options.listens]
    if all(host and is_local(host) for host in hosts):
        return
    who = f"warning: whoever reaches the proxy may use {found.name}"
    if found.kind == "command":
        _say(f"{who}: let your servers ask who it is, or have the proxy listen on loopback (--listen 127.0.0.1:PORT)")
    elif not found.config.insecure and not keys.read(keys.path_of(found.name)):
        _say(f"{who}, as it has no keys: `orch keys add NAME`")


def _log(text: str | None) -> str | None:
    return text if text in (None, "off") else str(Path(str(text)).absolute())
