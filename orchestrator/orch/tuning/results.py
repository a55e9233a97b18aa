"""The result file: what was measured so far, and for what. It is written whole after each configuration.

One JSON object: {"format": 1, "facts": {...}, "own_batch_size": N or null, "rows": [{"replicas": ..., ...}, ...]}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from orch.errors import ConfigError
from orch.tuning.facts import differences
from orch.tuning.grid import Cell, Outcome, Row
from orch.tuning.summary import as_json

FORMAT: Final = 1
# A row is about 500 bytes: a file beyond this is not one of ours.
MAX_FILE_BYTES: Final = 64 * 2**20
ANEW: Final = "--fresh starts anew, --out names another file"

COUNTS: Final = ("answers", "outstanding")
FIGURES: Final = ("answers_per_s", "p50_s", "p99_s", "alone_s", "seconds")
MAYBE: Final = ("footprint_bytes", "fits")


class Results:
    """Owns the rows and the file they are in. own_batch_size: what the model itself says; None while unknown."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.facts = facts
        self.own_batch_size: int | None = None
        self.rows: list[Row] = []

    @classmethod
    def open(cls, path: Path, facts: Mapping[str, Any], *, fresh: bool) -> Self:
        """What an earlier run has left there, without its failures, which are tried again; else nothing yet.

        Raises:
            ConfigError: the file is not one of ours, was measured for other facts, or cannot be read or written.
        """
        results = cls(path, facts)
        if not fresh:
            results._read()
        results.write()  # now, and not after the first hour, it is found out that it cannot be
        return results

    def add(self, row: Row) -> None:
        """Keep it, in place of what was known of that configuration."""
        self.rows = [each for each in self.rows if each.cell != row.cell] + [row]
        self.write()

    def note_own_batch_size(self, size: int) -> None:
        self.own_batch_size = size
        self.write()

    def write(self) -> None:
        """Replace the file in one step.

        Raises:
            ConfigError: it cannot be written.
        """
        rows = [as_json(row) for row in self.rows]
        content = {"format": FORMAT, "facts": self.facts, "own_batch_size": self.own_batch_size, "rows": rows}
        replace(self.path, json.dumps(content, indent=1) + "\n")

    def _read(self) -> None:
        try:
            with self.path.open("rb") as file:
                text = file.read(MAX_FILE_BYTES)
        except FileNotFoundError:
            return
        except OSError as err:
            raise ConfigError(f"{self.path} cannot be read: {err.strerror}; {ANEW}") from err
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ConfigError(
                    f"{self.path} has format {content['format']}, and this version of orch reads {FORMAT}; {ANEW}"
                )
            facts, rows = dict(content["facts"]), [row_of(each) for each in content["rows"]]
            own = content["own_batch_size"]
            self.own_batch_size = None if own is None else _count(own)
        except (KeyError, TypeError, ValueError, RecursionError) as err:
            raise ConfigError(f"{self.path} is no result file of orch tune; {ANEW}") from err
        if changed := differences(facts, json.loads(json.dumps(self.facts))):
            raise ConfigError(f"{self.path} was measured for something else: {'; '.join(changed)}; {ANEW}")
        self.rows = [row for row in rows if row.outcome is not Outcome.FAILED]


def row_of(entry: Mapping[str, Any]) -> Row:
    """The row that an entry of the file stands for.

    Raises:
        KeyError, TypeError, ValueError: it stands for none.
    """
    if type(entry["mps"]) is not bool or type(entry["steady"]) is not bool:
        raise ValueError("mps and steady are truth values")
    fields: dict[str, Any] = {name: _count(entry[name]) for name in COUNTS}
    fields |= {name: _figure(entry[name]) for name in FIGURES}
    fields |= {name: None if entry[name] is None else _count(entry[name]) for name in MAYBE}
    cell = Cell(_count(entry["replicas"]), _count(entry["max_batch_size"]), entry["mps"])
    return Row(cell, Outcome(entry["outcome"]), str(entry["reason"]), steady=entry["steady"], **fields)


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _figure(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{value!r} is no figure")
    return float(value)


def replace(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it sees the old one or the new one, whenever we die.

    Raises:
        ConfigError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror}; choose another place with --out") from err
