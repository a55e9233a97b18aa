"""`orch up`: the supervisor in the foreground, or in a process of its own."""

from __future__ import annotations

import os
from typing import Any

import click

from orch_cli.options import config_options, load
from orch_cli.words import RunsCommand


@click.command(cls=RunsCommand)
@click.argument("target", required=False)
@config_options()
@click.option("--no-http", is_flag=True, help="Serve no HTTP: the same as --http off.")
@click.option("--detach", is_flag=True, help="Start in the background; return once every replica is ready.")
@click.option("--detached", is_flag=True, hidden=True)  # what --detach starts: its stderr is a file nobody rotates
@click.option("--samples", metavar="FILE", hidden=True)  # for orch tune: where the warm-up samples are written
def up(
    config_path: str | None, detach: bool, detached: bool, no_http: bool, samples: str | None, **options: Any
) -> None:
    """Start TARGET, or COMMAND, and keep it running until Ctrl-C.

    TARGET is path/to/file.py:Name or package.module:Name, a class (orch.Model) or a function that takes and returns a
    list. COMMAND is any HTTP server, run once for each replica: {port} in its arguments is where to listen.
    """
    if no_http:
        if options["http"] not in (None, "off"):
            raise click.UsageError("--no-http and --http contradict each other")
        options["http"] = "off"
    resolved = load(options, config_path, required=("target", "command"))
    if detach:
        from orch_cli.detach import start_detached

        raise SystemExit(start_detached(resolved, options, config_path))

    if os.getpid() == 1:  # of a container
        from orch.supervising.first import step_aside

        step_aside()

    from orch.supervising.supervisor import Supervisor
    from orch_cli.display import display_for

    with display_for(resolved.config, show_output=not detached) as display:
        code = Supervisor(resolved.config, report=display.report, samples=samples).run()
    raise SystemExit(code)
