"""The status as Prometheus metrics: every figure where it belongs, under a name that Prometheus' rules allow."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from orch_gateway.counts import BOUNDS_S, HttpCounts
from orch_gateway.metrics import exposition, families

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
UNITS = ("seconds", "bytes", "ratio", "watts", "celsius", "info", "total")


def a_replica(number: int, **facts: Any) -> dict[str, Any]:
    """A row of the status."""
    return {
        "id": f"r{number}", "pid": 100 + number, "state": "READY", "device": "cuda:0", "outstanding": 3, "answered": 40,
        "restarts": 1, "footprint_bytes": 7 * GIB, "memory_bytes": 6 * GIB, "resident_bytes": GIB, "cpu_s": 12.5,
    } | facts  # fmt: skip


def histogram(*counts: int, sum_s: float = 0.0) -> dict[str, Any]:
    """As the balancer tells one."""
    return {"counts": list(counts), "sum_s": sum_s}


STATUS: dict[str, Any] = {
    "name": "prod", "version": "1.2.3", "state": "DEGRADED", "model": "Decoder", "started_at": 1.7e9,
    "plan": {"total": 3}, "mps": {"state": "on"}, "balancer": {"restarts": 2},
    "host": {"memory_total_bytes": 64 * GIB, "memory_available_bytes": 40 * GIB, "cores": 16},
    "gpus": [{
        "index": 0, "uuid": "GPU-0", "name": "NVIDIA H200", "total_bytes": 140 * GIB, "used_bytes": 14 * GIB,
        "planned_bytes": 14 * GIB, "utilization_percent": 94, "power_w": 512.3, "power_limit_w": 700.0,
        "temperature_c": 61, "ready": 1,
    }],
    "replicas": [a_replica(0), a_replica(1, state="BACKOFF", pid=None, memory_bytes=None, cpu_s=None)],
    "queue": {
        "queued": 6, "by_priority": {"HIGH": 1, "NORMAL": 5, "LOW": 0}, "outstanding": 3, "answered": 100, "failed": 8,
        "rejected": 4, "expired": 3, "cancelled": 2, "lost": 1, "poisoned": 0, "retried": 5, "bytes": 999, "clients": 2,
        "malformed": 0,
    },
    "arena": {"bytes": GIB, "leased_bytes": 4096},
    "latency": {
        "bounds_s": [0.001, 0.1], "total": histogram(5, 3, 1, sum_s=0.7), "queue": histogram(9, 0, 0, sum_s=0.001),
        "batch": histogram(9, 0, 0), "compute": histogram(0, 9, 0, sum_s=0.6),
    },
    "batch_rows": {"bounds": [1, 2, 4], "counts": [1, 0, 2, 0], "sum": 9},
    "gateways": [{"id": "g0", "restarts": 1, "http": {}}],
}  # fmt: skip
NOTHING: dict[str, Any] = {"replicas": [], "queue": {}}


def samples(status: dict[str, Any]) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of the text that a scrape gets, by name and labels."""
    text = exposition(status)[0].decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(status: dict[str, Any], name: str, /, **labels: str) -> float | None:
    """One sample; None where there is none."""
    return samples(status).get((name, tuple(sorted(labels.items()))))


def exported() -> list[Metric]:
    """Every family there may be."""
    return list(families(STATUS))


def test_requests_are_counted_once_each_by_how_they_ended() -> None:
    """What the model refused was answered, too, and is not counted twice."""
    found = {labels[0][1]: count for (name, labels), count in samples(STATUS).items() if name == "orch_requests_total"}
    assert found == {
        "answered": 92, "failed": 8, "rejected": 4, "expired": 3, "cancelled": 2, "lost": 1, "poisoned": 0,
    }  # fmt: skip


def test_the_queue_is_told_by_priority() -> None:
    """Or as one figure, where no more is known."""
    assert value(STATUS, "orch_queue_depth", priority="normal") == 5
    plain = {**STATUS, "queue": {"queued": 6}}
    assert value(plain, "orch_queue_depth", priority="any") == 6
    assert value(plain, "orch_queue_depth", priority="normal") is None


def test_buckets_of_a_histogram_are_cumulative() -> None:
    """As Prometheus wants them; the balancer tells each bucket alone."""
    name = "orch_request_duration_seconds"
    assert [value(STATUS, f"{name}_bucket", le=le) for le in ("0.001", "0.1", "+Inf")] == [5, 8, 9]
    assert (value(STATUS, f"{name}_count"), value(STATUS, f"{name}_sum")) == (9, 0.7)
    assert value(STATUS, "orch_request_stage_duration_seconds_sum", stage="compute") == 0.6
    assert value(STATUS, "orch_batch_rows_bucket", le="4.0") == 3


def test_replicas_have_a_sample_for_what_is_known_of_them() -> None:
    """A dead one holds no memory, and no 0 is made up for it."""
    assert value(STATUS, "orch_replica_ready", replica="r0", device="cuda:0") == 1
    assert value(STATUS, "orch_replica_ready", replica="r1", device="cuda:0") == 0
    assert value(STATUS, "orch_replica_memory_bytes", replica="r0", device="cuda:0") == 6 * GIB
    assert value(STATUS, "orch_replica_memory_bytes", replica="r1", device="cuda:0") is None
    assert value(STATUS, "orch_replica_restarts_total", replica="r1", device="cuda:0") == 1
    assert value(STATUS, "orch_replicas", state="backoff") == 1


