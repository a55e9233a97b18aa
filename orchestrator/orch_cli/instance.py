"""`orch status`, `orch scale` and `orch restart`: what is asked of a running instance over its control socket."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from typing import Any, Final

import click

from orch.errors import ConfigError, NotRunning
from orch.parsing import MAX_REPLICAS
from orch_cli.options import instance_name, json_option, name_option

REFRESH_S: Final = 1.0
CALL_S: Final = 10.0


@click.command()
@name_option
@json_option
@click.option("--watch", is_flag=True, help="Refresh each second until Ctrl-C.")
@click.option("--check", is_flag=True, help="Say only whether requests are served: exit code 0, or 8 with the reason.")
def status(name: str | None, as_json: bool, watch: bool, check: bool) -> None:
    """Show the instance, its replicas and its queue."""
    from orch.supervising import control

    instance = instance_name(name)
    if check:
        _check(control.call(instance, "status"))
        return
    if watch:
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it, not a failure
            _watch(instance, as_json=as_json)
        return
    answer = control.call(instance, "status")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from orch_cli.show import print_out, status_view

    print_out(status_view(answer))


@click.command()
@click.argument("replicas")
@name_option
@json_option
def scale(replicas: str, name: str | None, as_json: bool) -> None:
    """Run REPLICAS replicas from now on."""
    if not replicas.isdecimal() or not 1 <= int(replicas) <= MAX_REPLICAS:
        raise ConfigError(
            f"replicas = {replicas} (from REPLICAS): use a whole number from 1 to {MAX_REPLICAS}; "
            "to stop the instance use orch down"
        )
    from orch.supervising import control

    instance = instance_name(name)
    answer = control.call(instance, "scale", replicas=int(replicas))
    _say(answer, f"{instance} is to have {replicas} replicas; see orch status", as_json=as_json)


@click.command()
@click.argument("replica", required=False)
@click.option("--wait", is_flag=True, help="Return when they serve again; fail if one does not.")
@name_option
@json_option
def restart(replica: str | None, wait: bool, name: str | None, as_json: bool) -> None:
    """Restart REPLICA, or all, one after another.

    Under systemd, SIGHUP to the instance and `systemctl reload` do the same.
    """
    from orch.supervising import control

    instance = instance_name(name)
    # A restart has no deadline of its own: each replica's load and drain have theirs.
    answer = control.call(instance, "restart", timeout=None if wait else CALL_S, replica=replica, wait=wait)
    what = f"{replica} of {instance} restarts" if replica else f"all replicas of {instance} restart, one after another"
    _say(answer, f"{what}; see orch status", as_json=as_json)


def _say(answer: dict[str, Any], otherwise: str, *, as_json: bool) -> None:
    click.echo(json.dumps(answer, indent=2) if as_json else str(answer.get("text") or otherwise))


def _check(answer: Mapping[str, Any]) -> None:
    """For whoever restarts or routes by an exit code, such as a container's health check."""
    if answer["state"] == "DRAINING" or not any(replica["state"] == "READY" for replica in answer["replicas"]):
        raise NotRunning(f"{answer['name']} is {answer['state']}: no replica serves new requests")


def _watch(instance: str, *, as_json: bool) -> None:
    """Ends by NotRunning when the instance does."""
    from rich.live import Live

    from orch.supervising import control
    from orch_cli.show import console, print_out, status_view

    out = console()
    if as_json or not out.is_terminal:
        while True:
            answer = control.call(instance, "status")
            click.echo(json.dumps(answer)) if as_json else print_out(status_view(answer))
            time.sleep(REFRESH_S)
    with Live(status_view(control.call(instance, "status")), console=out, auto_refresh=False) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(status_view(control.call(instance, "status")), refresh=True)
