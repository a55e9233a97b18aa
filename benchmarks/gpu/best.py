"""Whether `--replicas best` finds the count that pays, held against the grid of `orch tune`.

    python benchmarks/gpu/best.py [--models decoder,vit] [--parts best,tune] [--out build/gpu-best.json]

The lone decoder, and ViT-B/16 at batch 8, both under MPS. For each model `orch up --replicas best` runs until it has
settled; then `orch tune` measures counts around the one it kept, on fresh instances. What counts is tune's figure for
the kept count beside the best figure of tune's grid: at least 97 % of it. What is in the result files is not measured
again, so a run that is cut short goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serving
from decode import TARGET, TINY, time_gap
from serving import MODELS, Failed, Results

WITHIN = 0.03
# At least, for a part that was begun; and for orch tune to end once its time has passed.
LEAST_S, INTERRUPT_S = 20.0, 60.0
PARALLEL = 8  # replicas that orch tune loads at once


@dataclass(frozen=True)
class Served:
    """A model, its batch size, and what makes it small enough for a CPU."""

    name: str
    target: str
    max_batch_size: int
    tiny: Mapping[str, Any]


SERVED = {
    each.name: each
    for each in (
        Served("decoder", TARGET, 1, TINY),
        Served("vit", f"{MODELS / 'vit.py'}:ViT", 8, {"layers": 1, "hidden": 48, "heads": 4}),
    )
}


def main() -> int:
    """Run the parts that have no result yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="decoder,vit")
    parser.add_argument("--parts", default="best,tune")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny, to try the program")
    parser.add_argument("--within", type=float, default=480.0, help="seconds after which nothing goes on")
    parser.add_argument("--up-option", action="append", default=[], help="one more word for orch up")
    parser.add_argument("--tune-option", action="append", default=[], help="one more word for orch tune")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-best.json"))
    options = parser.parse_args()
    names = options.models.split(",")
    if unknown := [name for name in names if name not in SERVED]:
        raise Failed(f"no model {', '.join(unknown)}; there are {', '.join(SERVED)}")
    serving.check_machine(options.device)
    results = Results(options.out)
    deadline = time.monotonic() + options.within
    for name in names:
        model = SERVED[name]
        with serving.a_place() as base:
            settings = settings_for(model, options.device, results)
            if "best" in options.parts and f"{name} best" not in results.rows:
                results.put(f"{name} best", find_best(model, settings, options, base, deadline))
            if "tune" in options.parts and f"{name} best" in results.rows:
                tune(model, settings, options, results, deadline)
    shown = [show(name, results) for name in names]
    return 0 if all(shown) else 1


def settings_for(model: Served, device: str, results: Results) -> dict[str, Any]:
    """The model's settings; the decoder's gap is timed once, alone on the card, and kept."""
    settings = dict(model.tiny) if device == "cpu" else {}
    if model.target == TARGET:
        if "gap_s" not in results.rows:
            results.put("gap_s", time_gap(device, settings))
        settings["gap_s"] = results.rows["gap_s"]
    return settings


def words_for(settings: Mapping[str, Any], device: str) -> list[str]:
    """What `orch up` and `orch tune` are both told."""
    words = [f"--set={name}={value}" for name, value in settings.items()]
    return [*words, f"--device={device}", f"--mps={'off' if device == 'cpu' else 'on'}"]


def find_best(
    model: Served, settings: Mapping[str, Any], options: argparse.Namespace, base: Path, deadline: float
) -> dict[str, Any]:
    """`orch up --replicas best` until it has settled: the count it kept, and why."""
    words = ["--replicas=best", f"--max-batch-size={model.max_batch_size}", *words_for(settings, options.device)]
    began = time.monotonic()
    with serving.serve(base, model.target, *words, *options.up_option) as instance:
        status = instance.settle(max(LEAST_S, deadline - time.monotonic()))
        took_s = time.monotonic() - began
        for line in instance.output().splitlines():
            if "answers/s" in line or "kept" in line or "warning" in line.lower():
                print(f"  {line[:300]}")
    kept, plan = len(status["replicas"]), status["plan"]
    print(f"{model.name}: --replicas best keeps {kept} (limit: {plan['limit']}) after {took_s:.0f} s", flush=True)
    return {"kept": kept, "plan": plan, "seconds": took_s, "mps": status["mps"]}


def tune_file(results: Results, name: str) -> Path:
    """Where orch tune keeps its rows: beside our own."""
    return results.path.with_name(f"{results.path.stem}-tune-{name}.json")


def tune(
    model: Served, settings: Mapping[str, Any], options: argparse.Namespace, results: Results, deadline: float
) -> None:
    """`orch tune` over counts around the kept one; it goes on from its own result file."""
    kept = results.rows[f"{model.name} best"]["kept"]
    counts = sorted({1, *(max(1, kept + step) for step in (-1, 0, 1, 2)), kept + max(3, kept // 2)})
    command = [sys.executable, "-P", "-m", "orch_cli", "tune", model.target]
    command += [f"--replicas={','.join(map(str, counts))}", f"--max-batch-size={model.max_batch_size}"]
    command += [f"--out={tune_file(results, model.name).absolute()}", *words_for(settings, options.device)]
    left_s = max(LEAST_S, deadline - time.monotonic())
    command += [f"--time-limit={left_s:.0f}s", f"--load-parallelism={PARALLEL}", *options.tune_option]
    print(f"{model.name}: orch tune over {counts}", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=os.environ)
    try:
        code = process.wait(left_s + INTERRUPT_S)
    except BaseException as err:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(INTERRUPT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if isinstance(err, subprocess.TimeoutExpired):
            raise Failed(f"orch tune did not end within {left_s + INTERRUPT_S:.0f} s") from None
        raise
    if code != 0:
        raise Failed(f"orch tune ended with {code}")
    print(f"{model.name}: orch tune took {time.monotonic() - began:.0f} s", flush=True)


def show(name: str, results: Results) -> bool:
    """The grid, and whether the kept count is near its best."""
    found, file = results.rows.get(f"{name} best"), tune_file(results, name)
    if found is None or not file.exists():
        print(f"{name}: not measured yet")
        return False
    kept, size = found["kept"], SERVED[name].max_batch_size
    rows = [row for row in json.loads(file.read_text())["rows"] if row["max_batch_size"] == size]
    rates = {row["replicas"]: row["answers_per_s"] for row in rows if row["outcome"] == "measured"}
    print(f"| {name}: replicas | answers/s | of the best | p99 ms |")
    print("|---|---|---|---|")
    top = max(rates.values(), default=0.0)
    for row in sorted(rows, key=lambda row: int(row["replicas"])):
        if row["replicas"] not in rates:
            print(f"| {row['replicas']} | {row['outcome']} | | |")
            continue
        mark = " (kept by best)" if row["replicas"] == kept else ""
        rate = row["answers_per_s"]
        print(f"| {row['replicas']}{mark} | {rate:.1f} | {rate / top:.3f} | {1e3 * row['p99_s']:.1f} |")
    if kept not in rates:
        print(f"{name}: orch tune has no figure for {kept} replicas")
        return False
    share = rates[kept] / top
    word = "good" if share >= 1 - WITHIN else f"TOO LITTLE, less than {1 - WITHIN:.0%}"
    print(f"{name}: {kept} replicas give {share:.1%} of the grid's best: {word}")
    return bool(share >= 1 - WITHIN)


if __name__ == "__main__":
    serving.run(main)
