"""Where the parts of an installed instance lie on a host, and what is in them. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from orch.config import Config
from orch_deploy import proxy, systemd
from orch_deploy.haproxy import render_haproxy
from orch_deploy.nginx import render_nginx
from orch_deploy.render import render
from orch_deploy.site import Server, configured_workers, site
from orch_deploy.steps import BESIDE, File, Manifest

UNITS: Final = "/etc/systemd/system"
USERS: Final = "/etc/sysusers.d/"
SYSUSERS, TMPFILES = f"{USERS}orch.conf", "/etc/tmpfiles.d/orch.conf"
RUN, STATE, CACHE = "/run/orch", "/var/lib/orch", "/var/cache/orch"
NO_KEYS: Final = '{"keys": []}\n'
MANIFESTS: Final = f"{systemd.CONFIG_DIR}/installed"
PROXY_USERS: Final = {"nginx": "www-data", "haproxy": "haproxy"}  # Debian's
PROXY_SYSUSERS: Final = {name: f"{USERS}orch-{name}.conf" for name in PROXY_USERS}
# Options of the slice, which all instances of a host have in common.
SLICE_CHOICES: Final = ("cpu_weight", "memory_high", "memory_max")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An instance as it is to be installed. settings: the text of its file. http_proxy: nginx, haproxy or none.

    choices: the options that made it so.
    """

    config: Config
    settings: str
    units: systemd.Options
    http_proxy: str = "none"
    proxy_options: proxy.Options = dataclasses.field(default_factory=proxy.Options)
    choices: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The instance's."""
        return self.config.name


def settings_path(name: str) -> str:
    """The instance's settings file."""
    return f"{systemd.CONFIG_DIR}/{name}.toml"


def manifest_path(name: str) -> str:
    """The list of what was made."""
    return f"{MANIFESTS}/{name}.json"


def proxy_path(name: str, http_proxy: str) -> str:
    """The proxy's file; HAProxy's is a whole configuration, which Debian's unit does not read by itself."""
    return {"nginx": f"/etc/nginx/conf.d/orch-{name}.conf", "haproxy": f"/etc/haproxy/orch-{name}.cfg"}[http_proxy]


def files(wanted: Wanted) -> list[File]:
    """In the order in which they are written."""
    name, config = wanted.name, wanted.config
    settings = settings_path(name)
    found = [
        File(SYSUSERS, render("sysusers.conf.j2"), "the user orch"),
        *_proxy_user(wanted.http_proxy),
        File(TMPFILES, render("tmpfiles.conf.j2"), "its directories"),
        File(settings, wanted.settings, "the settings of the instance", 0o640, "orch", has_env=True),
        File(
            systemd.environment_file(config, user=False),
            render("environment.j2", instance=name, settings=settings),
            "variables of the instance; yours from now on", 0o640, "orch", seed=True,
        ),
    ]  # fmt: skip
    if systemd.serves_http(config):
        keys = systemd.keys_file(config)
        found.append(File(keys, NO_KEYS, "its API keys; `orch keys` adds them", 0o640, "orch", seed=True))
    units = dataclasses.replace(wanted.units, settings=settings)
    found += [File(f"{UNITS}/{file}", text, "a unit of systemd") for file, text in systemd.units(config, units).items()]
    if wanted.http_proxy != "none":
        rendered = {"nginx": render_nginx, "haproxy": render_haproxy}[wanted.http_proxy]
        servers = site(config, servers_of(config, socket=wanted.units.socket), live=False)
        text, why = rendered(servers, wanted.proxy_options), f"the configuration of {wanted.http_proxy}"
        found.append(File(proxy_path(name, wanted.http_proxy), text, why, live=watches(wanted)))
    if watches(wanted):
        unit = f"{UNITS}/{systemd.unit_name(name)}-nginx.service"
        found.append(File(unit, _watch_unit(wanted), "keeps nginx true as replicas come and go"))
    return found


def _proxy_user(http_proxy: str) -> Iterator[File]:
    if http_proxy != "none":
        text = render("sysusers_proxy.conf.j2", http_proxy=http_proxy, proxy_user=PROXY_USERS[http_proxy])
        yield File(PROXY_SYSUSERS[http_proxy], text, f"{http_proxy}'s user in the group orch")


def watches(wanted: Wanted) -> bool:
    """Whether the proxy's servers come and go. Gateways do not; and HAProxy is no service of Debian's by our file."""
    return wanted.http_proxy == "nginx" and bool(wanted.config.command)


def _watch_unit(wanted: Wanted) -> str:
    options = wanted.proxy_options
    words = [wanted.units.python, "-P", "-m", "orch_cli", "deploy", "nginx", "--watch"]
    words += [f"--config={settings_path(wanted.name)}", f"--name={wanted.name}"]
    words += [f"--output={proxy_path(wanted.name, 'nginx')}"]
    words += [f"--server-name={options.server_name}"] if options.server_name != "_" else []
    words += [f"--tls-cert={options.tls_cert}"] if options.tls_cert else []
    words += [f"--tls-key={options.tls_key}"] if options.tls_key else []
    name = systemd.unit_name(wanted.name)
    return render("systemd.watch.j2", name=name, instance=wanted.name, start=" ".join(map(systemd.word, words)))


def servers_of(config: Config, *, socket: bool) -> list[Server]:
    """Where a proxy finds the instance. A port that systemd holds is there while the instance starts again."""
    if config.command:
        return configured_workers(config)
    if socket and config.tls_cert is None:
        address = systemd.listen_address(config)
        return [Server("g0", address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:"))]
    return [Server(f"g{number}", f"unix:{RUN}/{config.name}/g{number}.http") for number in range(config.gateways)]


def enabled_units(wanted: Wanted) -> tuple[str, ...]:
    """Those that start with the host."""
    name = systemd.unit_name(wanted.name)
    watch = (f"{name}-nginx.service",) if watches(wanted) else ()
    return (*watch, *((f"{name}.socket",) if wanted.units.socket else ()), f"{name}.service")


def is_shared(path: str) -> bool:
    """Whether all instances of a host have that file in common."""
    return path.startswith(USERS) or path.removesuffix(BESIDE) in (TMPFILES, f"{UNITS}/orch.slice")


def needs_restart(name: str, changed: Collection[str], before: Manifest, version: str) -> bool:
    """Whether a rolling restart of the replicas would not do: settings, unit or orch itself have changed."""
    unit = f"{UNITS}/{systemd.unit_name(name)}"
    return before.version != version or any(
        path in changed for path in (f"{unit}.service", f"{unit}.socket", settings_path(name))
    )
