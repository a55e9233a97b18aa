"""What an instance, or a generated file, has told: read into a site and into options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from orch.config import Config
from orch.errors import ConfigError, RemoteProtocolError
from orch_deploy import proxy, writing
from orch_deploy.checking import nginx_version
from orch_deploy.routing import PROXIES, Means, Proxy
from orch_deploy.site import Server, Site, site

# Settings that a proxy's file depends on. A running instance may have got others than the next one would.
TOLD: Final = (
    "name", "command", "health", "http_max_body_bytes", "http_keep_alive_s", "timeout_s", "max_attempts", "gateways",
)  # fmt: skip


def site_of(answer: Mapping[str, Any], config: Config) -> Site:
    """The site that a running instance tells by the call `servers`. config: for what it does not tell.

    Raises:
        RemoteProtocolError: that is no answer to this call.
    """
    try:
        servers = [Server(str(each["id"]), str(each["address"]), bool(each["draining"])) for each in answer["servers"]]
        kind = answer["kind"]
    except (KeyError, TypeError) as err:
        raise RemoteProtocolError(f"the instance's answer about its servers lacks {err}") from err
    config = config_of(config, answer.get("settings") or {})
    if (kind == "command") != bool(config.command):
        config = dataclasses.replace(config, command=("?",) if kind == "command" else ())
    return site(config, servers)


def config_of(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with these settings of a running instance in it."""
    known = {key: settings[key] for key in TOLD if key in settings}
    if "command" in known:
        known["command"] = tuple(known["command"])
    return dataclasses.replace(config, **known)


class AsStamped:
    """A proxy by the choices that its file says it was made with: `orch deploy` may change them at any time.

    Of a file that is not there: nginx, and the usual.
    """

    def __init__(self, output: Path, reload_command: str | None) -> None:
        self._output, self._reload_command = output.absolute(), reload_command
        self._chosen: dict[str, Any] | None = None
        self._proxy: Proxy | None = None

    def apply(self, site: Site) -> str:
        """As `Proxy` says."""
        chosen = proxy.read_stamp(writing.content_of(self._output))
        if self._proxy is None or chosen != self._chosen:
            target = chosen.get("target", "nginx")
            if target not in PROXIES:
                raise ConfigError(f"{self._output} is for {target!r}, which this orch does not know")
            own = {"folder": str(self._output.parent), "version": nginx_version()}
            means = Means(self._output, proxy.options_of(chosen | own), reload_command=self._reload_command)
            self._proxy, self._chosen = PROXIES[target](means), chosen
        return self._proxy.apply(site)


def sentence(found: Site) -> str:
    """Which servers take requests, for people."""
    names = [each.id for each in proxy.serving(found)]
    left = [each.id for each in found.servers if each.draining]
    text = ", ".join(names) or "no server"
    return text + (f" ({', '.join(left)} draining)" if left else "")
