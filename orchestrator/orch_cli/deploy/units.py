"""`orch deploy systemd`: unit files for one instance."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from orch.config import Config, resolve, shown
from orch.errors import ConfigError
from orch.parsing import Refused, seconds
from orch.whole import write_whole
from orch_cli.options import config_options, read_file
from orch_deploy import systemd as units

F = TypeVar("F", bound=Callable[..., Any])
MAX_WATCHDOG_S: Final = 86_400.0

UNIT_OPTIONS: Final = (
    click.option(
        "--socket/--no-socket", default=None, help="Let systemd hold HTTP's port.  [default: if there is one]"
    ),
    click.option("--watchdog", metavar="SECONDS", help="WatchdogSec.  [default: 30]"),
    click.option("--cpu-weight", metavar="N", help="Of orch.slice.  [default: 100]"),
    click.option("--memory-high", metavar="SIZE", help="Of orch.slice.  [default: 85%]"),
    click.option("--memory-max", metavar="SIZE", help="Of orch.slice.  [default: 90%]"),
)


def unit_options(command: F) -> F:
    """Options of how systemd runs an instance."""
    for option in reversed(UNIT_OPTIONS):
        command = option(command)
    return command


@click.command()
@config_options("name")
@click.option("--user", is_flag=True, help="For your own manager (systemctl --user), without root.")
@unit_options
@click.option("--output", metavar="DIR", help="Write the files there.  [default: print them]")
def systemd(config_path: str | None, name: str | None, user: bool, output: str | None, **how: Any) -> None:
    """Write unit files for an instance: a service, a socket and a slice.

    The instance is what the settings file says; --config names it, else ./orch.toml. A relative target is looked for in
    the present directory.
    """
    config, settings, named = settings_of(config_path, name)
    options = options_of(config, settings, str(Path.cwd()), user=user, named=named, **how)
    if hidden := units.out_of_sight(options):
        click.echo(f"orch: warning: {hidden} is not seen by the service, whose /tmp is its own; move it", err=True)
    texts = units.units(config, options)
    if output is None:
        click.echo("\n".join(f"# --- {file}\n{text}" for file, text in texts.items()), nl=False)
        return
    for file, text in texts.items():
        path = Path(output) / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text.encode())
            path.chmod(0o644)
        except OSError as error:
            raise ConfigError(f"{path} (from --output) cannot be written: {error.strerror}") from error
        click.echo(str(path))


def settings_of(config_path: str | None, name: str | None) -> tuple[Config, str, bool]:
    """The settings of a file alone: a service has no shell's environment. Its absolute path; whether `name` is needed.

    Raises:
        ConfigError: there is no file, or it names nothing to run.
    """
    file, file_name = read_file(config_path)
    path = Path(file_name).absolute()
    if not path.is_file():
        raise ConfigError(
            f"there is no {file_name} in {Path.cwd()}: a service takes its settings from a file (--config FILE)"
        )
    resolved = resolve({"name": name}, {}, file, file_name, required=("target", "command"))
    return resolved.config, str(path), name is not None and file.get("name", "default") != name


def options_of(
    config: Config,
    settings: str,
    directory: str,
    *,
    user: bool = False,
    named: bool = False,
    here: bool = True,
    socket: bool | None = None,
    watchdog: str | None = None,
    **limits: str | None,
) -> units.Options:
    """From the command line. here: for this host, whose programs are looked for.

    limits: cpu_weight, memory_high and memory_max, where they were given.

    Raises:
        ConfigError: a value that cannot work, or a command that the service would not find.
    """
    given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    if watchdog is not None:
        given["watchdog_s"] = _watchdog(watchdog)
    return units.Options(
        python=os.path.abspath(sys.executable),  # noqa: PTH100  a venv's link stays: it is how Python finds the venv
        settings=settings,
        directory=directory,
        reads=(os.path.realpath(sys.executable), sys.base_prefix, *(_program(config, directory) if here else ())),
        user=user,
        socket=units.serves_http(config) if socket is None else socket,
        named=named,
        **given,
    )


def _watchdog(text: str) -> float:
    try:
        return float(seconds(units.MIN_WATCHDOG_S, MAX_WATCHDOG_S)(text))
    except Refused:
        low, high = f"{units.MIN_WATCHDOG_S:g}", f"{MAX_WATCHDOG_S:g}"
        raise ConfigError(f"watchdog = {shown(text)} (from --watchdog): use {low} to {high} seconds") from None


def _program(config: Config, directory: str) -> tuple[str, ...]:
    """Where a command's program is found by the service; nothing for a model.

    Raises:
        ConfigError: it is not: the service would end at once.
    """
    if not config.command:
        return ()
    program = config.command[0]
    path = config.env.get("PATH") or units.search_path(os.path.abspath(sys.executable))  # noqa: PTH100  as below
    found = shutil.which(os.path.join(directory, program) if os.sep in program else program, path=path)  # noqa: PTH118
    if found is None:
        where = f"in {directory}" if os.sep in program else f"in {path}"
        raise ConfigError(
            f"command = {shown(config.command)}: the service finds no program {program} {where}; name its file whole, "
            "or set PATH in [env] of the settings"
        )
    return found, os.path.realpath(found)
