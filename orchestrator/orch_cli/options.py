"""Options that commands share: those made from the fields of Config, and --name and --json."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from orch.command_settings import ONE_WORD
from orch.config import SETTINGS, Config, Resolved, check, format_value, resolve, shown
from orch.errors import ConfigError
from orch.setting import ARGUMENTS, Setting

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_FILE: Final = "orch.toml"
FLAGS: Final = tuple(name for name in SETTINGS if name not in ARGUMENTS)

name_option = click.option(
    "--name", metavar="NAME", help="Which instance.  [ORCH_NAME; default: that of orch.toml, else default]"
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs instead of text for people."
)


def config_options(*names: str) -> Callable[[F], F]:
    """Add --config and the options of these fields of Config, or of all of them."""

    def decorate(command: F) -> F:
        command = click.option(
            "--config", "config_path", metavar="FILE", help=f"Settings file.  [ORCH_CONFIG; default: ./{DEFAULT_FILE}]"
        )(command)
        for name in reversed(names or FLAGS):
            setting = SETTINGS[name]
            if setting.switch:
                command = click.option(setting.flag, name, is_flag=True, default=None, help=_help(name, setting))(
                    command
                )
                continue
            # Every value stays text here: Config alone knows what is allowed, whatever the source.
            command = click.option(
                setting.flag, name, metavar=setting.metavar, multiple=setting.repeated, help=_help(name, setting)
            )(command)
        return command

    return decorate


def _help(name: str, setting: Setting) -> str:
    default = getattr(Config(), name)
    known = "" if default is None or setting.repeated else f"; default: {format_value(name, default)}"
    return f"{setting.help}  [{setting.variable}{known}]"


def load(options: Mapping[str, Any], config_path: str | None, *, required: Collection[str] = ()) -> Resolved:
    """The configuration from these options, the environment and the file; its warnings are printed."""
    file, file_name = read_file(config_path)
    flags = {name: value for name, value in options.items() if name in SETTINGS}
    resolved = resolve(flags, os.environ, file, file_name, required=required)
    for line in resolved.warnings:
        click.echo(f"orch: warning: {line}", err=True)
    if required:
        _find_command(resolved) if resolved.config.command else _find_target(resolved)
    return resolved


def read_file(config_path: str | None) -> tuple[dict[str, Any], str]:
    """The parsed settings file and what to call it; ./orch.toml need not exist, one that was named must."""
    source = "--config" if config_path else "ORCH_CONFIG"
    named = config_path or os.environ.get("ORCH_CONFIG")
    path = Path(named or DEFAULT_FILE)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), str(path)
    except FileNotFoundError:
        if not named:
            return {}, DEFAULT_FILE
        raise ConfigError(f"config = {named} (from {source}): no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def instance_name(flag: str | None) -> str:
    """The instance that a command is about. Other settings are not looked at: `orch down` works whatever they say."""
    environ = {"ORCH_NAME": os.environ.get("ORCH_NAME", "")}
    file, file_name = ({}, DEFAULT_FILE) if flag or environ["ORCH_NAME"] else read_file(None)
    named = {"name": file["name"]} if "name" in file else {}
    return resolve({"name": flag}, environ, named, file_name).config.name


def seconds(field: str, text: str | None, source: str) -> float | None:
    """An option that is given in seconds, checked by the rule of a field of Config."""
    return None if text is None else float(check(field, text, source))


def _find_target(resolved: Resolved) -> None:
    """A path that is not there is told at once, before anything is planned or started."""
    path = Path(resolved.config.target.rpartition(":")[0])
    if path.suffix == ".py" and not path.is_file():
        raise ConfigError(
            f"target = {resolved.config.target} (from {resolved.origins['target']}): "
            f"there is no file {path} in {Path.cwd()}; name it from there, or whole"
        )


def _find_command(resolved: Resolved) -> None:
    """The same for a program."""
    config = resolved.config
    program = config.command[0]
    if shutil.which(program, path=config.env.get("PATH")) is None:
        where = f"in {Path.cwd()}" if os.sep in program else "on PATH"
        raise ConfigError(
            f"command = {shown(config.command)} (from {resolved.origins['command']}): "
            f"there is no program {program} {where} that can be run; "
            + (ONE_WORD if " " in program else "name its file whole, and see that it is executable")
        )
