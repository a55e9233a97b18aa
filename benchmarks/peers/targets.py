"""What orch has to reach, as factors of what others reach in the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.figures import median, ratio
from benchmarks.peers.workloads import POINTS, ideal

BEST_PEER = "the best peer"
PEERS = ("nginx_uvicorn", "mosec", "litserve", "bentoml", "pytriton", "ray")
IDEAL = "the ideal"


@dataclass(frozen=True, slots=True)
class Target:
    """At a point, the figure of one of orch's rows / that of `against` is to be at least, or at most, `bound`."""

    point: str
    figure: str
    against: str
    bound: float
    at_least: bool = False
    row: str = "orch"

    @property
    def text(self) -> str:
        """In a few words."""
        names = {"rps": "requests/s", "p50_ms": "p50", "p99_ms": "p99", "server_us": "server CPU"}
        sign = ">=" if self.at_least else "<="
        of = "" if self.row == "orch" else f"{self.row}'s "
        return f"{self.point}: {of}{names[self.figure]} {sign} {self.bound:g} x {self.against}"


TARGETS = (
    # Through the SDK.
    Target("echo-64", "rps", "nginx_uvicorn", 2.0, at_least=True),
    Target("echo-64", "rps", "mosec", 2.5, at_least=True),
    Target("echo-64", "rps", "zmq_proxy", 1.0, at_least=True),
    Target("echo-64", "server_us", "zmq_proxy", 0.75),
    Target("echo-1", "p50_ms", "zmq_broker", 1.0),
    Target("echo-1", "p50_ms", "zmq_echo", 2.0),
    Target("echo-8x8", "rps", "echo-64", 0.8, at_least=True),
    Target("tensor-16", "rps", "mosec", 3.0, at_least=True),
    Target("batch-256", "rps", IDEAL, 0.97, at_least=True),
    Target("batch-256", "p99_ms", IDEAL, 1.2),
    Target("batch-16", "p50_ms", BEST_PEER, 0.75),
    # Over HTTP.
    *(
        Target(point, "rps", against, bound, at_least=True, row=row)
        for row in ("orch_http", "orch_http2")
        for against, bound in (("mosec", 1.0), ("litserve", 8.0))
        for point in ("echo-64", "tensor-16")
    ),
)


def reached(target: Target, points: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The factor that was measured; None: not measured."""
    ours = points.get(target.point, {}).get(target.row)
    if not ours:
        return None
    if target.against == IDEAL:
        best = ideal(next(point for point in POINTS if point.name == target.point))
        found = median(row[target.figure] for row in ours)
        if best is None or found is None:
            return None
        return found / (best.rps if target.figure == "rps" else best.time_s * 1e3)
    if target.against == BEST_PEER:
        factors = [ratio(ours, rows, target.figure) for name, rows in points[target.point].items() if name in PEERS]
        there = [factor for factor in factors if factor is not None]
        return max(there, default=None)
    theirs = points.get(target.against, {}).get(target.row) or points[target.point].get(target.against)
    return ratio(ours, theirs, target.figure) if theirs else None


def verdicts(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For each target: what it asks for, what was measured, and yes, no or a dash."""
    rows = []
    for target in TARGETS:
        factor = reached(target, results["points"])
        if factor is None:
            rows.append((target.text, "not measured", "-"))
        else:
            kept = factor >= target.bound if target.at_least else factor <= target.bound
            rows.append((target.text, f"{factor:.2f} x", "yes" if kept else "no"))
    return rows + _of_kills(results["kills"])


def _of_kills(kills: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    ours = kills.get("orch")
    if not ours:
        return [("kill: no request lost", "not measured", "-")]
    lost = sum(row["lost"] for row in ours)
    rows = [("kill: no request lost", f"{lost:g} in {len(ours)} kills", "no" if lost else "yes")]
    full_s, mosec_s = (median(row["full_rate_s"] for row in kills.get(name, [])) for name in ("orch", "mosec"))
    if mosec_s is not None:
        kept = full_s is not None and full_s <= mosec_s
        rows.append((f"kill: full rate after <= mosec's {mosec_s:.2f} s", _seconds(full_s), "yes" if kept else "no"))
    return rows


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"
