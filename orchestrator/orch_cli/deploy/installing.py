"""`orch deploy install`, `upgrade` and `uninstall`: an instance as a service of this host."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from orch.config import Config
from orch.errors import ConfigError, NotRunning
from orch.http_settings import is_local, split
from orch.version import __version__
from orch_cli.deploy.units import options_of, settings_of, unit_options
from orch_cli.options import instance_name, name_option
from orch_deploy import installing, layout, systemd
from orch_deploy.checking import nginx_version
from orch_deploy.host import Machine
from orch_deploy.layout import Wanted
from orch_deploy.proxy import Options
from orch_deploy.steps import Do, Step, told

F = TypeVar("F", bound=Callable[..., Any])
PROXIES: Final = ("nginx", "haproxy", "none")
PROXY_CHOICES: Final = ("proxy", "server_name", "tls_cert", "tls_key")

dry_run_option = click.option("--dry-run", is_flag=True, help="Print each step, and do nothing.")
diff_option = click.option("--diff", is_flag=True, help="Print what is in the files, or how they change.")
root_option = click.option(
    "--root", metavar="DIR", help="Into this folder, which is to become a host; nothing is started."
)
config_option = click.option("--config", "config_path", metavar="FILE", help="Settings file.  [default: ./orch.toml]")


def proxied(command: F) -> F:
    """Options about a proxy; `orch deploy nginx` and `orch deploy haproxy` have the others."""
    command = click.option("--tls-key", metavar="FILE", help="Its private key; unset: in the same file.")(command)
    command = click.option("--tls-cert", metavar="FILE", help="The proxy's certificate, PEM: serves HTTPS.")(command)
    command = click.option("--server-name", metavar="HOST", help="Clients' name for the proxy.")(command)
    return click.option(
        "--proxy", type=click.Choice(PROXIES), help="What stands in front of it.  [default: none, or as installed]"
    )(command)


@click.command()
@config_option
@name_option
@proxied
@unit_options
@root_option
@dry_run_option
@diff_option
def install(config_path: str | None, name: str | None, root: str | None, dry_run: bool, diff: bool, **how: Any) -> None:
    """Make the instance of a settings file a service of this host.

    That is: the user orch, directories, settings and keys in /etc/orch, systemd's units, and a proxy's configuration.
    What is there already is left as it is; --dry-run tells everything before.
    """
    config, settings, named = settings_of(config_path, name)
    _install(config, settings, named, root, dry_run=dry_run, diff=diff, again=False, **how)


@click.command()
@click.option("--config", "config_path", metavar="FILE", help="New settings.  [default: those that are installed]")
@name_option
@proxied
@unit_options
@root_option
@dry_run_option
@diff_option
def upgrade(config_path: str | None, name: str | None, root: str | None, dry_run: bool, diff: bool, **how: Any) -> None:
    """Bring an installed instance up to date with this version of orch, with new settings, or with a changed model.

    Files that you have changed stay, with the new ones beside them as FILE.new. If settings, units or orch itself have
    changed, the service starts anew while its socket takes connections; otherwise its replicas do, one after another.
    """
    instance = instance_name(name) if config_path is None else settings_of(config_path, name)[0].name
    machine = Machine(Path(root) if root else None)
    _installed(machine, instance)
    source = config_path or str(_inside(machine, layout.settings_path(instance)))
    config, settings, named = settings_of(source, name)
    _install(config, settings, named, root, dry_run=dry_run, diff=diff, again=True, **how)


@click.command()
@name_option
@click.option("--purge", is_flag=True, help="Remove logs, keys, caches and changed files, too.")
@root_option
@dry_run_option
def uninstall(name: str | None, purge: bool, root: str | None, dry_run: bool) -> None:
    """Stop an installed instance, and remove what `orch deploy install` has made for it.

    Files that were changed since, logs and keys stay unless --purge is given.
    """
    instance = instance_name(name)
    machine = Machine(Path(root) if root else None)
    manifest = _installed(machine, instance)
    steps = installing.uninstall(instance, manifest, machine.facts(instance), purge=purge)
    _carry_out(machine, steps, dry_run=dry_run)


def _install(
    config: Config,
    settings: str,
    named: bool,
    root: str | None,
    *,
    dry_run: bool,
    diff: bool,
    again: bool,
    **given: Any,
) -> None:
    machine = Machine(Path(root) if root else None)
    before = machine.manifest(config.name)
    given = _chosen(given)
    choices = {**machine.shared_choices(config.name), **(before.choices if before else {}), **given}
    _check_proxy(choices, given, machine)
    directory = str(Path.cwd())
    if before is not None:
        unit = machine.found(f"{layout.UNITS}/{systemd.unit_name(config.name)}.service")
        directory = _line(unit, "WorkingDirectory=") or directory
    how = {key: value for key, value in choices.items() if key not in PROXY_CHOICES}
    options = options_of(config, settings, directory, named=named, here=machine.root is None, **how)
    if machine.root is None:
        _reachable(options)
    proxy_options = Options(
        server_name=str(choices.get("server_name", "_")),
        tls_cert=choices.get("tls_cert"),
        tls_key=choices.get("tls_key", choices.get("tls_cert")),
        version=nginx_version() if machine.root is None else None,
    )
    text = Path(settings).read_text(encoding="utf-8")
    wanted = Wanted(config, text, options, choices.get("proxy", "none"), proxy_options, choices)
    steps = installing.install(wanted, before, machine.facts(config.name), __version__, again=again)
    _carry_out(machine, steps, dry_run=dry_run, diff=diff)
    if not before or dry_run:
        for line in _hints(wanted):
            click.echo(line)


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; files by their absolute paths."""
    chosen = {key: value for key, value in given.items() if value is not None}
    return {key: str(Path(value).absolute()) if key.startswith("tls_") else value for key, value in chosen.items()}


