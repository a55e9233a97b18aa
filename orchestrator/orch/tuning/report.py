"""The HTML report: one file that needs nothing else, from the rows and the facts they were measured for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from orch.planning.sizes import format_size
from orch.tuning import choice, words
from orch.tuning.grid import Row
from orch.tuning.plot import plot
from orch.tuning.style import STYLE
from orch.tuning.words import SHOWN_DIGEST, TIMES

WIDE: Final = (760, 430)
NARROW: Final = (360, 380)  # on a phone, where the wide one's letters would be too small to read

HOW: Final = """
<p>Each configuration really ran under orch, under a load made of the model's warm-up samples, sent by clients on the
same machine. <strong>Answers/s</strong>, <strong>p50</strong> and <strong>p99</strong> are from the same seconds of the
same load: as many requests <strong>outstanding</strong> as give each replica a batch that runs and another that waits,
and those that are on their way for 2&nbsp;ms (at most 16 batches for each replica). That is all a configuration can do,
and the latency it has while it does it; with fewer requests outstanding the latency falls towards
<strong>alone</strong>, the median of one request at a time, and with more of them only the queue grows. A figure holds
once two windows in a row agree within 2&nbsp;%; where they did not in the time given, it is marked ~.</p>
<p>A configuration is on the <strong>Pareto front</strong> if no other has both more throughput and less latency: what
is not on it is beaten by something that is. The one kept has the highest throughput; of those within 2&nbsp;% of it,
the one with the fewest replicas, then with the smallest batch, then without MPS.</p>
"""

FIGURES: Final = ("answers/s", "p99", TIMES, "p50", "alone", "outstanding", "memory")
BEST: Final = '<abbr title="best">★</abbr>'
OTHER: Final = '<abbr title="not asked for this time">○</abbr>'
FRONT: Final = '<abbr title="on the Pareto front">◆</abbr>'

LABELS: Final[Mapping[str, str]] = {
    "target": "model",
    "target_digest": "its file (SHA-256)",
    "settings": "--set",
    "environment": "--env (digests)",
    "device": "device",
    "vram_per_replica_bytes": "declared memory",
    "gpu_utilization": "GPU utilization",
    "pin_cpus": "pin CPUs",
    "mps_thread_percentage": "MPS thread percentage",
    "max_batch_wait_s": "batch wait",
    "seconds": "window, the last time",
    "gpus": "GPUs",
    "driver": "driver",
    "cores": "CPU cores",
    "python": "Python",
    "torch": "torch",
    "orch": "orch",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a report tells.

    rows: of what was asked for; others: known besides, and never chosen. left: configurations that were not measured
    yet. when: the time, in words.
    """

    rows: Sequence[Row]
    facts: Mapping[str, Any]
    max_latency_s: float | None
    left: int
    when: str
    others: Sequence[Row] = ()

    @property
    def has_gpu(self) -> bool:
        return bool(self.facts.get("gpus"))


def render(report: Report) -> str:
    """The whole page."""
    chosen = choice.best(report.rows, report.max_latency_s)
    front = choice.front(report.rows)
    target = escape(str(report.facts.get("target", "")))
    parts = [_headline(report, chosen)]
    if front:
        pictures = (
            plot(
                report.rows, front, chosen, size, name=name, max_latency_s=report.max_latency_s, has_gpu=report.has_gpu
            )
            for size, name in ((WIDE, "wide"), (NARROW, "narrow"))
        )
        parts.append(f"<section><h2>Throughput against latency</h2>{''.join(pictures)}{_legend(report)}</section>")
    if report.rows or report.others:
        parts.append(f"<section><h2>Every configuration</h2>{_table(report, front, chosen)}</section>")
    parts.append(f"<section><h2>How to read it</h2>{HOW}</section>")
    parts.append(f"<section><h2>Measured for</h2>{_facts(report)}</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>orch tune: {target}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n"
        f'<header><p class="kicker">orch tune, {escape(report.when)}</p><h1>{target}</h1></header>\n'
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _headline(report: Report, chosen: Row | None) -> str:
    """The configuration to keep, in large letters, and what of the grid is missing."""
    missing = ""
    if report.left:
        verb = "configuration is" if report.left == 1 else "configurations are"
        missing = f'<p class="note">About {report.left} {verb} not measured yet: the same command goes on.</p>'
    if chosen is None:
        lowest = min((row.p99_s for row in report.rows if row.is_measured), default=None)
        why = "Nothing is measured yet."
        if lowest is not None and report.max_latency_s is not None:
            why = (
                f"No configuration has its p99 within {words.latency(report.max_latency_s)}; "
                f"the lowest is {words.latency(lowest)}."
            )
        elif report.rows:
            why = "No configuration could be measured; the table says why."
        return f'<section class="hero"><p class="choice">{escape(why)}</p>{missing}</section>'
    one = choice.baseline(report.rows, chosen)
    tiles = [("answers/s", words.rate(chosen.answers_per_s)), ("p99", words.latency(chosen.p99_s))]
    tiles.append(("one at a time", words.latency(chosen.alone_s)))
    if one is not None and one is not chosen and one.answers_per_s:
        tiles.insert(1, ("against one replica", f"{TIMES}{chosen.answers_per_s / one.answers_per_s:.2f}"))
    figures = "".join(f"<div><dd>{value}</dd><dt>{name}</dt></div>" for name, value in tiles)
    keep = choice.settings_to_keep(chosen.cell, has_gpu=report.has_gpu)
    within = "" if report.max_latency_s is None else f", p99 within {words.latency(report.max_latency_s)}"
    return (
        f'<section class="hero"><p class="kicker">keep{within}</p>'
        f'<p class="choice">{escape(words.cell(chosen.cell, has_gpu=report.has_gpu))}</p>'
        f'<dl class="tiles">{figures}</dl>'
        f"<p>At the top of <code>orch.toml</code>:</p>"
        f"<pre><code>{escape(keep)}</code></pre>{missing}</section>"
    )


def _legend(report: Report) -> str:
    circle = '<circle class="point on" cx="8" cy="8" r="5"/>'
    square = '<rect class="point off" x="3" y="3" width="10" height="10"/>'
    line = '<polyline class="front" points="0,8 16,8"/>'
    faint = '<polyline class="series" points="0,8 16,8"/>'
    entries = [(circle, "MPS on"), (square, "MPS off")] if report.has_gpu else [(square, "a configuration")]
    entries += [(line, "Pareto front"), (faint, "same batch size, more replicas")]
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 16 16" aria-hidden="true">{shape}</svg>{text}</li>'
        for shape, text in entries
    )
    return f'<ul class="legend">{items}<li>4{TIMES}8: 4 replicas, batches of 8</li></ul>'


