"""`--replicas auto` on a real card: as many as are planned become READY, the card ends as full as the plan says.

    python benchmarks/gpu/filling.py [--cases 7,20,40,1.5,tenant] [--out build/gpu-filling.json]

A case is a footprint in GiB; `tenant` is 20 GiB beside a plain process that holds 40 GiB. A case that is in the result
file is not run again; `--again` runs it. Each is bounded in time.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bare
import serving
from serving import MODELS, Failed, Instance, Results

from orch import Client
from orch.errors import OrchError
from orch.planning.planner import HEADROOM_BYTES
from orch.planning.sizes import GIB, MIB, format_size

TARGET = f"{MODELS / 'filler.py'}:Filler"
# What the sum over the filler's weights comes to.
RIGHT = 2048.0
TENANT_GIB = 40.0
TINY_GIB = 0.05
# Of each replica, at the least; a pause keeps it busy, so that its neighbours get their share.
REQUESTS, PAUSE_S = 4, 0.02
WITHIN = 0.02
GONE_S, GONE_BYTES = 15.0, 64 * MIB


@dataclass(frozen=True)
class Case:
    """A footprint, what another process holds, and how long the start may take."""

    name: str
    gib: float
    tenant_gib: float = 0.0
    settle_s: float = 180.0


CASES = {
    case.name: case
    for case in (
        Case("7", 7.0),
        Case("20", 20.0),
        Case("40", 40.0),
        Case("1.5", 1.5, settle_s=300.0),
        Case("tenant", 20.0, TENANT_GIB),
    )
}


@dataclass
class Finding:
    """What was seen of one case: facts for the table, and what was checked."""

    facts: dict[str, Any] = field(default_factory=dict)
    checks: list[tuple[str, bool, str]] = field(default_factory=list)

    def check(self, what: str, good: bool, detail: str = "") -> None:
        """One thing that has to be so."""
        self.checks.append((what, good, detail))
        print(f"  {'ok  ' if good else 'FAIL'} {what}{': ' if detail else ''}{detail}", flush=True)

    @property
    def good(self) -> bool:
        return all(good for _, good, _ in self.checks)


def main() -> int:
    """Run the cases that have no result yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny, to try the program")
    parser.add_argument("--mps", default="auto")
    parser.add_argument("--load-parallelism", type=int, default=8)
    parser.add_argument("--within", type=float, default=480.0, help="seconds after which no case is begun")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-filling.json"))
    options = parser.parse_args()
    names = options.cases.split(",")
    if unknown := [name for name in names if name not in CASES]:
        raise Failed(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    serving.check_machine(options.device, mps_too=options.mps == "on")
    results = Results(options.out)
    end = time.monotonic() + options.within
    for name in names:
        if (name in results.rows and not options.again) or time.monotonic() > end:
            continue
        print(f"case {name}:", flush=True)
        finding = Finding()
        try:
            with serving.a_place() as base:
                run_case(CASES[name], options, base, finding)
        except Failed as err:
            finding.check("the case ran to its end", good=False, detail=str(err))
        results.put(name, {**finding.facts, "good": finding.good, "checks": finding.checks})
    return show(results, names)


def run_case(case: Case, options: argparse.Namespace, base: Path, finding: Finding) -> None:
    """Fill the card, look, send requests, ask for one more, and stop."""
    empty = serving.the_card(options.device)
    gib = case.gib if empty else TINY_GIB
    with a_tenant(case.tenant_gib if empty else TINY_GIB, options.device, on=case.tenant_gib > 0) as tenant:
        before = serving.the_card(options.device)
        words = [f"--set=gib={gib}", "--replicas=auto", f"--load-parallelism={options.load_parallelism}"]
        words += [f"--mps={options.mps}", f"--device={options.device}"]
        began = time.monotonic()
        with serving.serve(base, TARGET, *words) as instance:
            status = instance.settle(case.settle_s)
            finding.facts["settled_s"] = round(time.monotonic() - began, 1)
            look(status, instance, finding)
            ask(status, instance, finding)
            if empty is not None and before is not None:
                used_before = before.used_bytes + before.reserved_bytes
                weigh(status, used_before, serving.the_card(options.device), before.total_bytes or 0, finding)
            one_more(status, instance, finding)
            unharmed(instance, finding)
            if tenant is not None:
                done, _, _ = tenant.run(1, 0.0, 0.1)
                finding.check("the tenant still computes", done[0]["answer"][2] == RIGHT)
    if empty is not None:
        gone_s = time_until_gone(empty.used_bytes, options.device)
        finding.facts["gone_s"] = gone_s
        finding.check("nothing stays on the card", gone_s is not None, f"after {gone_s} s")


@contextlib.contextmanager
def a_tenant(gib: float, device: str, *, on: bool) -> Iterator[bare.Bare | None]:
    """A plain process that holds memory, if `on`."""
    if not on:
        yield None
        return
    with bare.Bare(TARGET, device, {"gib": gib}, {"n": 0}) as tenant:
        tenant.start(1, {})
        yield tenant


def look(status: dict[str, Any], instance: Instance, finding: Finding) -> None:
    """The plan, and whether all of it is there."""
    plan, rows = status["plan"], status["replicas"]
    finding.facts |= {"replicas": len(rows), "planned": plan["total"], "limit": plan["limit"]}
    finding.facts |= {"because": plan["because"], "mps": status["mps"]}
    finding.facts["footprints"] = sorted({row["footprint_bytes"] for row in rows})
    for line in plan["because"]:
        print(f"       {line}")
    for line in instance.output().splitlines():
        if "warning" in line.lower():
            print(f"       {line[:300]}")
    ready = [row for row in rows if row["state"] == "READY"]
    detail = f"{len(ready)} of {plan['total']} (limit: {plan['limit']}), MPS {status['mps']['state']}"
    finding.check("every planned replica is READY", len(ready) == len(rows) == plan["total"], detail)
    print(f"       settled after {finding.facts['settled_s']} s")


def ask(status: dict[str, Any], instance: Instance, finding: Finding) -> None:
    """Requests to all: each replica answers some."""
    count = len(status["replicas"])
    with Client(name=instance.name) as client:
        futures = [client.submit({"n": n, "pause": PAUSE_S}) for n in range(4 * REQUESTS * count)]
        answers = [future.result(serving.ANSWER_S) for future in futures]
    by_pid = dict.fromkeys((row["pid"] for row in status["replicas"]), 0)
    for pid, _, _ in answers:
        by_pid[pid] = by_pid.get(pid, 0) + 1
    right = all(answer[1:] == [n, RIGHT] for n, answer in enumerate(answers))
    detail = f"{len(answers)} right, {min(by_pid.values())} to {max(by_pid.values())} each"
    finding.check("every replica answers", right and min(by_pid.values()) >= 1 and len(by_pid) == count, detail)


def weigh(status: dict[str, Any], used_before: int, card: Any, total_bytes: int, finding: Finding) -> None:
    """The card's used memory beside the plan's figure; the driver's reserve is in both."""
    count, cost = len(status["replicas"]), max(row["footprint_bytes"] for row in status["replicas"])
    told = [row["planned_bytes"] for row in status.get("gpus", []) if row["uuid"] == card.uuid]
    planned = told[0] + card.reserved_bytes if told and told[0] else used_before + count * cost
    used = card.used_bytes + card.reserved_bytes
    share = used / planned - 1
    finding.facts |= {"planned_bytes": planned, "used_bytes": used, "total_bytes": total_bytes, "off": share}
    detail = f"{format_size(used)} used, {format_size(planned)} planned: {share:+.2%}"
    finding.check("used memory within 2 % of the plan's figure", abs(share) <= WITHIN, detail)
    left = max(0, total_bytes - planned - HEADROOM_BYTES)
    print(f"       beyond the plan and its headroom {format_size(left)} are left; one more takes {format_size(cost)}")


def one_more(status: dict[str, Any], instance: Instance, finding: Finding) -> None:
    """`orch scale` to one more than planned has to be refused, with the sum."""
    try:
        instance.scale(len(status["replicas"]) + 1)
    except OrchError as err:
        finding.facts["one_more"] = str(err)
        finding.check("one more does not fit", type(err).__name__ == "DoesNotFit", str(err))
    else:
        limit = status["plan"]["limit"]
        finding.check("one more does not fit", limit == "cores", f"it was taken (limit: {limit})")


def unharmed(instance: Instance, finding: Finding) -> None:
    """Nobody ran out of memory, nobody died: only replica 0 was started again, for its fence."""
    logs = instance.logs()
    finding.check("no out-of-memory in the logs", "out of memory" not in logs.lower())
    restarts = [row["restarts"] for row in instance.status()["replicas"]]
    finding.facts["restarts"] = restarts
    finding.check("nobody died", sum(restarts[1:]) == 0 and restarts[0] <= 1, f"restarts {sum(restarts)}")


def time_until_gone(used_bytes: int, device: str) -> float | None:
    """Seconds until the card is as empty as it was; None: it is not, after GONE_S."""
    began = time.monotonic()
    while time.monotonic() < began + GONE_S:
        card = serving.the_card(device)
        if card is not None and card.used_bytes < used_bytes + GONE_BYTES:
            return round(time.monotonic() - began, 2)
        time.sleep(serving.POLL_S)
    return None


def show(results: Results, names: list[str]) -> int:
    """The table of all cases."""
    print("| case | replicas | limit | footprint | planned | used | off | settled after | good |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        row = results.rows.get(name)
        if row is None or "replicas" not in row:
            print(f"| {name} | missing | | | | | | | |")
            continue
        sizes = [f"{row[key] / GIB:.1f} GiB" if key in row else "-" for key in ("planned_bytes", "used_bytes")]
        off = f"{row['off']:+.2%}" if "off" in row else "-"
        count, footprint = f"{row['replicas']} of {row['planned']}", format_size(max(row["footprints"]))
        good = "yes" if row["good"] else "NO"
        cells = [name, count, row["limit"], footprint, *sizes, off, f"{row['settled_s']} s", good]
        print(f"| {' | '.join(cells)} |")
    return 0 if all(results.rows.get(name, {}).get("good") for name in names) else 1


if __name__ == "__main__":
    serving.run(main)
