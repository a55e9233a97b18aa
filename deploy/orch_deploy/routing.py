"""A proxy that is kept true: `apply` has it route by a site, in the cheapest way it knows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orch.errors import ConfigError
from orch_deploy import haproxy, writing
from orch_deploy.checking import check_haproxy, check_nginx, check_whole_nginx, compiled_pid_path
from orch_deploy.haproxy import render_haproxy
from orch_deploy.nginx import path as nginx_path
from orch_deploy.nginx import render_nginx
from orch_deploy.proxy import Options
from orch_deploy.reloading import ask_haproxy, haproxy_pid, nginx_runs, reload_haproxy, reload_nginx
from orch_deploy.site import Site

UNKNOWN_SLOT = "No such"  # HAProxy's answer about a server or backend that its configuration has not


@dataclass(frozen=True, slots=True)
class Means:
    """Where a proxy's file is, and how it is told to take it. binary, pid_file, reload_command: None for the usual.

    force: the first time a file is replaced there that is not as orch wrote it.
    """

    output: Path
    options: Options
    binary: str | None = None
    pid_file: Path | None = None
    reload_command: str | None = None
    force: bool = False


class Proxy(Protocol):
    """One that is kept true."""

    def apply(self, site: Site) -> str:
        """Have it route by this site, and say what was done in a few words; "" if there was nothing to do.

        Raises:
            ConfigError: it does not; the file is the last that it has taken.
        """


class Nginx:
    """Owns its file. It takes a change by a reload."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._applied: str | None = None

    def write(self, site: Site) -> str:
        """The file, checked before it replaces the one that is there. Returns its text."""
        means = self._means
        text = render_nginx(site, means.options)
        check_nginx(text, standalone=means.options.standalone, binary=means.binary)
        writing.put(means.output, text, force=means.force)
        return text

    def next_step(self, site: Site) -> str:
        """What has it take a file that was written."""
        if nginx_runs(self._pid_file(site)):
            return "nginx takes it by --reload"
        return f"start nginx: {self._start()}"

    def _start(self) -> str:
        return f"nginx -c {self._means.output}" if self._means.options.standalone else "systemctl start nginx"

    def apply(self, site: Site) -> str:
        """As `Proxy` says."""
        means = self._means
        text = render_nginx(site, means.options)
        if text == self._applied:
            return ""
        check_nginx(text, standalone=means.options.standalone, binary=means.binary)
        # With another's files around it, it may collide with one of them, which nginx would tell at its next start.
        alone = means.options.standalone or means.reload_command is not None
        check = (lambda: None) if alone else (lambda: check_whole_nginx(means.binary))
        writing.put(means.output, text, check, force=means.force and self._applied is None)
        runs = reload_nginx(self._pid_file(site), means.reload_command)
        self._applied = text
        return "nginx reloaded" if runs else f"written; nginx does not run, start it: {self._start()}"

    def _pid_file(self, site: Site) -> Path:
        means = self._means
        if means.pid_file is not None:
            return means.pid_file
        if means.options.standalone:
            return Path(nginx_path(site, means.options, "pid"))
        return compiled_pid_path(means.binary)


class Haproxy:
    """Owns its file. Servers come, drain and go by orders on its socket; only what else has changed needs a reload."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._applied: str | None = None

    def write(self, site: Site) -> str:
        """The file, checked before it replaces the one that is there. Returns its text."""
        means = self._means
        text = render_haproxy(site, means.options)
        check_haproxy(text, binary=means.binary)
        writing.put(means.output, text, force=means.force and self._applied is None)
        return text

    def next_step(self, site: Site) -> str:
        """What has it take a file that was written."""
        if haproxy_pid(haproxy.socket_path(site, self._means.options)) is not None:
            return "HAProxy takes it by --reload"
        return f"start HAProxy: {self._start()}"

    def _start(self) -> str:
        return f"haproxy -W -f {self._means.output}"

    def apply(self, site: Site) -> str:
        """As `Proxy` says."""
        means = self._means
        before = self._applied if self._applied is not None else writing.content_of(means.output)
        if render_haproxy(site, means.options) == self._applied:
            return ""
        text = self.write(site)
        done = self._tell(site, same=haproxy.structure(text) == haproxy.structure(before))
        self._applied = text
        return done

    def _tell(self, site: Site, *, same: bool) -> str:
        means = self._means
        path = haproxy.socket_path(site, means.options)
        if haproxy_pid(path) is None:
            return f"written; HAProxy does not run, start it: {self._start()}"
        if same:
            said = ask_haproxy(path, haproxy.orders(site))
            if said is None:
                raise ConfigError(f"HAProxy has not taken its orders at {path}")
            if UNKNOWN_SLOT not in said:
                return "HAProxy told"
        reload_haproxy(path, means.pid_file or Path(haproxy.pid_path(site, means.options)), means.reload_command)
        return "HAProxy reloaded"


PROXIES: dict[str, type[Nginx | Haproxy]] = {"nginx": Nginx, "haproxy": Haproxy}
