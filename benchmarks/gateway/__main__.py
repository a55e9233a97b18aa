"""HTTP libraries side by side, each as one process: `python -m benchmarks.gateway`; needs wrk, granian and uvicorn.

The servers take turns, so that what else the machine does meets all of them. Figures are medians of the rounds:
requests/s, and in brackets the server's CPU microseconds per request, which no other process can change much.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gateway.servers import KINDS

# Name, connections, path, bytes of the body (0: GET).
LOADS = (
    ("GET 1 KiB", 64, "/get", 0),
    ("echo 1 KiB", 64, "/echo", 1024),
    ("POST 602,112 B", 8, "/length", 602_112),
    ("echo 602,112 B", 8, "/echo", 602_112),
    ("100 events", 16, "/stream", 0),
)
START_S = 10.0
POST = 'wrk.method = "POST"\nwrk.body = string.rep("x", {})\nwrk.headers["Content-Type"] = "application/octet-stream"\n'
MICROSECONDS = 1e6


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def await_port(port: int) -> None:
    """Until somebody listens there."""
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket() as found:
            if not found.connect_ex(("127.0.0.1", port)):
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing listens on port {port} after {START_S:g} s")
        time.sleep(0.05)


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pid: int, port: int, load: tuple[str, int, str, int], seconds: int, scripts: Path) -> tuple[float, float]:
    """Requests/s, and the server's CPU seconds per request."""
    _, connections, path, num_bytes = load
    script = scripts / f"{num_bytes}.lua"
    script.write_text(POST.format(num_bytes) if num_bytes else "")
    before = cpu_s(pid)
    url = f"http://127.0.0.1:{port}{path}"
    words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told:
        raise SystemExit(f"{url}: {told}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    count = re.search(r"(\d+) requests in", told)
    assert rate is not None
    assert count is not None
    return float(rate[1]), (cpu_s(pid) - before) / max(1, int(count[1]))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    kinds, ports, servers = options.kinds.split(","), {}, {}
    try:
        for kind in kinds:
            ports[kind] = free_port()
            words = [sys.executable, "-m", "benchmarks.gateway.servers", kind, str(ports[kind])]
            servers[kind] = subprocess.Popen(words)
            await_port(ports[kind])
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        with tempfile.TemporaryDirectory() as scripts:
            for _ in range(options.rounds):
                for load in LOADS:
                    for kind in kinds:
                        figures = measure(servers[kind].pid, ports[kind], load, options.seconds, Path(scripts))
                        found.setdefault((load[0], kind), []).append(figures)
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    print("|".join(["", "load", *kinds, ""]))
    print("|".join(["", *["---"] * (1 + len(kinds)), ""]))
    for name, *_ in LOADS:
        cells = [name]
        for kind in kinds:
            rates, costs = zip(*found[name, kind], strict=True)
            cells.append(f"{statistics.median(rates):,.0f} ({statistics.median(costs) * MICROSECONDS:,.0f} us)")
        print("|".join(["", *cells, ""]))


if __name__ == "__main__":
    main()
