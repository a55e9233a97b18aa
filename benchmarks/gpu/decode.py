"""A lone decoder served by orch, held against bare processes that run the same model, in one run.

    python benchmarks/gpu/decode.py [--seconds 4] [--mps off,on] [--replicas 1,2,3,4] [--out build/gpu-decode.json]

For each MPS setting the bare processes and an orch instance are loaded side by side, and take turns (bare, orch, orch,
bare) for each count of replicas; whoever does not have its turn is idle. orch gets real requests through the SDK, a
closed loop with two outstanding per replica. Each worker's rate is taken from the intervals between its answers, after
a second of ramp. The host's gap between bursts is timed once, by one process alone on the card, and used by all.

Every figure goes to the result file at once; a run that is started again goes on from there.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import bare
import serving
from serving import MODELS, Failed, Instance, Results

from orch import Client

TARGET = f"{MODELS / 'decoder.py'}:Decoder"
TINY = {"layers": 2, "hidden": 64, "heads": 4, "vocab": 512}
REQUEST = {"start": 7}
TOKENS = 32
RAMP_S = 1.0
OUTSTANDING = 2  # of each replica
SETTLE_S = 120.0
# Tokens per second of docs/measurements.md's evidence: another decoder of 0.5 B with about 40 % of host time.
EVIDENCE = {"off": {1: 394, 2: 509, 3: 562, 4: 595}, "on": {1: 374, 2: 592, 3: 831, 4: 1010}}
# Together: what is slow for a while is slow for both. Apart: one after the other, each alone on the card.
TOGETHER, APART = (("bare", "orch"),), (("bare",), ("orch",))
WITHIN = 0.05


def main() -> int:
    """Measure what is missing, and print everything."""
    options = parse()
    tiny = options.device == "cpu"
    modes = ["off"] if tiny else options.mps.split(",")
    counts = [int(count) for count in options.replicas.split(",")]
    serving.check_machine(options.device, mps_too="on" in modes)
    deadline = time.monotonic() + options.within
    results = Results(options.out)
    with serving.a_place() as base:
        if "gap_s" not in results.rows:
            results.put("gap_s", time_gap(options.device, TINY if tiny else {}))
        settings = {**(TINY if tiny else {}), "tokens": TOKENS, "gap_s": results.rows["gap_s"]}
        print(f"gap of the host after each burst: {1e3 * settings['gap_s']:.2f} ms")
        for mps in modes:
            for who in APART if options.apart else TOGETHER:
                measure(options, base, results, mps, counts, settings, who, deadline)
    show(results, modes, counts)
    good = is_good(results, modes, counts)
    print(f"every figure is there, and orch within {WITHIN:.0%} of bare in each: {'yes' if good else 'NO'}")
    return 0 if good else 1


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=4, help="measurements of each kind, bare and orch by turns")
    parser.add_argument("--mps", default="off,on")
    parser.add_argument("--replicas", default="1,2,3,4")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a tiny model, to try the program"
    )
    parser.add_argument("--apart", action="store_true", help="bare processes and orch never on the card together")
    parser.add_argument("--within", type=float, default=420.0, help="seconds after which nothing new is begun")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-decode.json"))
    return parser.parse_args()


def time_gap(device: str, settings: Mapping[str, Any]) -> float:
    """The gap that one process, alone on the card, finds to be 40 % of its time; seconds."""
    print("timing the bursts of one process alone", flush=True)
    with bare.Bare(TARGET, device, settings, REQUEST) as alone:
        alone.start(1, {})
        return float(alone.facts[0]["gap_s"])


def measure(
    options: argparse.Namespace,
    base: Path,
    results: Results,
    mps: str,
    counts: Sequence[int],
    settings: Mapping[str, Any],
    who: tuple[str, ...],
    deadline: float,
) -> None:
    """One MPS setting: every count that has no figures yet."""
    todo = [count for count in counts if any(f"{mps} {count} {each}" not in results.rows for each in who)]
    if not todo:
        return
    with ExitStack() as stack:
        processes, instance, client = None, None, None
        if "bare" in who:
            environ = stack.enter_context(bare.mps_daemon(base)) if mps == "on" else {}
            processes = stack.enter_context(bare.Bare(TARGET, options.device, settings, REQUEST))
            threads = max(1, len(os.sched_getaffinity(0)) // max(todo))  # as orch shares them out
            processes.start(max(todo), {**environ, "OMP_NUM_THREADS": str(threads)})
            pids = {facts["pid"] for facts in processes.facts}
            if mps == "on" and not pids <= bare.clients(environ):
                print("WARNING: not every bare process is a client of its MPS daemon", flush=True)
        if "orch" in who:
            words = [f"--set={name}={value}" for name, value in settings.items()]
            words += [f"--replicas={todo[0]}", f"--device={options.device}", f"--mps={mps}"]
            instance = stack.enter_context(serving.serve(base, TARGET, *words))
            instance.settle(SETTLE_S)
            client = stack.enter_context(Client(name=instance.name))
        for count in todo:
            if time.monotonic() > deadline:
                print(
                    f"--within {options.within:g} s have passed: start it again, and it goes on from here", flush=True
                )
                return
            if instance is not None and count != todo[0]:
                instance.scale(count)
                instance.settle(SETTLE_S, count)
            rows: dict[str, list[dict[str, Any]]] = {each: [] for each in who}
            for each in islice(cycle((*who, *reversed(who))), len(who) * options.turns):
                if each == "bare":
                    assert processes is not None
                    row = turn_of_bare(processes, count, options.seconds)
                else:
                    assert instance is not None
                    assert client is not None
                    row = turn_of_orch(instance, client, count, options.seconds)
                rows[each].append(row)
                print(f"MPS {mps}, {count} replicas, {each}: {row['tokens_per_s']:.1f} tokens/s", flush=True)
            for each, found in rows.items():
                results.put(f"{mps} {count} {each}", found)


def turn_of_bare(processes: bare.Bare, count: int, seconds: float) -> dict[str, Any]:
    """The first `count` processes at work."""
    done, begin, end = processes.run(count, RAMP_S, seconds)
    rates = [serving.rate(each["moments"], begin, end) for each in done]
    return {"tokens_per_s": TOKENS * sum(rates), "workers": rates, "answer": done[0]["answer"]["tokens"]}


def turn_of_orch(instance: Instance, client: Client, count: int, seconds: float) -> dict[str, Any]:
    """Real requests to the instance."""
    begin = time.monotonic() + RAMP_S
    answers = serving.closed_loop(client, lambda _: REQUEST, OUTSTANDING * count, begin + seconds)
    if answers.errors:
        raise Failed(f"{len(answers.errors)} requests failed, such as {answers.errors[0]!r}")
    by_worker: dict[int, list[float]] = {}
    for moment, answer in answers.done:
        by_worker.setdefault(answer["worker"], []).append(moment)
    rates = [serving.rate(moments, begin, begin + seconds) for moments in by_worker.values()]
    told = {"mps": instance.status()["mps"], "workers": rates, "answer": answers.done[0][1]["tokens"]}
    if len(rates) != count:
        raise Failed(f"{len(rates)} workers answered, and not {count}")
    return {"tokens_per_s": TOKENS * sum(rates), **told}


def is_good(results: Results, modes: Sequence[str], counts: Sequence[int]) -> bool:
    """Whether every figure is there and orch within 5 % of bare in each."""
    rows = [row_of(results, mps, count) for mps in modes for count in counts]
    return all(row is not None and row["orch"] >= (1 - WITHIN) * row["bare"] for row in rows)


def row_of(results: Results, mps: str, count: int) -> dict[str, float] | None:
    """The mean of the turns of each kind; None while one is missing."""
    found = {each: results.rows.get(f"{mps} {count} {each}") for each in ("bare", "orch")}
    if not all(found.values()):
        return None
    return {each: sum(turn["tokens_per_s"] for turn in turns) / len(turns) for each, turns in found.items() if turns}


def show(results: Results, modes: Sequence[str], counts: Sequence[int]) -> None:
    """The table, and whether all gave the same answer."""
    print("| MPS | replicas | bare tokens/s | orch tokens/s | orch / bare | bare x1 | orch x1 | evidence page |")
    print("|---|---|---|---|---|---|---|---|")
    for mps in modes:
        first = row_of(results, mps, counts[0])
        for count in counts:
            row, page = row_of(results, mps, count), EVIDENCE[mps]
            if row is None or first is None:
                print(f"| {mps} | {count} | missing | | | | | |")
                continue
            told = f"{page[count]} (x{page[count] / page[1]:.2f})" if count in page else "-"
            scaling = [f"x{row[each] / first[each]:.2f}" for each in ("bare", "orch")]
            print(
                f"| {mps} | {count} | {row['bare']:.0f} | {row['orch']:.0f} | {row['orch'] / row['bare']:.3f} "
                f"| {scaling[0]} | {scaling[1]} | {told} |"
            )
    turns = [turn for row in results.rows.values() if isinstance(row, list) for turn in row]
    rates = [[turn["tokens_per_s"] for turn in row] for row in results.rows.values() if isinstance(row, list)]
    spread = [1 - min(row) / max(row) for row in rates if max(row)]
    print(f"turns of the same differ by at most {100 * max(spread, default=0):.1f} %")
    print(f"all workers gave the same {TOKENS} tokens: {len({tuple(turn['answer']) for turn in turns}) == 1}")


if __name__ == "__main__":
    serving.run(main)
