"""`orch deploy systemd`: unit files for one instance."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from orch.config import Config, check, resolve
from orch.errors import ConfigError
from orch.whole import write_whole
from orch_cli.options import config_options, read_file
from orch_deploy import systemd as units

F = TypeVar("F", bound=Callable[..., Any])

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
    resolved = resolve({"name": name}, {}, file, file_name, required=("target",))
    return resolved.config, str(path), name is not None and file.get("name", "default") != name


def options_of(
    config: Config,
    settings: str,
    directory: str,
    *,
    user: bool = False,
    named: bool = False,
    socket: bool | None = None,
    watchdog: str | None = None,
    **limits: str | None,
) -> units.Options:
    """From the command line. limits: cpu_weight, memory_high and memory_max, where they were given."""
    given: dict[str, Any] = {key: value for key, value in limits.items() if value is not None}
    if watchdog is not None:
        given["watchdog_s"] = float(check("timeout_s", watchdog, "--watchdog"))
    return units.Options(
        python=os.path.abspath(sys.executable),  # noqa: PTH100  a venv's link stays: it is how Python finds the venv
        settings=settings,
        directory=directory,
        reads=(os.path.realpath(sys.executable), sys.base_prefix),
        user=user,
        socket=units.serves_http(config) if socket is None else socket,
        named=named,
        **given,
    )
