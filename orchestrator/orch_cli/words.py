"""What stands behind `--` on the command line: a command, or, as everywhere, a target that looks like an option."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orch.command import PORT, names_port
from orch.parsing import Refused, target


class RunsCommand(click.Command):
    """A command of orch that takes TARGET, or `-- COMMAND ARGUMENT…` in its place (the parameter `command`)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if words := command_in(args):
            args = args[: args.index("--")]
        given = list(args)  # which click takes apart
        try:
            rest = super().parse_args(ctx, args)
        except click.UsageError as error:
            if not words and (hint := self.hint(ctx, given, error)):
                raise click.UsageError(f"{error.message.removesuffix('.')}; {hint}", ctx) from None
            raise
        ctx.params["command"] = tuple(words)
        return rest

    def hint(self, ctx: click.Context, args: list[str], error: click.UsageError) -> str:
        """What to write instead, where it looks like a command without its `--`; else nothing."""
        options, words = self._apart(args)
        is_plain = type(error) is click.UsageError  # too many words, not an option that is misspelled
        if not words or _is_target(words[:1]) or not (is_plain or names_port(words)):
            return ""
        return f"a command stands behind --: {ctx.command_path} {shlex.join([*options, '--'])} {as_typed(words)}"

    def _apart(self, args: list[str]) -> tuple[list[str], list[str]]:
        """The options that are ours, and the words from the first that is none."""
        parser = self.make_parser(click.Context(self, resilient_parsing=True))
        parser.allow_interspersed_args = False
        try:
            given, rest, _ = parser.parse_args(list(args))
        except click.UsageError:
            return args, []
        first = [given["target"]] if isinstance(given.get("target"), str) else []
        num_words = len(first) + len(rest)
        return args[: len(args) - num_words], args[len(args) - num_words :]

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND [ARGUMENT]...]"]


def as_typed(words: Sequence[str]) -> str:
    """Words as a shell takes them. Bash leaves {port} alone: it needs no quotes of its own."""
    return " ".join(word if _is_bare(word.replace(PORT, "0")) else shlex.quote(word) for word in words)


def _is_bare(word: str) -> bool:
    return shlex.quote(word) == word


def _is_target(words: list[str]) -> bool:
    """`-- file.py:Name` is how a target is given whose name begins with a dash."""
    try:
        return len(words) <= 1 and bool(not words or target(words[0]))
    except Refused:
        return False


def command_in(args: Sequence[str]) -> list[str]:
    """The words behind `--`, unless they are a target."""
    words = list(args[args.index("--") + 1 :]) if "--" in args else []
    return [] if _is_target(words) else words


def command_line(options: Mapping[str, Any]) -> list[str]:
    """What goes behind `--` to say the same once more."""
    target_or_command = options.get("command") or ([options["target"]] if options.get("target") else [])
    return ["--", *target_or_command] if target_or_command else []