def _check_proxy(choices: dict[str, Any], given: dict[str, Any], machine: Machine) -> None:
    """A certificate without a proxy would leave HTTP as it is, and one that is not there a proxy that does not start.

    Raises:
        ConfigError: it is so.
    """
    if choices.get("proxy", "none") == "none":
        for key in PROXY_CHOICES[1:]:
            if key in given:
                flag = "--" + key.replace("_", "-")
                raise ConfigError(f"{key} = {given[key]} (from {flag}) is for a proxy, and none is chosen: add --proxy")
        return
    if "tls_key" in choices and "tls_cert" not in choices:
        raise ConfigError(f"tls_key = {choices['tls_key']} is given without --tls-cert; HTTPS needs both")
    for key in ("tls_cert", "tls_key"):
        if machine.root is None and key in choices and not Path(choices[key]).is_file():
            raise ConfigError(f"{key} = {choices[key]}: there is no such file; the proxy needs it before it starts")


def _carry_out(machine: Machine, steps: list[Step], *, dry_run: bool, diff: bool = False) -> None:
    if not any(step.do is not Do.KEEP for step in steps):
        for step in steps:
            click.echo("\n".join(told(step)))
        click.echo("nothing to do")
        return
    for step in steps:
        click.echo("\n".join(told(step, whole=diff)))
        if not dry_run:
            machine.perform(step)
    click.echo("nothing was done: --dry-run" if dry_run else "done")


def _hints(wanted: Wanted) -> list[str]:
    """What is left to a person."""
    config, name = wanted.config, wanted.name
    unit = systemd.unit_name(name)
    lines = [
        f"logs    journalctl -u {unit} -f; orch rotates its own files in {layout.STATE}/{name} itself (log_max_size)",
        f"look    systemctl status {unit}; orch status --name {name}   (as root)",
    ]
    if wanted.http_proxy == "nginx" and wanted.proxy_options.server_name == "_":
        lines.append("proxy   no --server-name: Debian's /etc/nginx/sites-enabled/default answers first; remove it")
    if systemd.serves_http(config):
        lines.append(f"keys    ORCH_KEYS_FILE={systemd.keys_file(config)} orch keys add NAME   (as root)")
        if not is_local(split(systemd.listen_address(config))[0]) and not config.insecure:
            lines.append(f"        before it starts: http = {config.http} is for other machines, which need a key")
    return lines


def _reachable(options: systemd.Options) -> None:
    """The user orch has to get at the program; a folder that is closed to others would only be noticed at the start.

    Raises:
        ConfigError: it cannot, or the service cannot see it.
    """
    if hidden := systemd.out_of_sight(options):
        raise ConfigError(
            f"{hidden}: the service cannot see it, as its /tmp is its own (PrivateTmp); move it elsewhere"
        )
    for path in (*options.reads, options.directory):
        for folder in (Path(path), *Path(path).parents):
            try:
                mode = folder.stat().st_mode
            except OSError:
                continue
            if not mode & stat.S_IXOTH:
                raise ConfigError(
                    f"the user {installing.USER} cannot reach {path}: {folder} is closed to others; "
                    f"install orch where it can, as in python3 -m venv /opt/orch, and the model beside it"
                )


def _installed(machine: Machine, name: str) -> Any:
    manifest = machine.manifest(name)
    if manifest is None:
        raise NotRunning(f"no instance {name!r} was installed here (there is no {layout.manifest_path(name)})")
    return manifest


def _inside(machine: Machine, path: str) -> Path:
    return Path(path) if machine.root is None else machine.root / path.lstrip("/")


def _line(text: str | None, begin: str) -> str:
    """What a unit says, without its escapes."""
    found = next((line for line in (text or "").splitlines() if line.startswith(begin)), "")
    return found.removeprefix(begin).replace("%%", "%")
