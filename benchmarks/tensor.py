"""A large array through two replicas that take its mean, with the shared memory and without, in turns.

    python benchmarks/tensor.py [--seconds 3] [--repeats 3] [--outstanding 16] [--shape 3,224,224] [--back]

Prints one table: requests/s (median of the repeats, smallest and largest), p50 and p99 in milliseconds, server CPU in
microseconds per request (everything that `orch up` started), and the ratio to the first row. --back: the model answers
with an array as large as the one it got. Every answer is checked.
"""

from __future__ import annotations

import argparse
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

import numpy as np
import psutil

from orch import Client
from orch.supervising import control

MODEL = """
import numpy

def mean(inputs):
    return [each.mean() for each in inputs]

def back(inputs):
    return inputs

mean.max_batch_size = back.max_batch_size = 16
"""


def closed_loop(client: Client, array: Any, expected: Any, outstanding: int, seconds: float) -> dict[str, float]:
    """Keep `outstanding` requests under way; each answer sends the next."""
    latencies: list[float] = []
    clock = time.perf_counter
    begin = clock()
    end = begin + seconds
    finished = threading.Semaphore(0)
    wrong: list[Any] = []

    def send() -> None:
        sent = clock()

        def answered(future: Future[Any]) -> None:
            output = future.result()
            now = clock()
            latencies.append(now - sent)
            if np.asarray(output).flat[-1] != expected:
                wrong.append(output)
            if now < end:
                send()
            else:
                finished.release()

        client.submit(array).add_done_callback(answered)

    for _ in range(outstanding):
        send()
    for _ in range(outstanding):
        assert finished.acquire(timeout=seconds + 30)
    assert not wrong, f"{len(wrong)} wrong answers"
    return summary(latencies, clock() - begin)


@contextmanager
def an_instance(folder: Path, name: str, function: str, *options: str) -> Iterator[tuple[Client, int]]:
    """Two replicas, and a client."""
    model = folder / "tensor_model.py"
    model.write_text(MODEL)
    command = [sys.executable, "-P", "-m", "orch_cli", "up", f"{model}:{function}", f"--name={name}", "--no-http"]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*command, "--replicas=2", "--device=cpu", *options], stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not is_ready(name):
            assert process.poll() is None, (folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline, "not READY in time"
            time.sleep(0.05)
        with Client(name=name) as client:
            yield client, process.pid
    finally:
        process.terminate()
        process.wait(30)


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


def is_ready(name: str) -> bool:
    """Whether the instance serves with all its replicas."""
    try:
        return control.call(name, "status")["state"] == "READY"
    except Exception:  # noqa: BLE001  not there yet
        return False


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--outstanding", default="16")
    parser.add_argument("--shape", default="3,224,224")
    parser.add_argument("--back", action="store_true")
    options = parser.parse_args()
    array = np.random.default_rng(0).random(tuple(map(int, options.shape.split(","))), dtype=np.float32)
    expected = array.flat[-1] if options.back else array.mean()
    function = "back" if options.back else "mean"
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="o") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        os.environ |= {"ORCH_RUNTIME_DIR": str(folder / "r"), "ORCH_STATE_DIR": str(folder / "s")}
        instances = {
            "frames": stack.enter_context(an_instance(folder, "frames", function, "--shared-memory=0")),
            "arena": stack.enter_context(an_instance(folder, "arena", function)),
        }
        for client, _ in instances.values():
            closed_loop(client, array, expected, 16, 1.0)  # warm-up
        for outstanding in map(int, options.outstanding.split(",")):
            for _ in range(options.repeats):
                for name, (client, pid) in instances.items():
                    before = cpu_s(pid)
                    row = closed_loop(client, array, expected, outstanding, options.seconds)
                    row["cpu_us"] = (cpu_s(pid) - before) / row["n"] * 1e6
                    rows.setdefault((name, outstanding), []).append(row)
    print(f"{array.nbytes} bytes, {function}")
    print("| through | outstanding | requests/s (min-max) | p50 ms | p99 ms | server CPU us/request | ratio |")
    print("|---|---|---|---|---|---|---|")
    for (name, outstanding), found in rows.items():
        median = {key: statistics.median(row[key] for row in found) for key in found[0]}
        low, high = min(row["rps"] for row in found), max(row["rps"] for row in found)
        base = statistics.median(row["rps"] for row in rows["frames", outstanding])
        print(
            f"| {name} | {outstanding} | {median['rps']:.0f} ({low:.0f}-{high:.0f}) | {median['p50']:.2f} "
            f"| {median['p99']:.2f} | {median['cpu_us']:.0f} | {median['rps'] / base:.2f} |"
        )


if __name__ == "__main__":
    main()
