"""The result file: what was measured so far, and for what. It is written whole after each configuration that was.

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
OTHER: Final = "it is left as it is, --out names another file"
KEYS: Final = frozenset({"format", "facts", "own_batch_size", "rows"})
# How a report begins, within so many bytes.
REPORT_MARK, HEAD_BYTES = b"<title>orch tune: ", 2000

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

        fresh: of a file of ours nothing is taken; it stays until the first row replaces it.

        Raises:
            ConfigError: the file, or the report beside it, is not one of ours and so must not be replaced; it was
                measured for other facts, or cannot be read or written.
        """
        results = cls(path, facts)
        content = _content_of(path)
        if content is not None and not fresh:
            results._take(content)
        _check_report(results.report_path)
        replace(path, None)  # now, and not after the first hour, it is found out that it cannot be
        return results

    @property
    def report_path(self) -> Path:
        """The report's, beside it."""
        return self.path.with_suffix(".html")

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured: that is not worth a file."""
        return not any(row.is_measured for row in self.rows)

    def add(self, row: Row) -> None:
        """Keep it, in place of what was known of that configuration."""
        self.rows = [each for each in self.rows if each.cell != row.cell] + [row]
        self.write()

    def note_own_batch_size(self, size: int) -> None:
        self.own_batch_size = size
        self.write()

    def write(self) -> None:
        """Replace the file in one step; none is made of nothing.

        Raises:
            ConfigError: it cannot be written.
        """
        if self.is_empty:
            return
        rows = [as_json(row) for row in self.rows]
        content = {"format": FORMAT, "facts": self.facts, "own_batch_size": self.own_batch_size, "rows": rows}
        replace(self.path, json.dumps(content, indent=1) + "\n")

    def _take(self, content: Mapping[str, Any]) -> None:
        if not content["rows"]:
            return
        if content["format"] != FORMAT:
            raise ConfigError(
                f"{self.path} has format {content['format']}, and this version of orch reads {FORMAT}; {ANEW}"
            )
        try:
            facts, rows = dict(content["facts"]), [row_of(each) for each in content["rows"]]
            own = None if content["own_batch_size"] is None else _count(content["own_batch_size"])
        except (KeyError, TypeError, ValueError) as err:
            raise ConfigError(f"{self.path} is damaged; {ANEW}") from err
        if changed := differences(facts, json.loads(json.dumps(self.facts))):
            if any(row.is_measured for row in rows):
                raise ConfigError(f"{self.path} was measured for something else: {'; '.join(changed)}; {ANEW}")
            return
        self.own_batch_size = own
        self.rows = [row for row in rows if row.outcome is not Outcome.FAILED]


def _content_of(path: Path) -> dict[str, Any] | None:
    """What a result file of any version holds; None where there is no file."""
    if not path.exists():
        return None
    if not path.is_file():
        raise ConfigError(f"{path} is no file; {OTHER}")
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MAX_FILE_BYTES))
    except OSError as err:
        raise ConfigError(f"{path} cannot be read: {err.strerror}; {OTHER}") from err
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not content.keys() >= KEYS or type(content["format"]) is not int:
        raise ConfigError(f"{path} is no result file of orch tune; {OTHER}")
    return content


def _check_report(path: Path) -> None:
    """Raises ConfigError: there is something else."""
    try:
        with path.open("rb") as file:
            is_ours = REPORT_MARK in file.read(HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as err:
        raise ConfigError(f"{path}, where the report would be, cannot be read: {err.strerror}; {OTHER}") from err
    if not is_ours:
        raise ConfigError(f"{path}, where the report would be, is no report of orch tune; {OTHER}")


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


def replace(path: Path, text: str | None) -> None:
    """Write a file in one step: whoever reads it sees the old one or the new one, whenever we die.

    text: None tries whether it could be written, and leaves it as it is.

    Raises:
        ConfigError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        try:
            unfinished.write_text(text or "", encoding="utf-8")
            if text is not None:
                unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror}; choose another place with --out") from err
