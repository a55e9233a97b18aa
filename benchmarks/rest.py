"""What an instance costs while nobody asks it for anything.

    python benchmarks/rest.py [--replicas 4] [--seconds 20] [--repeats 3] [-- OPTIONS OF ORCH UP]

Starts a model that does nothing, waits, and prints how often each thread of each process woke (its voluntary context
switches) and the share of a core that it took: medians of the repeats.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

MODEL = "def same(inputs):\n    return inputs\n"
START_S, STOP_S = 60.0, 20.0
# After the last replica is READY: until what was begun on the way there is done.
SETTLE_S = 3.0
# What the supervisor starts, as it stands in the command lines.
ROLES = ("orch_balancer", "orch_gateway", "orch_worker", "warden")
# Of a thread's status.
FIELDS = ("Name", "voluntary_ctxt_switches")


class Thread(NamedTuple):
    """role: of its process."""

    role: str
    pid: int
    tid: int
    name: str


class Spent(NamedTuple):
    """So far: times that it slept and woke, seconds on a core."""

    wakes: int
    cpu_s: float


@contextmanager
def instance(replicas: int, options: list[str]) -> Iterator[psutil.Process]:
    """Its supervisor, when all replicas are READY."""
    with tempfile.TemporaryDirectory(prefix="or") as folder:
        model = Path(folder) / "model.py"
        model.write_text(MODEL)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ORCH_")}
        environ |= {"ORCH_RUNTIME_DIR": f"{folder}/r", "ORCH_STATE_DIR": f"{folder}/s"}
        command = [sys.executable, "-m", "orch_cli", "up", f"{model}:same", "--http", "127.0.0.1:0"]
        command += ["--replicas", str(replicas), *options]
        output = Path(folder) / "output"
        with output.open("wb") as file:
            process = psutil.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        try:
            deadline = time.monotonic() + START_S
            while b" serves " not in output.read_bytes():
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except psutil.TimeoutExpired:
                process.kill()


def look(supervisor: psutil.Process) -> dict[Thread, Spent]:
    """At every thread of every process."""
    found = {}
    for process in (supervisor, *supervisor.children(recursive=True)):
        words = " ".join(process.cmdline())
        role = next((role for role in ROLES if role in words), "supervisor" if process == supervisor else words)
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            status = (task / "status").read_text()
            name, wakes = (re.search(rf"^{field}:\s*(.*)$", status, re.MULTILINE) for field in FIELDS)
            assert name is not None
            assert wakes is not None
            cpu_ns = int((task / "schedstat").read_text().split()[0])
            thread = Thread(role, process.pid, int(task.name), name[1])
            found[thread] = Spent(int(wakes[1]), cpu_ns / 1e9)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("options", nargs="*", help="of `orch up`")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the instance is stopped on the way out
    rates: list[dict[Thread, tuple[float, float]]] = []
    with instance(options.replicas, options.options) as supervisor:
        time.sleep(SETTLE_S)
        for _ in range(options.repeats):
            before, began_at = look(supervisor), time.monotonic()
            time.sleep(options.seconds)
            after, took_s = look(supervisor), time.monotonic() - began_at
            assert before.keys() == after.keys(), "a thread began or ended"
            rates.append(
                {
                    each: ((spent.wakes - before[each].wakes) / took_s, (spent.cpu_s - before[each].cpu_s) / took_s)
                    for each, spent in after.items()
                }
            )
    print(f"{'process':<16}{'pid':>8}  {'thread':<16}{'wakes/s':>9}{'core %':>9}")
    for thread in sorted(rates[0]):
        wakes, cpu = (statistics.median(each[thread][i] for each in rates) for i in (0, 1))
        print(f"{thread.role:<16}{thread.pid:>8}  {thread.name:<16}{wakes:>9.2f}{100 * cpu:>9.3f}")
    wakes, cpu = (statistics.median(sum(rate[i] for rate in each.values()) for each in rates) for i in (0, 1))
    print(f"{'all':<42}{wakes:>9.2f}{100 * cpu:>9.3f}")


if __name__ == "__main__":
    main()
