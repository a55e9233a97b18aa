"""`orch keys`: who may use an instance over HTTP."""

from __future__ import annotations

import datetime as dt
import json
import os

import click

from orch import keys as key_file
from orch.config import Config, shown
from orch.errors import ConfigError, OrchError
from orch_cli.options import instance_name, json_option, name_option, read_file

MAX_RATE = 1e6
STATUS_S = 2.0  # for an instance to say what it runs


@click.group()
def keys() -> None:
    """Add, list and remove API keys. As soon as an instance has one, HTTP requests need one."""


@keys.command()
@click.argument("key")
@name_option
@click.option("--rate", metavar="N", help="Requests in a second that it may ask; unset: any number.")
def add(key: str, name: str | None, rate: str | None) -> None:
    """Make a key called KEY and print it. It is shown this once: only a digest is kept."""
    instance = instance_name(name)
    _refuse_for_command(instance)
    token = key_file.add(key_file.path_of(instance), key, _rate(rate))
    click.echo(token)
    click.echo(f"orch: send it as `Authorization: Bearer KEY`; HTTP requests to {instance} now need a key", err=True)


@keys.command("list")
@name_option
@json_option
def list_(name: str | None, as_json: bool) -> None:
    """Show the keys' names; the keys themselves are kept nowhere."""
    rows = key_file.read(key_file.path_of(instance_name(name)))
    if as_json:
        click.echo(json.dumps([{name: row[name] for name in ("name", "rate", "made_at")} for row in rows], indent=2))
        return
    for row in rows:
        made = dt.datetime.fromtimestamp(row["made_at"], dt.UTC)
        rate = "any rate" if row["rate"] is None else f"{row['rate']:g} a second"
        click.echo(f"{row['name']}  {rate}  made {made:%Y-%m-%d %H:%M} UTC")
    if not rows:
        click.echo("no keys: whoever reaches the address may use the instance", err=True)


@keys.command()
@click.argument("key")
@name_option
def remove(key: str, name: str | None) -> None:
    """Take the key called KEY away; it is refused within seconds."""
    key_file.remove(key_file.path_of(instance_name(name)), key)


def _refuse_for_command(instance: str) -> None:
    """Nobody would ask for the key: the servers of a command speak HTTP themselves."""
    if words := _command_of(instance):
        raise ConfigError(
            f"{instance} is for a command ({shown(words)}): its servers answer HTTP themselves, and ask for no "
            "key of orch; have them ask for one of their own, or the proxy before them"
        )


def _command_of(instance: str) -> object:
    """What the instance runs, or else is set to run, in a model's place; nothing of a model."""
    from orch.supervising import control

    try:
        return control.call(instance, "status", timeout=STATUS_S).get("command")
    except OrchError:
        pass  # it does not run
    try:
        file, _ = read_file(None)
    except ConfigError:
        return os.environ.get("ORCH_COMMAND")
    named = os.environ.get("ORCH_NAME") or file.get("name", Config().name)
    return (os.environ.get("ORCH_COMMAND") or file.get("command")) if named == instance else None


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= MAX_RATE:
        raise ConfigError(f"rate = {text[:80]} (from --rate): use a number above 0, at most {MAX_RATE:g}")
    return rate
