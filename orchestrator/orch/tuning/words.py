"""Figures and configurations in words, the same on the terminal and in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orch.tuning.grid import Cell, Outcome, Row, Series

TIMES: Final = "\N{MULTIPLICATION SIGN}"
SHOWN_DIGEST: Final = 12  # hex digits


def rate(answers_per_s: float) -> str:
    """Answers per second with three digits that matter: 5.29, 52.9, 529, 12,345."""
    for limit, digits in ((10, 2), (100, 1)):
        if answers_per_s < limit:
            return f"{answers_per_s:.{digits}f}"
    return f"{answers_per_s:,.0f}"


def latency(seconds: float) -> str:
    """Seconds with three digits that matter, in ms below one second."""
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    for limit, digits in ((10, 2), (100, 1)):
        if value < limit:
            return f"{value:.{digits}f} {unit}"
    return f"{value:,.0f} {unit}"


def replicas(count: int) -> str:
    """1 replica, 2 replicas."""
    return f"{count} replica{'' if count == 1 else 's'}"


def configurations(count: int) -> str:
    """1 configuration, 2 configurations."""
    return f"{count} configuration{'' if count == 1 else 's'}"


def series(which: Series, *, has_gpu: bool = True) -> str:
    """Batches of 8, MPS on."""
    size = "the model's own batch size" if which.max_batch_size is None else f"batches of {which.max_batch_size}"
    return f"{size}{_mps(which.mps, has_gpu=has_gpu)}"


def cell(which: Cell, *, has_gpu: bool = True) -> str:
    """4 replicas, batches of 8, MPS on."""
    return f"{replicas(which.replicas)}, batches of {which.max_batch_size}{_mps(which.mps, has_gpu=has_gpu)}"


def label(which: Cell) -> str:
    """4x8, with the sign for it: replicas and batch size."""
    return f"{which.replicas}{TIMES}{which.max_batch_size}"


def figures(row: Row) -> str:
    """What was measured, or what came instead; of a sum that did not fit only what it came to."""
    if row.is_measured:
        about = "" if row.steady else "~"
        return f"{about}{rate(row.answers_per_s)} answers/s, p99 {latency(row.p99_s)}, alone {latency(row.alone_s)}"
    reason = row.reason.partition(": ")[0] if row.outcome is Outcome.DOES_NOT_FIT else row.reason
    return f"{row.outcome}: {reason}" if reason else str(row.outcome)


def verdict(row: Row, one: Row | None, rows: Sequence[Row], max_latency_s: float | None, *, has_gpu: bool) -> str:
    """The sentence that names the configuration to keep. one: the same with a single replica."""
    gain = ""
    if one is not None and one is not row and one.answers_per_s:
        gain = f" ({TIMES}{row.answers_per_s / one.answers_per_s:.2f} of one replica)"
    num = sum(each.is_measured for each in rows)
    among = "the only one measured" if num == 1 else f"of {num} measured"
    within = "" if max_latency_s is None else f" with p99 within {latency(max_latency_s)}"
    figure = f"{rate(row.answers_per_s)} answers/s{gain} at p99 {latency(row.p99_s)}"
    return f"best{within}: {cell(row.cell, has_gpu=has_gpu)}: {figure}, {among}"


def _mps(on: bool, *, has_gpu: bool) -> str:
    """Without a GPU it is no question."""
    return f", MPS {'on' if on else 'off'}" if has_gpu else ""
