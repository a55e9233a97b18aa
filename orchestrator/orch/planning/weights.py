"""How fast the kinds of GPUs of one machine are beside each other, from what their replicas were measured at."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

# Kinds this close to the fastest are taken for equal: measurements differ by as much from run to run, and between
# equals the longest idle is chosen, which spreads the work.
SAME_SHARE: Final = 0.05
# No kind counts for less. One that is 20 times slower is of little use; a figure below that is more likely a
# measurement that went wrong, and must not shut a GPU out.
MIN_WEIGHT: Final = 0.05


def weights(speeds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The weight of each kind of GPU, 1.0 for the fastest: what one of its replicas does beside one of those.

    speeds: by the name of the kind, rows per second of each of its replicas that were measured, all in the same way. A
    kind that was not measured is taken to be as fast as the fastest, and so is one within SAME_SHARE of it.
    """
    found = {kind: statistics.median(measured) for kind, measured in speeds.items() if measured}
    fastest = max(found.values(), default=0.0)
    return {kind: _beside(found.get(kind, fastest), fastest) for kind in speeds}


def _beside(rows_per_s: float, fastest: float) -> float:
    if rows_per_s >= fastest * (1 - SAME_SHARE):
        return 1.0
    return max(MIN_WEIGHT, rows_per_s / fastest)
