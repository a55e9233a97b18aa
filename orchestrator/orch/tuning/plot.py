"""Throughput against latency as one SVG: a point for each configuration, and a line along the Pareto front.

Colours are left to the page, by classes; whether MPS was on is told by the shape too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

from orch.tuning import words
from orch.tuning.grid import Cell, Row, by_series

# From this ratio of the largest to the smallest value on, an axis is logarithmic.
LOG_RATIO: Final = 10
LOG_STEPS: Final = ((1, 2, 5), (1, 3), (1,))
LINEAR_STEPS: Final = (1, 2, 2.5, 5, 10)
FONT: Final = 12
CHAR_WIDTH: Final = 0.58 * FONT
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 16, 46  # margins of the plane
MARK: Final = 5.0  # half the width of a point
GAP: Final = 4  # between a point and its label
TICK_WIDTH, TICK_HEIGHT = 58, 45  # what each tick of an axis gets at least
ROOMY: Final = 600  # a narrower picture names the points of the front alone, if there are many
MANY: Final = 12
LINE_STEP: Final = 5.0  # how closely the front's line is kept clear of labels


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, with the values that are written beside it."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float], most_ticks: int) -> Axis:
    """An axis that holds these values, all above 0: from 0 on, or logarithmic where they differ by an order or more."""
    low, high = min(values), max(values)
    if high / low >= LOG_RATIO:
        low, high = low / 1.4, high * 1.4
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        choices = [[factor * 10.0**decade for decade in decades for factor in factors] for factors in LOG_STEPS]
        inside = [[tick for tick in ticks if low <= tick <= high] for ticks in choices]
        return Axis(low, high, True, tuple(next((each for each in inside if len(each) <= most_ticks), inside[-1])))
    step = next(
        factor * 10.0**decade
        for decade in range(math.floor(math.log10(high)) - 1, math.floor(math.log10(high)) + 2)
        for factor in LINEAR_STEPS
        if high * 1.1 / (factor * 10.0**decade) <= most_ticks
    )
    return Axis(0.0, high * 1.1, False, tuple(step * i for i in range(int(high * 1.1 / step) + 1)))


@dataclass(frozen=True, slots=True)
class Plane:
    """Where values lie in the picture."""

    width: int
    height: int
    x: Axis
    y: Axis

    def point(self, row: Row) -> tuple[float, float]:
        across = LEFT + self.x.at(row.p99_s) * (self.width - LEFT - RIGHT)
        return across, self.height - BOTTOM - self.y.at(row.answers_per_s) * (self.height - TOP - BOTTOM)


def plot(
    rows: Sequence[Row],
    front: Sequence[Row],
    chosen: Row | None,
    size: tuple[int, int],
    *,
    name: str,
    max_latency_s: float | None,
    has_gpu: bool,
) -> str:
    """The picture of the measured rows, of which there is at least one. name: unique in its page."""
    width, height = size
    measured = [row for row in rows if row.is_measured]
    plane = Plane(
        width,
        height,
        axis([row.p99_s for row in measured], (width - LEFT - RIGHT) // TICK_WIDTH),
        axis([row.answers_per_s for row in measured], (height - TOP - BOTTOM) // TICK_HEIGHT),
    )
    on_front = {row.cell for row in front}
    best = None if chosen is None else chosen.cell
    lines = [_path(plane, series, "series") for series in by_series(measured).values() if len(series) > 1]
    back_to_front = sorted(measured, key=lambda row: (row.cell == best, row.cell in on_front))
    points = [_point(plane, row, row.cell in on_front, row.cell == best, has_gpu=has_gpu) for row in back_to_front]
    wanted = sorted(measured, key=lambda row: (row.cell != best, row.cell not in on_front, -row.answers_per_s))
    if width < ROOMY and len(measured) > MANY:
        wanted = [row for row in wanted if row.cell == best or row.cell in on_front]
    labels = _labels(plane, wanted, on_front, best, keep_clear=[*_spots(plane, measured), *_spots_along(plane, front)])
    title = f"Throughput against latency of {len(measured)} configurations"
    best_words = (
        "" if chosen is None else f" Best: {words.cell(chosen.cell, has_gpu=has_gpu)}: {words.figures(chosen)}."
    )
    return (
        f'<svg class="plot {name}" viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{title}</title>'
        f'<desc id="{name}-d">Answers per second upwards, p99 latency to the right; {len(front)} of them are on the '
        f"Pareto front.{escape(best_words)} The table below has every figure.</desc>"
        + "".join(
            [*_grid(plane), *lines, *_limit(plane, max_latency_s), _path(plane, front, "front"), *points, *labels]
        )
        + "</svg>"
    )


def _grid(plane: Plane) -> list[str]:
    left, right, bottom = LEFT, plane.width - RIGHT, plane.height - BOTTOM
    parts = []
    for tick in plane.y.ticks:
        y = bottom - plane.y.at(tick) * (bottom - TOP)
        parts.append(f'<path class="rule" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for tick in plane.x.ticks:
        x = left + plane.x.at(tick) * (right - left)
        parts.append(f'<path class="rule" d="M{x:.1f} {TOP}V{bottom}"/>')
        label = words.latency(tick) if tick else "0"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_trim(label)}</text>')
    middle_y = (TOP + bottom) / 2
    parts.append(f'<path class="axis" d="M{left} {TOP}V{bottom}H{right}"/>')
    parts.append(
        f'<text class="name" x="{(left + right) / 2:.0f}" y="{plane.height - 8}" text-anchor="middle">'
        f"p99 latency{', logarithmic' if plane.x.is_log else ''}</text>"
    )
    parts.append(
        f'<text class="name" transform="translate(13 {middle_y:.0f}) rotate(-90)" text-anchor="middle">'
        f"answers/s{', logarithmic' if plane.y.is_log else ''}</text>"
    )
    return parts


def _limit(plane: Plane, max_latency_s: float | None) -> list[str]:
    """A line at the latency that was asked for, where it is within the picture."""
    if max_latency_s is None or not plane.x.low < max_latency_s < plane.x.high:
        return []
    bottom = plane.height - BOTTOM
    x = LEFT + plane.x.at(max_latency_s) * (plane.width - LEFT - RIGHT)
    return [
        f'<path class="limit" d="M{x:.1f} {TOP}V{bottom}"/>',
        f'<text class="name" x="{x + GAP:.1f}" y="{bottom - 6}">within {_trim(words.latency(max_latency_s))}</text>',
    ]


def _path(plane: Plane, rows: Sequence[Row], kind: str) -> str:
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(plane.point, rows))
    return f'<polyline class="{kind}" points="{at}"/>'


def _point(plane: Plane, row: Row, on_front: bool, is_best: bool, *, has_gpu: bool) -> str:
    x, y = plane.point(row)
    kind = f"point {'on' if row.cell.mps else 'off'}{' fronted' if on_front else ''}"
    size = MARK if on_front else MARK - 1
    if row.cell.mps:
        shape = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    else:
        side = 2 * size
        shape = f'<rect class="{kind}" x="{x - size:.1f}" y="{y - size:.1f}" width="{side}" height="{side}"/>'
    ring = f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="{MARK * 2}"/>' if is_best else ""
    told = escape(f"{words.cell(row.cell, has_gpu=has_gpu)}: {words.figures(row)}")
    return f"<g>{ring}{shape}<title>{told}</title></g>"


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _labels(
    plane: Plane, rows: Sequence[Row], on_front: Collection[Cell], best: Cell | None, *, keep_clear: Sequence[Box]
) -> list[str]:
    """Names beside the points, the important ones first; one that finds no free place is left to its tooltip."""
    taken = list(keep_clear)
    parts = []
    for row in rows:
        x, y = plane.point(row)
        is_best = row.cell == best
        text = f"{words.label(row.cell)}{' best' if is_best else ''}"
        reach = (MARK * 2 if is_best else MARK + 1) + GAP
        for box in _places(x, y, len(text) * CHAR_WIDTH, reach):
            if _is_free(box, taken, plane):
                taken.append(box)
                kind = "label best" if is_best else "label" if row.cell in on_front else "label minor"
                parts.append(f'<text class="{kind}" x="{box[0]:.1f}" y="{box[3] - 2:.1f}">{text}</text>')
                break
    return parts


def _spots(plane: Plane, rows: Sequence[Row]) -> list[Box]:
    """The points themselves."""
    return [_around(x, y, MARK + 1) for x, y in map(plane.point, rows)]


def _spots_along(plane: Plane, rows: Sequence[Row]) -> list[Box]:
    """The line through these points, in small steps."""
    spots = []
    for (x, y), (to_x, to_y) in pairwise(map(plane.point, rows)):
        steps = max(1, int(math.hypot(to_x - x, to_y - y) / LINE_STEP))
        spots += [_around(x + (to_x - x) * i / steps, y + (to_y - y) * i / steps, 1) for i in range(steps)]
    return spots


def _around(x: float, y: float, reach: float) -> Box:
    return (x - reach, y - reach, x + reach, y + reach)


def _places(x: float, y: float, width: float, reach: float) -> list[Box]:
    """Where a label may stand: above, to the right, to the left, below, and in the corners."""
    middle, right, left = x - width / 2, x + reach, x - reach - width
    above, level, below = y - reach - FONT, y - FONT / 2, y + reach
    corners = [(across, up) for across, up in ((middle, above), (right, level), (left, level), (middle, below))]
    corners += [(right - GAP, above + GAP), (left + GAP, above + GAP), (right - GAP, below - GAP), (left + GAP, below)]
    return [(across, up, across + width, up + FONT) for across, up in corners]


def _is_free(box: Box, taken: Sequence[Box], plane: Plane) -> bool:
    left, top, right, bottom = box
    inside = left >= LEFT and right <= plane.width - 2 and top >= 0 and bottom <= plane.height - BOTTOM
    apart: Callable[[Box], bool] = lambda o: right <= o[0] or left >= o[2] or bottom <= o[1] or top >= o[3]  # noqa: E731
    return inside and all(map(apart, taken))


def _short(value: float) -> str:
    """A tick of the throughput: 0, 50, 2.5k, 10k, 1M."""
    for factor, unit in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


def _trim(text: str) -> str:
    """20.0 ms as 20 ms."""
    number, _, unit = text.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}".strip()
