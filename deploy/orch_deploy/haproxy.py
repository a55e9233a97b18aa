"""The text of an HAProxy configuration in front of one instance, and what a running HAProxy is told of changes. Pure.

Facts are from the configuration and management manuals of HAProxy 2.6 (docs.haproxy.org).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

from orch.errors import ConfigError
from orch_deploy import proxy
from orch_deploy.proxy import Options
from orch_deploy.render import render
from orch_deploy.seal import sealed, unsealed
from orch_deploy.site import Server, Site

TEMPLATE: Final = "haproxy.cfg.j2"
# Command workers have slots in steps of so many; those that are free are disabled. Only beyond them is a reload needed.
SLOTS: Final = 8
# Where a free slot points: nothing is sent there, and a port has to be named.
NOWHERE: Final = "127.0.0.1:1"
# A request that may be repeated is kept in a buffer, so that larger ones are not repeated.
REPEATED_BYTES: Final = 64 * 1024
# How long a gateway may take over its health. A command's server may take as long as over a request: where it runs one
# at a time, the check waits behind that, and busy is not ill. What has hung is replaced by the supervisor.
CHECK_S: Final = 5
DEFAULT_SOCKET: Final = "/run/haproxy/orch-{name}.sock"


def render_haproxy(site: Site, options: Options) -> str:
    """A whole configuration: HAProxy has no parts to include.

    Raises:
        ConfigError: a name or a path that cannot stand in such a file, or a certificate without its key.
    """
    proxy.check_plain(site, options)
    text = render(
        TEMPLATE,
        site=site,
        options=options,
        stamp=proxy.stamp("haproxy", options),
        id=proxy.identifier(site.name),
        limits=proxy.limits(site),
        slots=list(slots(site)),
        certificate=_certificate(options),
        private=proxy.private_paths(site),
        repeats_posts=proxy.repeats_posts(site, options),
        socket=socket_path(site, options),
        pid=pid_path(site, options),
        chroots=not any(each.address.startswith("unix:") for each in site.servers),
        constants=proxy,
        check_s=math.ceil(site.config.timeout_s) if site.kind == "command" else CHECK_S,
        repeated_bytes=REPEATED_BYTES,
        bind=_bind,
        # So often half of the idle connections are closed; a server that drains is known to be idle without them.
        pool_purge="100ms" if site.kind == "command" else f"{proxy.limits(site).server_kept_s}s",
        nowhere=NOWHERE,
    )
    return sealed(text)


def slots(site: Site) -> Iterator[tuple[str, Server | None]]:
    """The servers of the configuration by name, and who is there now.

    Gateways, whose number does not change, and whatever is not numbered have no room to spare.
    """
    by_name = {each.id: each for each in site.servers}
    numbers = [int(found[1]) for name in by_name if (found := re.fullmatch(r"r(\d+)", name))]
    if site.kind == "model" or len(numbers) < len(by_name):
        for name in sorted(by_name, key=proxy.natural):
            yield name, by_name[name]
        return
    count = -(-(max(numbers, default=0) + 1) // SLOTS) * SLOTS
    for number in range(count):
        yield f"r{number}", by_name.get(f"r{number}")


def orders(site: Site) -> list[str]:
    """What a running HAProxy with these slots is told so that it routes as the configuration says. May be repeated."""
    told = []
    for name, server in slots(site):
        slot = f"set server {proxy.identifier(site.name)}/{name}"
        if server is None:
            told.append(f"{slot} state maint")
        elif server.draining:
            told.append(f"{slot} state drain")
        else:
            host, _, port = server.address.rpartition(":")
            if not server.address.startswith("unix:"):  # a path cannot be changed there, and a gateway's never does
                told.append(f"{slot} addr {host.strip('[]')} port {port}")
            told.append(f"{slot} state ready")
    return told


def structure(text: str) -> str:
    """What only a reload can change of a configuration: all but where its servers are, and whether they serve."""
    return re.sub(r"^( +server \S+) (\S+)( disabled)?$", _without_port, unsealed(text), flags=re.MULTILINE)


def _without_port(line: re.Match[str]) -> str:
    return f"{line[1]} {line[2]}" if line[2].startswith("unix@") else line[1]


def socket_path(site: Site, options: Options) -> str:
    """Where HAProxy takes orders."""
    if options.standalone:
        return f"{options.folder or '.'}/haproxy-{site.name}.sock"
    return DEFAULT_SOCKET.format(name=site.name)


def pid_path(site: Site, options: Options) -> str:
    """Where HAProxy's master notes its number."""
    return f"{options.folder or '.'}/haproxy-{site.name}.pid" if options.standalone else "/run/haproxy.pid"


def _bind(address: str) -> str:
    host, port = proxy.parts(address)
    return f"{host or ':'}{port}{' v6only' if host.startswith('[::]') else ''}"


def _certificate(options: Options) -> str | None:
    """The file that HAProxy reads: with the key in it, or beside it as FILE.key."""
    if options.tls_cert and options.tls_key not in (None, options.tls_cert, options.tls_cert + ".key"):
        raise ConfigError(
            f"tls_key = {options.tls_key}: HAProxy reads the key from the certificate's file, or from "
            f"{options.tls_cert}.key; name it so, or put both into one file and give that as --tls-cert alone"
        )
    return options.tls_cert
