"""What stands behind `--` on the command line: a command, or, as everywhere, a target that looks like an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from orch.parsing import Refused, target


class RunsCommand(click.Command):
    """A command of orch that takes TARGET, or `-- COMMAND ARGUMENT…` in its place (the parameter `command`)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        if "--" in args and not _is_target(args[args.index("--") + 1 :]):
            at = args.index("--")
            args, words = args[:at], args[at + 1 :]
        rest = super().parse_args(ctx, args)
        ctx.params["command"] = tuple(words)
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND [ARGUMENT]...]"]


def _is_target(words: list[str]) -> bool:
    """`-- file.py:Name` is how a target is given whose name begins with a dash."""
    try:
        return len(words) <= 1 and bool(not words or target(words[0]))
    except Refused:
        return False


def command_line(options: Mapping[str, Any]) -> list[str]:
    """What goes behind `--` to say the same once more."""
    target_or_command = options.get("command") or ([options["target"]] if options.get("target") else [])
    return ["--", *target_or_command] if target_or_command else []