def test_figures_are_in_base_units() -> None:
    """A share from 0 to 1, watts, bytes."""
    gpu = {"gpu": "0", "uuid": "GPU-0"}
    assert value(STATUS, "orch_gpu_utilization_ratio", **gpu) == 0.94
    assert value(STATUS, "orch_gpu_power_watts", **gpu) == 512.3
    assert value(STATUS, "orch_gpu_info", name="NVIDIA H200", **gpu) == 1
    assert value(STATUS, "orch_build_info", version="1.2.3") == 1
    assert value(STATUS, "orch_mps_active") == 1
    assert value({**STATUS, "mps": {"state": "off"}}, "orch_mps_active") == 0


def test_a_status_that_tells_nothing_still_gives_metrics() -> None:
    """An older supervisor, or one whose balancer is just starting."""
    found = samples(NOTHING)
    assert ("orch_ready", ()) in found
    assert not any(name.startswith(("orch_gpu", "orch_replica", "orch_http", "orch_request_")) for name, _ in found)


def test_a_gateway_counts_by_route_and_status() -> None:
    """What it has answered, and how long that took."""
    counts = HttpCounts()
    for duration_s in (0.0005, 0.5, 100.0):
        counts.count("/predict", 200, duration_s)
    counts.count("/predict", 429, 0.001)
    status = {**STATUS, "gateways": [{"id": "g0", "restarts": 1, "http": counts.facts}]}
    assert value(status, "orch_http_requests_total", gateway="g0", route="/predict", status="200") == 3
    assert value(status, "orch_http_requests_total", gateway="g0", route="/predict", status="429") == 1
    duration = "orch_http_request_duration_seconds"
    of_route = {"gateway": "g0", "route": "/predict"}
    assert value(status, f"{duration}_bucket", le=str(BOUNDS_S[0]), **of_route) == 2
    assert value(status, f"{duration}_bucket", le=str(BOUNDS_S[-1]), **of_route) == 3
    assert value(status, f"{duration}_count", **of_route) == 4
    assert value(status, "orch_gateway_restarts_total", gateway="g0") == 1


def test_the_facts_of_a_gateway_travel_as_json() -> None:
    """They go to the supervisor and come back in the status."""
    counts = HttpCounts()
    counts.count("/", 200, 0.01)
    assert json.loads(json.dumps(counts.facts)) == counts.facts


def test_a_scraper_gets_the_form_that_it_asks_for() -> None:
    """The plain one unless it names OpenMetrics."""
    body, content_type = exposition(STATUS, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    assert exposition(STATUS)[1].startswith("text/plain")


@pytest.mark.parametrize("family", exported(), ids=lambda family: family.name)
def test_names_follow_the_rules(family: Metric) -> None:
    """What promtool checks: help, base units, `_total` for counters alone, and no type in a name."""
    assert re.fullmatch(r"orch(_[a-z0-9]+)+", family.name)
    assert family.documentation.endswith(".")
    assert not re.search(r"_(milliseconds|ms|kb|mb|percent|counter|gauge|histogram|count|sum|bucket)(_|$)", family.name)
    unit = next(
        (word for word in ("seconds", "bytes", "ratio", "watts", "celsius") if word in family.name.split("_")), ""
    )
    assert not unit or family.name.endswith(unit), "the unit comes last"
    if family.type != "counter":
        assert not family.name.endswith("_total")


def test_labels_are_few() -> None:
    """None of them could hold what a client makes up."""
    labels = {label for family in exported() for sample in family.samples for label in sample.labels}
    known = {"le", "outcome", "priority", "stage", "state", "replica", "device", "gpu", "uuid", "gateway", "route",
             "status", "version", "name", "model"}  # fmt: skip
    assert labels <= known


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Every name in every expression of every panel."""
    board = json.loads((ROOT / "deploy/grafana/orch.json").read_text())
    targets = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    variables = [each["definition"] for each in board["templating"]["list"] if "definition" in each]
    asked = {name for text in [*targets, *variables] for name in re.findall(r"\borch_[a-z0-9_]+", text)}
    names = {family.name for family in exported()}
    there = names | {name + suffix for name in names for suffix in ("_total", "_info", "_bucket", "_sum", "_count")}
    assert len(asked) > 20
    assert asked - there == set()


def test_the_dashboard_is_whole() -> None:
    """Panels have numbers and places of their own, and a source that whoever imports it chooses."""
    board = json.loads((ROOT / "deploy/grafana/orch.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels lie on each other"
    assert max(x for x, _ in cells) < 24
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {"${source}"}


def test_the_manual_lists_every_metric() -> None:
    """By its name as a scrape shows it, with type and labels."""
    counts = HttpCounts()
    counts.count("/", 200, 0.01)
    status = {**STATUS, "gateways": [{"id": "g0", "restarts": 1, "http": counts.facts}]}
    ends = {"counter": "_total", "info": "_info"}
    expected = [
        f"| `{family.name}{ends.get(family.type, '')}` | {family.type.replace('info', 'gauge')} | "
        f"{', '.join(sorted({label for sample in family.samples for label in sample.labels} - {'le'}))} | "
        f"{family.documentation} |"
        for family in families(status)
    ]
    lines = (ROOT / "docs/monitoring.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| `orch_") and line.count("|") == 5] == expected
