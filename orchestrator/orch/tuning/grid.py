"""The grid of `orch tune`: the configurations it has, what each came to, and which are left to measure.

A cell is one configuration. Cells that differ in nothing but their replicas are a series: one instance measures them
upwards, so that no replica loads twice. What a series refuses it refuses for good: a count above one that did not fit
is not tried.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from orch.config import SETTINGS, check, shown
from orch.errors import ConfigError

AUTO: Final = "auto"
NUMBER: Final = "a whole number"  # how the rule of a count begins
# Batch sizes grow by this from 1: finer steps change throughput by less than they cost to measure.
SIZE_STEP: Final = 4
# Counts of replicas grow by this, so that even the most that fit are reached in a few steps.
COUNT_STEP: Final = 2
# Counts that a series is taken to have while nobody knows how many fit: 1, 2, 4.
LIKELY_COUNTS: Final = 3


class Outcome(enum.StrEnum):
    """What became of a cell. FAILED is tried again by the next run, the others are facts."""

    MEASURED = "measured"
    DOES_NOT_FIT = "does not fit"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, order=True)
class Series:
    """The cells that one instance measures. max_batch_size: None is the model's own, while nobody knows it."""

    mps: bool
    max_batch_size: int | None


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One configuration."""

    replicas: int
    max_batch_size: int
    mps: bool

    @property
    def series(self) -> Series:
        return Series(self.mps, self.max_batch_size)


@dataclass(frozen=True, slots=True)
class Row:
    """What a cell came to.

    answers_per_s, p50_s, p99_s: with `outstanding` requests outstanding, over `seconds`, all from the same window.
    alone_s: the median latency of one request at a time. steady: two windows in a row agreed. footprint_bytes: of one
    replica. fits: replicas that fit, as far as anybody asked. reason: why it was not measured.
    """

    cell: Cell
    outcome: Outcome
    reason: str = ""
    answers_per_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    alone_s: float = 0.0
    answers: int = 0
    outstanding: int = 0
    seconds: float = 0.0
    steady: bool = True
    footprint_bytes: int | None = None
    fits: int | None = None

    @property
    def is_measured(self) -> bool:
        return self.outcome is Outcome.MEASURED


@dataclass(frozen=True, slots=True)
class Grid:
    """What is asked for.

    replicas: None doubles the count for as long as that pays and fits. max_batch_sizes: None is 1 and powers of four
    up to the model's own. min_gain: the share that more replicas have to add, for counts that are not listed.
    """

    replicas: tuple[int, ...] | None
    max_batch_sizes: tuple[int, ...] | None
    mps: tuple[bool, ...]
    min_gain: float

    def has(self, cell: Cell) -> bool:
        """Whether it was asked for. What is not listed excludes nothing."""
        return (
            (self.replicas is None or cell.replicas in self.replicas)
            and (self.max_batch_sizes is None or cell.max_batch_size in self.max_batch_sizes)
            and cell.mps in self.mps
        )

    def asked(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
        """The rows that were asked for, and the others."""
        return [row for row in rows if self.has(row.cell)], [row for row in rows if not self.has(row.cell)]

    def series(self, own_size: int | None) -> list[Series]:
        """In the order to measure them: what is likely to pay first. own_size: the model's, None while unknown."""
        sizes: Sequence[int | None] = self.max_batch_sizes or ([None] if own_size is None else batch_sizes(own_size))
        return [Series(mps, size) for mps in sorted(self.mps, reverse=True) for size in reversed(sizes)]

    def next_count(self, rows: Sequence[Row]) -> int | None:
        """The next count of replicas to measure in the series of these rows; None: it is done."""
        done = {row.cell.replicas: row for row in rows}
        if not all(row.is_measured for row in rows):
            refused = min(count for count, row in done.items() if not row.is_measured)
            return next((n for n in self.replicas or () if n not in done and n < refused), None)
        if self.replicas is not None:
            return next((n for n in self.replicas if n not in done), None)
        if not done:
            return 1
        top = max(done)
        before = max((row.answers_per_s for count, row in done.items() if count < top), default=0.0)
        fits = done[top].fits or 1
        if top >= fits or done[top].answers_per_s < before * (1 + self.min_gain):
            return None
        return min(top * COUNT_STEP, fits)

    def num_left(self, rows: Sequence[Row], own_size: int | None) -> int:
        """About how many cells are left; exact where the counts are listed and the batch sizes known."""
        by_series: dict[Series, list[Row]] = {series: [] for series in self.series(own_size)}
        for row in rows:
            by_series.setdefault(row.cell.series, []).append(row)
        if self.replicas is None:
            lengths = [len(found) for found in by_series.values() if found and self.next_count(found) is None]
            typical = max(lengths, default=LIKELY_COUNTS)
        left = 0
        for series in self.series(own_size):
            found = by_series[series]
            if self.next_count(found) is None:
                continue
            if self.replicas is None:
                left += max(1, typical - len(found))
            else:
                done = {row.cell.replicas for row in found}
                refused = min(
                    (row.cell.replicas for row in found if not row.is_measured), default=max(self.replicas) + 1
                )
                left += sum(n not in done and n < refused for n in self.replicas)
        return left


def batch_sizes(own: int) -> list[int]:
    """1, 4, 16, ... and the model's own."""
    sizes = [1]
    while sizes[-1] * SIZE_STEP < own:
        sizes.append(sizes[-1] * SIZE_STEP)
    return sizes if own == 1 else [*sizes, own]


# --- what the command line says


def read_counts(text: str | None, source: str) -> tuple[int, ...] | None:
    """Counts of replicas from "1,2,4", rising; None for auto."""
    return _read("replicas", text, source, "1,2,4")


def read_sizes(text: str | None, source: str) -> tuple[int, ...] | None:
    """Batch sizes from "1,8,32", rising; None for auto."""
    return _read("max_batch_size", text, source, "1,8,32")


def read_mps(text: str | None, source: str) -> tuple[bool, ...] | None:
    """Whether with MPS and without, from "on,off"; None for auto."""
    if text is None or text.strip().lower() == AUTO:
        return None
    words = _words("mps", text, source, "on,off")
    return tuple(sorted({check("mps", word, source) == "on" for word in words}))


def _read(field: str, text: str | None, source: str, example: str) -> tuple[int, ...] | None:
    if text is None or text.strip().lower() == AUTO:
        return None
    return tuple(sorted({_number(field, word, text, source, example) for word in _words(field, text, source, example)}))


def _number(field: str, word: str, text: str, source: str, example: str) -> int:
    try:
        return int(check(field, word, source))
    except ConfigError:
        allowed = NUMBER + SETTINGS[field].allowed.partition(NUMBER)[2]
        raise ConfigError(
            f"{field} = {shown(text)} (from {source}): {shown(word)} is not {allowed}; "
            f"use auto, or a list such as {example}"
        ) from None


def _words(field: str, text: str, source: str, example: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word or word.lower() in (AUTO, "best"):
            raise ConfigError(
                f"{field} = {shown(text)} (from {source}): {word or 'an empty entry'} cannot be tried; "
                f"use auto alone, or a list such as {example}"
            )
    return words


def by_series(rows: Sequence[Row]) -> Mapping[Series, list[Row]]:
    """Rows by the series they belong to, each in rising order of replicas."""
    found: dict[Series, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.cell.replicas):
        found.setdefault(row.cell.series, []).append(row)
    return found
