"""ViT-B/16 behind orch, its images sent by separate client processes, beside a bare loop that runs the same model.

    python benchmarks/gpu/vit.py [--replicas 1,2,3] [--batches 32,64,128,256] [--clients 6] [--out build/gpu-vit.json]

The bare loop is one process: batches that lie ready in pinned memory are copied to the device, run in bfloat16, and
1000 scores an image copied back; plainly, and with the next batch launched while one runs. Its best batch size counts.
Then orch: a grid of replicas and batch sizes, each under a load of two batches for each replica, sent by client
processes as uint8 (3, 224, 224) through `client.submit`, every answer compared with the bare model's. The best of the
grid (by the rule of `orch tune`) and the bare loop's best then take turns, and the medians of these are the result:
orch has to give at least 90 % of the bare loop's images. What is in the result file is not measured again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import serving
from children import Child
from serving import MODELS, Failed, Instance, Results
from watch import Watch, parts

HERE = Path(__file__).resolve().parent
TARGET = f"{MODELS / 'vit.py'}:Scores"
TINY = {"layers": 1, "hidden": 48, "heads": 4}
PICTURES = 64
# On their way, beside two batches for each replica.
TRAVELLING = 64
LEAST = 0.90
# Of configurations this near to the best, the one with the fewest replicas, then with the smallest batch.
SAME = 0.02
COSTS = ("p50 ms", "p99 ms", "GPU busy %", "W", "CPU us an image: balancer", "worker", "client")
RAMP_S, LEAD_S, LOAD_S, SETTLE_S = 1.0, 0.3, 180.0, 180.0


def main() -> int:
    """Measure what is missing, and print everything."""
    options = parse()
    serving.check_machine(options.device, mps_too=False)
    results = Results(options.out)
    deadline = time.monotonic() + options.within
    with serving.a_place() as base, ExitStack() as stack:
        settings = TINY if options.device == "cpu" else {}
        bare = stack.enter_context(Child(HERE / "vit_bare.py", options.device, json.dumps(settings)))
        bare.answer(LOAD_S)
        best = measure_bare(bare, options, results)
        bench = Bench(options, base, expected_scores(bare, base), [f"--set={k}={v}" for k, v in settings.items()])
        for batch in numbers(options.batches):
            todo = [count for count in numbers(options.replicas) if f"orch {count} {batch}" not in results.rows]
            if todo and time.monotonic() < deadline:
                bench.measure(results, sorted(todo, reverse=True), batch)
        if (chosen := choose(results)) is not None and "turns" not in results.rows:
            bench.turns(results, bare, best, chosen)
    return show(results)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", default="1,2,3")
    parser.add_argument("--batches", default="32,64,128,256", help="of orch")
    parser.add_argument("--bare-batches", default="32,64,128,256")
    parser.add_argument("--clients", type=int, default=6, help="processes that send")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn; half as long in the grids")
    parser.add_argument("--turns", type=int, default=4, help="measurements of each kind, bare and orch by turns")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny, to try the program")
    parser.add_argument("--shared-memory", default="1GiB", help="for orch up: 256 KiB for each image on its way")
    parser.add_argument("--up-option", action="append", default=[], help="one more word for orch up")
    parser.add_argument("--profile", type=Path, help="a folder for profiles of one more turn; py-spy has to be on PATH")
    parser.add_argument("--within", type=float, default=420.0, help="seconds after which no batch size is begun")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-vit.json"))
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """Of "1,2,3"."""
    return [int(word) for word in text.split(",")]


def expected_scores(bare: Child, base: Path) -> Path:
    """A file with the bare model's scores of every picture."""
    path = base / "expected.npy"
    bare.order(save=str(path), pictures=PICTURES)
    bare.answer(LOAD_S)
    return path


def tolerance(expected: Path) -> float:
    """A quarter of the smallest difference between the answers to two pictures: a mix-up is further off."""
    scores = np.load(expected)
    pairs = [np.abs(scores[n] - scores[n + 1 :]).max(axis=1).min() for n in range(len(scores) - 1)]
    return float(min(pairs)) / 4


def measure_bare(bare: Child, options: argparse.Namespace, results: Results) -> dict[str, Any]:
    """Every batch size, plain and with one ahead; the fastest order."""
    for batch in numbers(options.bare_batches):
        for ahead in (False, True):
            if f"bare {batch} {ahead}" not in results.rows:
                row = run_bare(bare, {"batch": batch, "ahead": ahead}, RAMP_S / 2, options.seconds / 2)
                results.put(f"bare {batch} {ahead}", row)
                print(f"bare, batches of {batch}{', one ahead' if ahead else ''}: {row['images_per_s']:,.0f} images/s")
    rows = [row for name, row in results.rows.items() if name.startswith("bare ")]
    best = max(rows, key=lambda row: float(row["images_per_s"]))
    return {"batch": best["batch"], "ahead": best["ahead"]}


