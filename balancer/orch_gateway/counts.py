"""What one gateway has answered, by route and status. Pure: times are arguments."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

# From what a local health check takes to what a patient client waits.
BOUNDS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class HttpCounts:
    """Owns the counts since the gateway's start. A route is a template such as "/v2/models/{model}/infer".

    What fits no route is counted under one name of its own, so that nobody can make labels by asking for paths.
    """

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._durations: dict[str, list[int]] = {}
        self._sums_s: dict[str, float] = {}

    def count(self, route: str, status: int, duration_s: float) -> None:
        """One request was answered to its end. status: of HTTP; duration_s: since it had arrived."""
        key = route, status
        self._requests[key] = self._requests.get(key, 0) + 1
        counts = self._durations.get(route)
        if counts is None:
            counts = self._durations[route] = [0] * (len(BOUNDS_S) + 1)
            self._sums_s[route] = 0.0
        counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self._sums_s[route] += duration_s

    @property
    def facts(self) -> dict[str, Any]:
        """For a gateway's row of the status, under "http".

        requests: [route, status, count] each. bounds_s: upper bounds of the histograms. durations: by route, counts
        (one for each bound, and one for all above) and sum_s.
        """
        return {
            "requests": [[route, status, count] for (route, status), count in self._requests.items()],
            "bounds_s": list(BOUNDS_S),
            "durations": {
                route: {"counts": list(counts), "sum_s": self._sums_s[route]}
                for route, counts in self._durations.items()
            },
        }
