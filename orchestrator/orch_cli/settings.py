"""`orch config`: every setting, its value, and where that came from."""

from __future__ import annotations

import json
from typing import Any

import click

from orch.config import SETTINGS, format_value
from orch_cli.options import config_options, json_option, load
from orch_cli.words import RunsCommand


@click.command(cls=RunsCommand)
@click.argument("target", required=False)
@config_options()
@json_option
def config(config_path: str | None, as_json: bool, **options: Any) -> None:
    """Show every setting and where it came from."""
    resolved = load(options, config_path)
    if as_json:
        click.echo(json.dumps({"config": resolved.config.to_json(), "origins": dict(resolved.origins)}, indent=2))
        return
    from rich.table import Table

    from orch_cli.show import print_out

    table = Table("setting", "value", "from", box=None, header_style="bold")
    for name, setting in SETTINGS.items():
        origin = resolved.origins[name]
        value = format_value(name, getattr(resolved.config, name))
        table.add_row(setting.key, value, origin, style="dim" if origin == "default" else "")
    print_out(table)
