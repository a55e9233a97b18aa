"""The figures as bars, in SVG: a panel for each question, orch in colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.peers.figures import median
from benchmarks.peers.rows import BY_NAME, ORCHS
from benchmarks.peers.workloads import POINTS, ideal

WIDTH, COLUMNS, MARGIN = 460, 2, 16
NAME_WIDTH, VALUE_WIDTH, LINE, HEAD = 104, 66, 18, 40
ORCH, FLOOR, PEER, INK = "#1f6feb", "#8b949e", "#c6ccd3", "#24292f"
# A bar may be this many times as long as orch's; a longer one is cut, and shown so.
LONGEST = 8.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure at one point, for all rows."""

    point: str
    figure: str
    title: str


PANELS = (
    Panel("echo-64", "rps", "echo 1 KiB, 64 outstanding: requests/s"),
    Panel("echo-64", "server_us", "the same: server CPU us per request (less is better)"),
    Panel("echo-1", "p50_ms", "echo 1 KiB, 1 outstanding: p50 ms (less is better)"),
    Panel("echo-8x8", "rps", "echo 1 KiB, 8 clients x 8 outstanding: requests/s"),
    Panel("tensor-16", "rps", "tensor of 602 kB, 16 outstanding: requests/s"),
    Panel("tensor-16", "server_us", "the same: server CPU us per request (less is better)"),
    Panel("batch-256", "rps", "simulated GPU, 256 outstanding: requests/s"),
    Panel("batch-16", "p50_ms", "simulated GPU, 16 outstanding: p50 ms (less is better)"),
)


def svg(results: Mapping[str, Any]) -> str:
    """The whole picture."""
    panels = [panel for panel in PANELS if panel.point in results["points"]]
    drawn: list[str] = []
    top = float(MARGIN)
    for first in range(0, len(panels), COLUMNS):
        pieces = [_panel(panel, results["points"][panel.point]) for panel in panels[first : first + COLUMNS]]
        for column, (_, body) in enumerate(pieces):
            drawn.append(f'<g transform="translate({MARGIN + column * WIDTH} {top:g})">{body}</g>')
        top += max(height for height, _ in pieces)
    size = f'width="{COLUMNS * WIDTH + MARGIN}" height="{top:g}"'
    style = f'font-family="sans-serif" font-size="12" fill="{INK}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    return "\n".join([*lines, *drawn, "</svg>", ""])


def _panel(panel: Panel, by_row: Mapping[str, Any]) -> tuple[int, str]:
    """Its height, and what is drawn."""
    found = {name: median(row[panel.figure] for row in rows) for name, rows in by_row.items()}
    bars = {name: value for name, value in found.items() if value}
    best = _ideal(panel)
    if best is not None:
        bars = {"ideal": best, **bars}
    longest = min(max(bars.values()), LONGEST * bars.get("orch", max(bars.values())))
    room = WIDTH - NAME_WIDTH - VALUE_WIDTH - MARGIN
    drawn = [f'<text y="14" font-weight="bold">{escape(panel.title)}</text>']
    for i, (name, value) in enumerate(bars.items()):
        y, length = HEAD - 14 + i * LINE, room * min(1.0, value / longest)
        weight = ' font-weight="bold"' if name in ORCHS else ""
        drawn.append(f'<text x="{NAME_WIDTH - 6}" y="{y + 11}" text-anchor="end"{weight}>{escape(name)}</text>')
        drawn.append(f'<rect x="{NAME_WIDTH}" y="{y}" width="{length:.1f}" height="13" fill="{_colour(name)}"/>')
        cut = "&#8811; " if value > longest else ""
        drawn.append(f'<text x="{NAME_WIDTH + length + 4:.1f}" y="{y + 11}"{weight}>{cut}{_shown(value)}</text>')
    return HEAD + len(bars) * LINE, "".join(drawn)


def _ideal(panel: Panel) -> float | None:
    best = ideal(next(point for point in POINTS if point.name == panel.point))
    if best is None:
        return None
    return best.rps if panel.figure == "rps" else best.time_s * 1e3


def _colour(name: str) -> str:
    if name in ORCHS:
        return ORCH
    return PEER if name in BY_NAME and BY_NAME[name].is_peer else FLOOR


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
