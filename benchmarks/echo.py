"""Echo of 1 KiB through two replicas, closed loop, beside the bare ZeroMQ brokers of a peer benchmark.

    python benchmarks/echo.py [--seconds 4] [--repeats 3] [--outstanding 1,64] [--peers FOLDER]

Prints one table: requests/s (median of the repeats, smallest and largest), p50 and p99 in milliseconds, server CPU in
microseconds per request (everything that `orch up` started), and the ratio to the first peer. FOLDER holds
client_zmq.py and servers/zmq_*.py; orch and the peers take turns within each repeat, so that a slow phase of the
machine hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from orch import Client
from orch.supervising import control

BODY = b"0123456789abcdef" * 64
MODEL = """
def echo(inputs):
    return inputs
echo.max_batch_size = 64
"""


def closed_loop(client: Client, outstanding: int, seconds: float) -> dict[str, float]:
    """Keep `outstanding` requests under way; each answer sends the next."""
    latencies: list[float] = []
    clock = time.perf_counter
    begin = clock()
    end = begin + seconds
    if outstanding == 1:
        while (sent := clock()) < end:
            assert client.request(BODY) == BODY
            latencies.append(clock() - sent)
        return summary(latencies, clock() - begin)
    finished = threading.Semaphore(0)

    def send() -> None:
        sent = clock()

        def answered(future: Future[Any]) -> None:
            assert future.result() == BODY
            now = clock()
            latencies.append(now - sent)
            if now < end:
                send()
            else:
                finished.release()

        client.submit(BODY).add_done_callback(answered)

    for _ in range(outstanding):
        send()
    for _ in range(outstanding):
        assert finished.acquire(timeout=seconds + 30)
    return summary(latencies, clock() - begin)


def summary(latencies: list[float], took_s: float) -> dict[str, float]:
    """Requests per second, and milliseconds."""
    ordered = sorted(latencies)
    return {
        "rps": len(ordered) / took_s,
        "p50": ordered[len(ordered) // 2] * 1e3,
        "p99": ordered[int(len(ordered) * 0.99)] * 1e3,
        "n": len(ordered),
    }


def cpu_s(root: int) -> float:
    """User and system time of a process and all its descendants."""
    processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


@contextmanager
def an_instance(folder: Path) -> Iterator[tuple[Client, int]]:
    """Two replicas of the echo model, and a client."""
    model = folder / "echo_model.py"
    model.write_text(MODEL)
    os.environ |= {"ORCH_RUNTIME_DIR": str(folder / "r"), "ORCH_STATE_DIR": str(folder / "s")}
    command = [sys.executable, "-P", "-m", "orch_cli", "up", f"{model}:echo", "--replicas", "2", "--device", "cpu"]
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not is_ready():
            assert process.poll() is None, (folder / "up.log").read_text()
            assert time.monotonic() < deadline, "not READY in time"
            time.sleep(0.05)
        with Client() as client:
            yield client, process.pid
    finally:
        process.terminate()
        process.wait(30)


def is_ready() -> bool:
    """Whether the instance serves with all its replicas."""
    try:
        return control.call("default", "status")["state"] == "READY"
    except Exception:  # noqa: BLE001  not there yet
        return False


@contextmanager
def a_peer(name: str, peers: Path, port: int) -> Iterator[int]:
    """One of the bare ZeroMQ servers."""
    environ = os.environ | {"PEERS_PORT": str(port), "PEERS_WORKLOAD": "echo", "PEERS_PIDS": tempfile.mkdtemp()}
    Path("/tmp/peers").mkdir(exist_ok=True)  # noqa: S108  where those servers put their sockets
    process = subprocess.Popen([sys.executable, str(peers / "servers" / f"{name}.py")], env=environ)
    try:
        time.sleep(1.0)
        yield process.pid
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.wait()


def drive_peer(peers: Path, port: int, body: Path, outstanding: int, seconds: float) -> dict[str, float]:
    """The peers' own client, closed loop."""
    command = [sys.executable, str(peers / "client_zmq.py"), f"tcp://127.0.0.1:{port}", str(body)]
    out = subprocess.run([*command, str(outstanding), str(seconds)], stdout=subprocess.PIPE, check=True).stdout
    found = json.loads(out)
    return {"rps": found["n"] / found["took"], "p50": found["p50"], "p99": found["p99"], "n": found["n"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--outstanding", default="1,64")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--against", default="zmq_broker,zmq_proxy")
    options = parser.parse_args()
    names = options.against.split(",") if options.peers else []
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="o") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        body = folder / "body"
        body.write_bytes(BODY)
        client, pid = stack.enter_context(an_instance(folder))
        ports = {name: 20_000 + 10 * i + os.getpid() % 1000 for i, name in enumerate(names)}
        peers = {name: stack.enter_context(a_peer(name, options.peers, ports[name])) for name in names}
        closed_loop(client, 64, 2.0)  # warm-up
        for outstanding in map(int, options.outstanding.split(",")):
            for _ in range(options.repeats):
                for name in ["orch", *names]:
                    root = pid if name == "orch" else peers[name]
                    before = cpu_s(root)
                    if name == "orch":
                        row = closed_loop(client, outstanding, options.seconds)
                    else:
                        row = drive_peer(options.peers, ports[name], body, outstanding, options.seconds)
                    row["cpu_us"] = (cpu_s(root) - before) / row["n"] * 1e6
                    rows.setdefault((name, outstanding), []).append(row)
    print("| server | outstanding | requests/s (min-max) | p50 ms | p99 ms | server CPU us/request | ratio |")
    print("|---|---|---|---|---|---|---|")
    for (name, outstanding), found in rows.items():
        median = {key: statistics.median(row[key] for row in found) for key in found[0]}
        low, high = min(row["rps"] for row in found), max(row["rps"] for row in found)
        base = statistics.median(row["rps"] for row in rows[names[0], outstanding]) if names else median["rps"]
        print(
            f"| {name} | {outstanding} | {median['rps']:.0f} ({low:.0f}-{high:.0f}) | {median['p50']:.2f} "
            f"| {median['p99']:.2f} | {median['cpu_us']:.0f} | {median['rps'] / base:.2f} |"
        )


if __name__ == "__main__":
    main()