def _table(report: Report, front: Sequence[Row], chosen: Row | None) -> str:
    """The fastest first, then what could not be measured, then what was not asked for; below it the reasons."""
    most = max((row.answers_per_s for row in (*report.rows, *report.others)), default=0.0)
    others = {row.cell for row in report.others}
    on_front = {row.cell for row in front}
    names = ["replicas", "batch", *(["MPS"] if report.has_gpu else [])]
    head = "".join(f'<th scope="col">{name}</th>' for name in (*names, *FIGURES))
    lines = []
    order = [
        row
        for rows in (report.rows, report.others)
        for row in sorted(rows, key=lambda row: (not row.is_measured, -row.answers_per_s, row.cell))
    ]
    for row in order:
        signs = ((BEST, row is chosen), (FRONT, row.cell in on_front), (OTHER, row.cell in others))
        marks = [sign for sign, applies in signs if applies]
        values = [str(row.cell.replicas), str(row.cell.max_batch_size), "on" if row.cell.mps else "off"][: len(names)]
        cells = f'<td class="marks">{"".join(marks)}</td>' + "".join(f"<td>{value}</td>" for value in values)
        if row.is_measured:
            cells += _figures(row, choice.baseline(order, row), most)
        else:
            cells += f'<td class="why" colspan="{len(FIGURES)}">{row.outcome}</td>'
        kind = "best" if row is chosen else "other" if row.cell in others else ""
        lines.append(f'<tr class="{kind}">{cells}</tr>')
    not_asked = f"<li>{OTHER} known from before, not asked for this time</li>" if others else ""
    return (
        '<div class="scroll" role="region" aria-label="Every configuration" tabindex="0"><table>'
        f'<thead><tr><th scope="col"><span class="unseen">marks</span></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<ul class="legend"><li>{BEST} to keep</li><li>{FRONT} on the Pareto front</li>'
        f"<li>{TIMES} against one replica of the same batch size</li><li>alone: one request at a time</li>"
        "<li>outstanding: requests under way, of which answers/s, p50 and p99 are</li>"
        f"<li>memory: of all replicas</li>{not_asked}</ul>{_reasons(order, has_gpu=report.has_gpu)}"
    )


def _reasons(rows: Sequence[Row], *, has_gpu: bool) -> str:
    """Each reason once, with the configurations that it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason and not row.is_measured:
            found.setdefault((row.outcome, row.reason), []).append(words.cell(row.cell, has_gpu=has_gpu))
    entries = "".join(
        f"<dt>{escape(outcome)}</dt><dd>{escape('; '.join(cells))}: {escape(reason)}</dd>"
        for (outcome, reason), cells in found.items()
    )
    return f'<dl class="facts reasons">{entries}</dl>' if entries else ""


def _figures(row: Row, one: Row | None, most: float) -> str:
    share = row.answers_per_s / most if most else 0.0
    unsteady = "" if row.steady else '<abbr title="two windows did not agree in the time given">~</abbr>'
    gain = f"{row.answers_per_s / one.answers_per_s:.2f}" if one is not None and one.answers_per_s else "-"
    memory = "-" if not row.footprint_bytes else format_size(row.footprint_bytes * row.cell.replicas)
    bar = f'<span class="bar" style="width:{share:.0%}"></span>'
    rate = f'<td class="rate">{bar}{unsteady}{words.rate(row.answers_per_s)}</td>'
    p99, p50, alone = map(words.latency, (row.p99_s, row.p50_s, row.alone_s))
    rest = (p99, gain, p50, alone, f"{row.outstanding:,}", memory)
    return rate + "".join(f"<td>{figure}</td>" for figure in rest)


def _facts(report: Report) -> str:
    entries = []
    for key, value in report.facts.items():
        if value is None or value in ("", [], {}):
            continue
        entries.append(f"<dt>{escape(LABELS.get(key, key))}</dt><dd>{escape(_fact(key, value))}</dd>")
    return f'<dl class="facts">{"".join(entries)}</dl>'


def _fact(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={entry}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        names = list(dict.fromkeys(map(str, value)))
        return ", ".join(f"{value.count(name)} {TIMES} {name}" if value.count(name) > 1 else name for name in names)
    if key == "target_digest":
        return str(value)[:SHOWN_DIGEST]
    if key.endswith("_bytes"):
        return format_size(value)
    if key in ("seconds", "max_batch_wait_s"):
        return words.latency(float(value))
    return str(value)
