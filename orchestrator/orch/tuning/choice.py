"""Which of the measured configurations to keep, and which are worth a look: the Pareto front."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from orch.tuning.grid import Cell, Row

# Two runs of one configuration differ by as much: of those so near the best, the one that takes least is kept.
NEAR: Final = 0.02


def best(rows: Sequence[Row], max_latency_s: float | None = None) -> Row | None:
    """The configuration to keep; None if none was measured, or none has its p99 within `max_latency_s`.

    That of the highest throughput; of those within 2 % of it the one with the fewest replicas, then with the smallest
    batch, then without MPS.
    """
    fit = [row for row in rows if row.is_measured and (max_latency_s is None or row.p99_s <= max_latency_s)]
    top = max((row.answers_per_s for row in fit), default=0.0)
    near = [row for row in fit if row.answers_per_s >= top * (1 - NEAR)]
    return min(near, key=lambda row: (row.cell, -row.answers_per_s), default=None)


def front(rows: Sequence[Row]) -> list[Row]:
    """The measured rows that no other beats in both throughput and p99, by rising latency."""
    found: list[Row] = []
    for row in sorted((row for row in rows if row.is_measured), key=lambda row: (row.p99_s, -row.answers_per_s)):
        if not found or row.answers_per_s > found[-1].answers_per_s:
            found.append(row)
    return found


def baseline(rows: Sequence[Row], row: Row) -> Row | None:
    """What it would be with a single replica of the same batch size, without MPS where that was measured."""
    alone = [each for each in rows if each.is_measured and each.cell.replicas == 1]
    same = [each for each in alone if each.cell.max_batch_size == row.cell.max_batch_size]
    return min(same, key=lambda each: each.cell.mps, default=None)


def settings_to_keep(cell: Cell, *, has_gpu: bool, target: str | None = None) -> str:
    """The lines of orch.toml. Without a GPU MPS is no question, and has no line; target: None has none either."""
    lines = [] if target is None else [f"target = {json.dumps(target, ensure_ascii=False)}"]
    lines += [f"replicas = {cell.replicas}", f"max_batch_size = {cell.max_batch_size}"]
    if has_gpu:
        lines.append(f'mps = "{"on" if cell.mps else "off"}"')
    return "\n".join(lines) + "\n"