def run_bare(bare: Child, what: dict[str, Any], ramp_s: float, seconds: float) -> dict[str, Any]:
    """One measurement of the bare loop."""
    with Watch({"process": [bare.pid]}) as watch:
        bare.order(**what, ramp_s=ramp_s, seconds=seconds)
        found = bare.answer(LOAD_S)
    return {**what, **found, **watch.facts}


class Bench:
    """orch's side: instances of the model, and the processes that send."""

    def __init__(self, options: argparse.Namespace, base: Path, expected: Path, words: Sequence[str]) -> None:
        self._options, self._base, self._expected = options, base, expected
        self._words = [f"--device={options.device}", f"--shared-memory={options.shared_memory}", *words]
        self._tolerance = tolerance(expected)

    def measure(self, results: Results, counts: Sequence[int], batch: int) -> None:
        """The grid's rows of one batch size: one instance, scaled from the most replicas downwards."""
        with ExitStack() as stack:
            instance, clients = self._serve(stack, counts[0], batch)
            for count in counts:
                if count != counts[0]:
                    instance.scale(count)
                    instance.settle(SETTLE_S, count)
                row = self.run(instance, clients, count, batch, self._options.seconds / 2)
                results.put(f"orch {count} {batch}", row)
                print(f"orch, {count} replicas, batches of {batch}: {row['images_per_s']:,.0f} images/s", flush=True)

    def turns(self, results: Results, bare: Child, best: dict[str, Any], chosen: tuple[int, int]) -> None:
        """The bare loop's best and orch's, by turns; then a profile, if one is wanted."""
        rows: dict[str, list[dict[str, Any]]] = {"bare": [], "orch": []}
        with ExitStack() as stack:
            instance, clients = self._serve(stack, *chosen)
            for who in islice(cycle(("bare", "orch", "orch", "bare")), 2 * self._options.turns):
                if who == "bare":
                    row = run_bare(bare, best, RAMP_S, self._options.seconds)
                else:
                    row = self.run(instance, clients, *chosen, self._options.seconds)
                rows[who].append(row)
                print(f"turn of {who}: {row['images_per_s']:,.0f} images/s", flush=True)
            results.put("turns", rows)
            if self._options.profile is not None:
                pids = {
                    "client": clients[0].pid,
                    **{name: each[0] for name, each in parts(instance.process.pid).items()},
                }
                profiles = profile(self._options.profile, pids, self._options.seconds)
                self.run(instance, clients, *chosen, self._options.seconds + 1)
                for each in profiles:
                    each.wait(SETTLE_S)

    def _serve(self, stack: ExitStack, count: int, batch: int) -> tuple[Instance, list[Child]]:
        words = [f"--replicas={count}", f"--max-batch-size={batch}", "--load-parallelism=4", *self._words]
        instance = stack.enter_context(serving.serve(self._base, TARGET, *words, *self._options.up_option))
        instance.settle(SETTLE_S)
        started = [
            Child(HERE / "vit_client.py", instance.name, str(self._expected)) for _ in range(self._options.clients)
        ]
        clients = [stack.enter_context(client) for client in started]
        for client in clients:
            client.answer(LOAD_S)
        return instance, clients

    def run(
        self, instance: Instance, clients: Sequence[Child], count: int, batch: int, seconds: float
    ) -> dict[str, Any]:
        """One measurement. Raises Failed if an answer is an error, or wrong."""
        share = -(-(2 * count * batch + TRAVELLING) // len(clients))
        pids = {**parts(instance.process.pid), "client": [client.pid for client in clients]}
        before = instance.status()["queue"]
        with Watch(pids) as watch:
            begin = time.monotonic() + LEAD_S
            for client in clients:
                client.order(outstanding=share, begin=begin, ramp_s=RAMP_S, seconds=seconds)
            told = [client.answer(LEAD_S + RAMP_S + seconds + LOAD_S) for client in clients]
        if errors := [error for each in told for error in each["errors"]]:
            raise Failed(f"requests failed: {errors[0]}")
        off, answers = max(each["off"] for each in told), sum(each["answers"] for each in told)
        if off > self._tolerance:
            raise Failed(f"a score is off by {off:.4f}; {self._tolerance:.4f} would tell two pictures apart")
        status = instance.status()
        answered = status["queue"]["answered"] - before["answered"]
        return {
            "replicas": count,
            "batch": batch,
            "images_per_s": answers / seconds,
            "p50_s": statistics.median(each["p50_s"] for each in told),
            "p99_s": max(each["p99_s"] for each in told),
            "off": off,
            "tolerance": self._tolerance,
            "cpu_us": {name: 1e6 * used / max(1, answered) for name, used in watch.cpu_s.items()},
            "mps": status["mps"],
            "queue": status["queue"],
            **watch.facts,
        }


def profile(folder: Path, pids: dict[str, int], seconds: float) -> list[subprocess.Popen[bytes]]:
    """py-spy on some processes: one file of collapsed stacks each."""
    if shutil.which("py-spy") is None:
        raise Failed("--profile needs py-spy on PATH")
    folder.mkdir(parents=True, exist_ok=True)
    words = ["py-spy", "record", "--format=raw", "--rate=200", f"--duration={seconds:.0f}"]
    return [
        subprocess.Popen([*words, f"--output={folder / name}.txt", f"--pid={pid}"], stdout=subprocess.DEVNULL)
        for name, pid in pids.items()
        if name != "other"
    ]


def choose(results: Results) -> tuple[int, int] | None:
    """Replicas and batch size, by the rule of `orch tune`."""
    rows = [row for name, row in results.rows.items() if name.startswith("orch ")]
    if not rows:
        return None
    most = max(row["images_per_s"] for row in rows)
    return min((row["replicas"], row["batch"]) for row in rows if row["images_per_s"] >= (1 - SAME) * most)


def show(results: Results) -> int:
    """The tables; 0 if orch gives enough."""
    bare = {name: row for name, row in results.rows.items() if name.startswith("bare ")}
    table("bare loop, batches of", "images/s", "with one ahead", "GPU busy %", "W")
    for batch in sorted({row["batch"] for row in bare.values()}):
        plain, ahead = bare[f"bare {batch} False"], bare[f"bare {batch} True"]
        line(batch, f"{plain['images_per_s']:,.0f}", f"{ahead['images_per_s']:,.0f}", *card(ahead))
    top = max(row["images_per_s"] for row in bare.values())
    table("orch: replicas", "batches of", "images/s", "of bare", *COSTS)
    for row in [row for name, row in results.rows.items() if name.startswith("orch ")]:
        rate = row["images_per_s"]
        line(row["replicas"], row["batch"], f"{rate:,.0f}", f"{rate / top:.3f}", *costs(row))
    if "turns" not in results.rows:
        print("no turns were measured")
        return 1
    medians = {}
    table("turns of", "images/s: median", "smallest", "largest", "GPU busy %", "W")
    for who, rows in results.rows["turns"].items():
        rates = [row["images_per_s"] for row in rows]
        medians[who] = statistics.median(rates)
        line(who, *(f"{rate:,.0f}" for rate in (medians[who], min(rates), max(rates))), *card(rows[0]))
    row, ratio = results.rows["turns"]["orch"][0], medians["orch"] / medians["bare"]
    print(f"orch: {row['replicas']} replicas, batches of {row['batch']}, MPS {row['mps']['state']}")
    table(*COSTS)
    line(*costs(row))
    print(f"scores off by at most {row['off']:.4f}, where {row['tolerance']:.4f} would tell two pictures apart")
    print(f"orch / bare: {ratio:.3f}; at least {LEAST:.2f}: {'yes' if ratio >= LEAST else 'NO'}")
    return 0 if ratio >= LEAST else 1


def table(*heads: str) -> None:
    """The head of a table."""
    line(*heads)
    line(*["---"] * len(heads))


def line(*cells: object) -> None:
    """A line of it."""
    print(f"| {' | '.join(map(str, cells))} |")


def card(row: dict[str, Any]) -> list[str]:
    """Two cells: busy, and watts."""
    return ["-" if row[name] is None else f"{row[name]:.0f}" for name in ("utilization_percent", "power_w")]


def costs(row: dict[str, Any]) -> list[str]:
    """The cells under COSTS."""
    times = [f"{1e3 * row[name]:.0f}" for name in ("p50_s", "p99_s")]
    return times + card(row) + [f"{row['cpu_us'][name]:.0f}" for name in ("balancer", "worker", "client")]


if __name__ == "__main__":
    serving.run(main)
