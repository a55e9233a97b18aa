"""Results as a page of tables; `python -m benchmarks.peers.report FILE` prints that of a results file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.figures import medians, ratio
from benchmarks.peers.plot import svg
from benchmarks.peers.rows import ORCHS
from benchmarks.peers.targets import verdicts
from benchmarks.peers.workloads import KILL, POINTS, Point, ideal

BENCHMARKS = Path(__file__).resolve().parents[1]
PAGE, RESULTS = BENCHMARKS / "RESULTS.md", BENCHMARKS / "results"
BEGIN, END = "<!-- peers: written by `make bench-peers` -->", "<!-- end of peers -->"

Rows = Sequence[Mapping[str, Any]]


def page(results: Mapping[str, Any]) -> str:
    """All of it, as markdown."""
    sections = [_measured_on(results)]
    sections += [_point(point, results["points"][point.name]) for point in POINTS if point.name in results["points"]]
    if results["kills"]:
        sections.append(_kills(results["kills"]))
    sections.append("### Targets\n\n" + table(["orch", "measured", "reached"], verdicts(results)))
    if results["missing"]:
        sections.append("Not measured:\n\n" + "\n".join(f"- {name}: {why}" for name, why in results["missing"].items()))
    versions = (f"- {name}: {_words(found)}" for name, found in results["versions"].items())
    sections.append("Versions:\n\n" + "\n".join(versions))
    return "\n\n".join(sections)


def publish(results: Mapping[str, Any]) -> None:
    """Write the file of figures, the plot, and our part of the page."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "peers.svg").write_text(svg(results))
    before = PAGE.read_text() if PAGE.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    head, _, rest = before.partition(BEGIN)
    _, _, tail = rest.partition(END)
    plot = "![orch beside other servers](results/peers.svg)"
    PAGE.write_text(f"{head}{BEGIN}\n\n## Side by side\n\n{plot}\n\n{page(results)}\n\n{END}{tail}")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured_on(results: Mapping[str, Any]) -> str:
    machine, settings = results["machine"], results["settings"]
    return (
        f"{machine['date']}, commit {machine['commit']}: {machine['cores']} cores ({machine['processor']}), "
        f"{machine['memory_gib']} GiB, {machine['system']}. Medians of {settings['rounds']} rounds, in which the "
        f"servers take turns of {settings['seconds']} s; all of it took {results['took_s']} s. Clients and servers "
        "share the cores, so compare the rows of one table, and the ratios, which are medians of the rounds' ratios. "
        "*server*: CPU microseconds of all of a server's processes per request. *elsewhere*: cores that others took."
    )


def _point(point: Point, by_row: Mapping[str, Rows]) -> str:
    heads = [
        "server", "requests/s (min-max)", "p50 ms", "p99 ms", "errors", "server us", "client cores", "elsewhere",
        "orch / it: requests/s", "p50", "server us", "orch_http / it: requests/s",
    ]  # fmt: skip
    lines = []
    best = ideal(point)
    if best is not None:
        time_ms = f"{best.time_s * 1e3:.1f}"
        lines.append(["*ideal*", f"{best.rps:.0f}", time_ms, time_ms, *[""] * 8])
    ours, gateways = by_row.get("orch", []), by_row.get("orch_http", [])
    for name, rows in by_row.items():
        found = medians(rows)
        speeds = [row["rps"] for row in rows]
        ratios = ["", "", "", ""]
        if ours and name != "orch":
            ratios[:3] = [_figure(ratio(ours, rows, figure), ".2f") for figure in ("rps", "p50_ms", "server_us")]
        if gateways and name not in ORCHS:
            ratios[3] = _figure(ratio(gateways, rows, "rps"), ".2f")
        lines.append(
            [
                f"**{name}**" if name in ORCHS else name,
                f"{found['rps']:.0f} ({min(speeds):.0f}-{max(speeds):.0f})",
                _figure(found["p50_ms"], ".3g"),
                _figure(found["p99_ms"], ".3g"),
                f"{sum(row['errors'] for row in rows):.0f}",
                _figure(found["server_us"], ".3g" if (found["server_us"] or 0) < 100 else ".0f"),
                _figure(found["client_cores"], ".2f"),
                _figure(found["elsewhere_cores"], ".2f"),
                *ratios,
            ]
        )
    return f"### {point.title} (`{point.name}`)\n\n{table(heads, lines)}"


def _kills(by_row: Mapping[str, Rows]) -> str:
    heads = [
        "server",
        "requests/s before",
        "lost, each time",
        "new worker after s",
        "full rate after s",
        "longest gap s",
    ]
    lines = []
    for name, rows in by_row.items():
        found = medians(rows)
        lines.append(
            [
                f"**{name}**" if name in ORCHS else name,
                _figure(found["before_rps"], ".0f"),
                ", ".join(f"{row['lost']:.0f}" for row in rows),
                _each(rows, "new_worker_s"),
                _each(rows, "full_rate_s"),
                _figure(found["longest_gap_s"], ".2f"),
            ]
        )
    return f"### {KILL.title} (`{KILL.name}`)\n\n{table(heads, lines)}"


def _each(rows: Rows, name: str) -> str:
    shown: Callable[[Any], str] = lambda value: "never" if value is None else f"{value:.2f}"  # noqa: E731
    return ", ".join(shown(row[name]) for row in rows)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _words(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


if __name__ == "__main__":
    print(page(json.loads(Path(sys.argv[1]).read_text())))
