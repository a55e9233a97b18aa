"""The `orch` command: finds the subcommand, and turns whatever it raises into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, Final, NoReturn

import click

from orch.errors import Exit, OrchError
from orch_cli.late import LateGroup

# In the order in which a new user meets them.
COMMANDS: Final = {
    "up": "orch_cli.up:up",
    "plan": "orch_cli.plan:plan",
    "tune": "orch_cli.tune:tune",
    "status": "orch_cli.instance:status",
    "logs": "orch_cli.logs:logs",
    "request": "orch_cli.request:request",
    "scale": "orch_cli.instance:scale",
    "restart": "orch_cli.instance:restart",
    "down": "orch_cli.down:down",
    "keys": "orch_cli.keys:keys",
    "gpus": "orch_cli.gpus:gpus",
    "config": "orch_cli.settings:config",
    "deploy": "orch_cli.deploy:deploy",
}
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, and 128 + SIGPIPE below: what a shell reports for either
EXIT_BROKEN_PIPE: Final = 141


class Coat(LateGroup):
    """The group of all commands, which maps every exception to an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
        except OrchError as error:
            _fail(error, str(error) or type(error).__name__, error.exit_code)
        except KeyboardInterrupt:
            raise SystemExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            _close_stdout()
            raise SystemExit(EXIT_BROKEN_PIPE) from None
        except Exception as error:  # noqa: BLE001  the last resort, which says so
            what = f"{type(error).__name__}: {error}"
            _fail(error, f"{what} (this is a bug in orch; set ORCH_DEBUG=1 for the traceback)", Exit.BUG)


def _fail(error: BaseException, message: str, code: int) -> NoReturn:
    if os.environ.get("ORCH_DEBUG"):
        traceback.print_exception(error, file=sys.stderr)
    from orch_cli import journal

    click.echo(
        journal.prefix(journal.ERR)
        + "orch: "
        + "; ".join(line.strip() for line in message.splitlines() if line.strip()),
        err=True,
    )
    raise SystemExit(int(code)) from None


def _close_stdout() -> None:
    """Nobody reads any more: point stdout nowhere, or the interpreter complains when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # not a real file: nothing will be flushed to it


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from orch.version import __version__

        click.echo(f"orch {__version__}")
        ctx.exit()


@click.group(
    cls=Coat,
    late=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it.")
def main() -> None:
    """Serve a model from as many worker processes as the machine can hold and use."""
