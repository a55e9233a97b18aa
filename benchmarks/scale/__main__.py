"""A real balancer with simulated workers and clients, many of them: `python -m benchmarks.scale --help`."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from benchmarks.scale import deep, grid


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--modes", default=",".join(mode.name for mode in grid.MODES), help="loads of the grid")
    parser.add_argument("--points", default="all", help="WORKERSxCLIENTS,...; ratios are to the first")
    parser.add_argument("--queue", type=int, default=0, help="measure a queue of so many requests instead")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each point with each load")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each turn")
    parser.add_argument("--bytes", type=int, default=128, help="of a request's body, and of its answer's")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2, 5), help="that share the clients")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    points = grid.POINTS
    if options.points != "all":
        points = tuple(grid.Point(*map(int, word.split("x"))) for word in options.points.split(","))
    modes = [mode for mode in grid.MODES if mode.name in options.modes.split(",")]
    began_at = time.monotonic()
    if options.queue:
        phases, memory = deep.measure(options.queue, options.rounds, options.seconds, options.bytes)
        print(deep.table(phases, memory, options.bytes))
        return
    found = grid.measure(points, modes, options.rounds, options.seconds, options.bytes, options.processes)
    print(grid.table(found, modes))
    print(f"\nmedians of {options.rounds} turns of {options.seconds:g} s; in all {time.monotonic() - began_at:.0f} s")


if __name__ == "__main__":
    main()
