"""Figures as people write them."""

from __future__ import annotations

from collections.abc import Sequence

from orch.planning.sizes import format_size


def ranges(numbers: Sequence[int]) -> str:
    """Whole numbers in rising order as people write them: 0-7,16,18-19."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def size(value: object) -> str:
    """Bytes for people; a dash where nobody knows."""
    return format_size(value) if isinstance(value, int) and not isinstance(value, bool) else "-"


def count(value: object) -> str:
    """A number with its thousands apart; a dash where nobody knows."""
    return f"{value:,}" if isinstance(value, int) else "-"


def duration(seconds: object) -> str:
    """The two largest units: 3h12m, 4m07s, 12s."""
    if not isinstance(seconds, int | float):
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
