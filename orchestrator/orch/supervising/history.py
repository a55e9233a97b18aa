"""Requests and latencies of the last minutes, from the balancer's running totals. Pure.

The balancer counts since its own start; what happened between two looks is the difference of two counts. A count that
has fallen is that of a new balancer, which began at 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WINDOW_S: Final = 300.0
# Points closer than this would be noise, and more than a chart has pixels for.
STEP_S: Final = 2.0
MEDIAN, NEARLY_ALL = 0.5, 0.99


@dataclass(frozen=True, slots=True)
class Point:
    """What happened since the point before, until `at` (monotonic seconds). Where nothing was answered: no latency."""

    at: float
    answered_per_s: float
    rejected_per_s: float
    queued: int
    outstanding: int
    p50_s: float | None
    p99_s: float | None


class History:
    """Owns the points of the last WINDOW_S."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=int(WINDOW_S / STEP_S))
        self._last: tuple[float, Mapping[str, Any]] | None = None

    def note(self, stats: Mapping[str, Any], now: float) -> None:
        """What the balancer said last; too soon after the last point it is passed over."""
        if self._last is None:
            self._last = now, stats
            return
        since, before = self._last
        if now - since < STEP_S:
            return
        self._last = now, stats
        queue, old = stats.get("queue", {}), before.get("queue", {})
        latency = stats.get("latency") or {}
        counts = _grown(_counts(latency), _counts(before.get("latency") or {}))
        bounds_s = latency.get("bounds_s", ())
        self._points.append(
            Point(
                at=now,
                answered_per_s=_increase(queue, old, "answered") / (now - since),
                rejected_per_s=_increase(queue, old, "rejected") / (now - since),
                queued=queue.get("queued", 0),
                outstanding=queue.get("outstanding", 0),
                p50_s=quantile(bounds_s, counts, MEDIAN),
                p99_s=quantile(bounds_s, counts, NEARLY_ALL),
            )
        )

    def facts(self, now: float) -> dict[str, list[Any]]:
        """By column, oldest first.

        age_s (seconds before now), answered_per_s, rejected_per_s, queued, outstanding, p50_s and p99_s (seconds from
        admission to answer, or None).
        """
        points = [point for point in self._points if now - point.at <= WINDOW_S]
        return {
            "age_s": [round(now - point.at, 2) for point in points],
            "answered_per_s": [round(point.answered_per_s, 2) for point in points],
            "rejected_per_s": [round(point.rejected_per_s, 2) for point in points],
            "queued": [point.queued for point in points],
            "outstanding": [point.outstanding for point in points],
            "p50_s": [_significant(point.p50_s) for point in points],
            "p99_s": [_significant(point.p99_s) for point in points],
        }


def quantile(bounds_s: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """Seconds below which that share of the counted lies; None: nothing was counted.

    counts: one for each bound, of those up to it and above the one before, and one for all above the last bound. Within
    a bucket they are taken as evenly spread; what lies above the last bound counts as lying there.
    """
    total = sum(counts)
    if not total or len(counts) != len(bounds_s) + 1:
        return None
    wanted, below = share * total, 0.0
    for number, bound_s in enumerate(bounds_s):
        if below + counts[number] >= wanted and counts[number]:
            low_s = bounds_s[number - 1] if number else 0.0
            return low_s + (bound_s - low_s) * (wanted - below) / counts[number]
        below += counts[number]
    return bounds_s[-1] if bounds_s else None


def _counts(latency: Mapping[str, Any]) -> Sequence[int]:
    counts: Sequence[int] = latency.get("total", {}).get("counts", ())
    return counts


def _increase(new: Mapping[str, int], old: Mapping[str, int], key: str) -> int:
    now, before = new.get(key, 0), old.get(key, 0)
    return now - before if now >= before else now


def _grown(new: Sequence[int], old: Sequence[int]) -> Sequence[int]:
    if len(new) != len(old) or any(now < before for now, before in zip(new, old, strict=True)):
        return new
    return [now - before for now, before in zip(new, old, strict=True)]


def _significant(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
