"""When a load has been measured for long enough: a ramp, then windows until two in a row agree."""

from __future__ import annotations

from typing import NamedTuple

# Connections, allocators and clocks of a device have settled after this, if every replica has answered by then.
RAMP_S = 0.5
# Of a window: answers come in bursts of a batch, so few of them would say more of where it was cut than of the rate.
ANSWERS_PER_OUTSTANDING = 4
# Two windows agree: what a quiet machine keeps to, and less than half of the gain that is looked for.
AGREEMENT = 0.02


class Edge(NamedTuple):
    """Where a window begins or ends: how many were answered by then, and when the last of them was.

    Cut at an answer and not at the clock: of two edges, the answers between are those that this time has brought.
    """

    answers: int
    at: float


class Steady:
    """Owns the edges of the windows of one measurement. Times are seconds of one clock."""

    def __init__(self, started: float, outstanding: int, window_s: float, max_s: float) -> None:
        self._started = started
        self._outstanding = outstanding
        self._window_s = window_s
        self._max_s = max_s
        self._edges: list[Edge] = []
        self._rates: list[float] = []  # of the windows between them
        self.agreed = False

    def is_over(self, now: float, last: Edge) -> bool:
        """Whether there is nothing more to measure. last: the most recent answer; without any, `started`."""
        spent_s = now - self._started
        if not self._edges:
            if (spent_s >= RAMP_S and last.answers >= self._outstanding) or spent_s >= self._max_s / 2:
                self._edges.append(last)
        elif (
            last.at - self._edges[-1].at >= self._window_s
            and last.answers - self._edges[-1].answers >= ANSWERS_PER_OUTSTANDING * self._outstanding
        ):
            self._edges.append(last)
            self._rates.append(_rate(*self._edges[-2:]))
            self.agreed = len(self._rates) > 1 and agree(*self._rates[-2:])
        return self.agreed or spent_s >= self._max_s

    def span(self, now: float, last: Edge, longest_s: float) -> tuple[float, float]:
        """From when to when the answers count: the two windows that agree, else all there was after the ramp.

        longest_s: the most that an answer took. A silence longer than that is no gap between two bursts, and counts.
        """
        if self.agreed:
            return self._edges[-3].at, self._edges[-1].at
        begin = self._edges[0].at if self._edges else self._started
        return begin, last.at if begin < last.at and now - last.at <= longest_s else now


def agree(one: float, other: float) -> bool:
    """Whether two rates are the same, as far as can be measured."""
    return abs(one - other) <= AGREEMENT * max(one, other)


def _rate(first: Edge, last: Edge) -> float:
    return (last.answers - first.answers) / (last.at - first.at)
