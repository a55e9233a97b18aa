"""orch, bare ZeroMQ and other servers of models, side by side: `python -m benchmarks.peers --help`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from benchmarks.peers import facts, report
from benchmarks.peers.bench import Bench, say
from benchmarks.peers.rows import BY_NAME, GROUPS
from benchmarks.peers.workloads import KILL, POINTS


def main() -> None:
    """Measure, print, and keep what was found."""
    names = ",".join([*(point.name for point in POINTS), KILL.name])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rows", default="all", help=f"some of {','.join((*GROUPS, *BY_NAME))}")
    parser.add_argument("--points", default=names, help=f"some of {names}")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each row at each point")
    parser.add_argument("--seconds", type=int, default=3, help="of each turn")
    parser.add_argument("--after-kill", type=float, default=6.0, help="seconds to look at a server after the kill")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds to wait, in all, for a quiet machine")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--publish", action="store_true", help="write them into benchmarks/, with page and plot")
    options = parser.parse_args()
    wanted = [name for word in options.rows.split(",") for name in GROUPS.get(word, (word,))]
    if unknown := {*wanted, *options.points.split(",")} - {*BY_NAME, *names.split(",")}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # servers and folders are cleaned up on the way out
    began_at = time.monotonic()
    versions = {name: facts.versions(BY_NAME[name]) for name in wanted}
    missing = {name: why for name in wanted if (why := facts.lacking(BY_NAME[name], versions[name]))}
    for name, why in missing.items():
        say(f"{name} is left out: {why}")
    rows = [BY_NAME[name] for name in wanted if name not in missing]
    bench = Bench(
        rows, facts.python_of, options.rounds, options.seconds, options.after_kill, options.patience, missing=missing
    )
    chosen = options.points.split(",")
    bench.measure(point for point in POINTS if point.name in chosen)
    if KILL.name in chosen:
        bench.measure_kills()
    results = {
        "machine": facts.machine(),
        "versions": {name: found for name, found in versions.items() if found},
        "settings": {"rounds": options.rounds, "seconds": options.seconds, "after_kill_s": options.after_kill},
        "took_s": round(time.monotonic() - began_at),
        **bench.results(),
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.publish:
        report.publish(results)
    print(report.page(results))


if __name__ == "__main__":
    main()
