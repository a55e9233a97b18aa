"""What the balancer counts for those who watch it: histograms of times and of batch sizes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

# Seconds: six steps in each power of ten, from what a request costs at least to the longest batches.
STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
TIME_BOUNDS_S = tuple(step * 10.0**power for power in range(-4, 2) for step in STEPS)
ROW_BOUNDS = tuple(2**power for power in range(11))


Admitted = Sequence[tuple[float, int]]  # so many at each time


class Histogram:
    """How many values lie up to each bound, and beyond the last; not cumulative."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """So many of this value."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count


class Figures:
    """Of all requests since the balancer's start. Owns one sum for each number of rows that a batch ever had.

    total: from admission to the answer; queue: from admission to a worker, each time it is given to one; batch: what
    it waited at the worker until its batch ran; compute: how long that took.

    What happens is noted first, in `answered`, `given` (when, and how many were admitted at which times) and `runs` (of
    batches: rows, requests, what they waited and took, when); `observe` enters it.
    """

    def __init__(self) -> None:
        self.total, self.queue, self.batch, self.compute = (Histogram(TIME_BOUNDS_S) for _ in range(4))
        self.batch_rows = Histogram(ROW_BOUNDS)
        self._runs: dict[int, tuple[int, float]] = {}  # of each number of rows: batches, and the seconds of all of them
        self._last_at = 0.0
        self.answered: list[tuple[Admitted, float]] = []
        self.given: list[tuple[Admitted, float]] = []
        self.runs: list[tuple[int, int, float, float, float]] = []

    def observe(self) -> None:
        """Enter what was noted."""
        if self.given:
            for admitted, now in self.given:
                _observe_since(self.queue, admitted, now)
            self.given.clear()
        if self.answered:
            for admitted, now in self.answered:
                _observe_since(self.total, admitted, now)
            self.answered.clear()
        if self.runs:
            for rows, num_requests, waited_s, took_s, now in self.runs:
                count, sum_s = self._runs.get(rows, (0, 0.0))
                self._runs[rows] = count + 1, sum_s + took_s
                self._last_at = now
                self.batch.observe(waited_s, num_requests)
                self.compute.observe(took_s, num_requests)
                self.batch_rows.observe(rows)
            self.runs.clear()

    def told(self) -> dict[str, Any]:
        """For the supervisor."""
        times = {"total": self.total, "queue": self.queue, "batch": self.batch, "compute": self.compute}
        return {
            "latency": {
                "bounds_s": list(TIME_BOUNDS_S),
                **{name: {"counts": each.counts, "sum_s": each.sum} for name, each in times.items()},
            },
            "batch_rows": {
                "bounds": list(ROW_BOUNDS),
                "counts": self.batch_rows.counts,
                "sum": int(self.batch_rows.sum),
                "runs": [(rows, *run) for rows, run in sorted(self._runs.items())],
                "last_at_s": self._last_at,
            },
        }


def _observe_since(histogram: Histogram, admitted: Admitted, now: float) -> None:
    """How long ago so many were admitted; what came in one message, equally long."""
    since, num = admitted[0]
    if len(admitted) > 1:
        for admitted_at, its_num in admitted[1:]:
            if admitted_at != since:
                histogram.observe(now - since, num)
                since, num = admitted_at, 0
            num += its_num
    histogram.observe(now - since, num)
