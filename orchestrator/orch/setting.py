"""How a setting is declared: one field of `Config` or `HttpSettings`, with everything that is known of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from orch.parsing import Parse

# Settings that the command line takes without a flag, and what they are called there.
ARGUMENTS: Final = {"target": "TARGET", "command": "-- COMMAND"}


@dataclass(frozen=True, slots=True)
class Setting:
    """How one field is given from outside: its key, its parser, and the words for people."""

    key: str
    parse: Parse
    allowed: str
    help: str
    metavar: str
    repeated: bool  # given as KEY=VALUE any number of times; a table in the file
    switch: bool = False  # yes or no; its flag stands alone

    @property
    def flag(self) -> str:
        return ARGUMENTS.get(self.key) or "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return "ORCH_" + self.key.upper()


def declare(
    default: object,
    parse: Parse,
    metavar: str,
    allowed: str,
    words: str,
    *,
    key: str = "",
    repeated: bool = False,
    switch: bool = False,
) -> Any:
    """A field of a dataclass of settings. words: its help."""
    setting = Setting(key, parse, allowed, words, metavar, repeated, switch)
    if repeated:
        return field(default_factory=dict, metadata={"setting": setting})
    return field(default=default, metadata={"setting": setting})
