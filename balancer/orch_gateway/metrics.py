"""The status as Prometheus metrics. Pure: a status document in, families of samples out.

Names follow https://prometheus.io/docs/practices/naming/: base units (seconds, bytes, ratios), `_total` for what only
grows. Labels have few values: replicas, GPUs, gateways, priorities, outcomes and routes; never requests or clients.
What the document does not tell has no sample: no figure is made up.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

Status = Mapping[str, Any]
Row = Mapping[str, Any]

# How a request can end, as the balancer's queue counts it. `answered` there includes what the model refused.
OUTCOMES: Final = ("answered", "failed", "rejected", "expired", "cancelled", "lost", "poisoned")
# The parts of a request's time: until a worker is chosen, until its batch begins, and what the model took.
STAGES: Final = ("queue", "batch", "compute")
# Where the balancer tells the queue's length, and not yet of which priority.
ANY_PRIORITY: Final = "any"
# Labels that several families share, and where a row of the status has their values.
REPLICA: Final = ("replica", "device")
GPU: Final = ("gpu", "uuid")
KEYS: Final = {"replica": "id", "device": "device", "gpu": "index", "uuid": "uuid"}


class StatusCollector(Collector):
    """What prometheus-client collects from: one status document."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        """Families that have at least one sample."""
        return [family for family in families(self._status) if family.samples]


def exposition(status: Status, accept: str = "") -> tuple[bytes, str]:
    """The body and the content type of an answer to a scrape. accept: the request's header of that name."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def families(status: Status) -> Iterator[Metric]:
    """Every family, those without samples too."""
    yield from _instance(status)
    yield from _requests(status)
    yield from _replicas(status.get("replicas", ()))
    yield from _gpus(status.get("gpus", ()))
    yield from _gateways(status.get("gateways", ()))


def _instance(status: Status) -> Iterator[Metric]:
    build = InfoMetricFamily("orch_build", "The version of orch that runs.")
    if status.get("version"):
        build.add_metric([], {"version": str(status["version"])})
    yield build
    about = InfoMetricFamily("orch_instance", "The instance and the model that it serves.")
    about.add_metric([], {"name": str(status.get("name", "")), "model": str(status.get("model", ""))})
    yield about
    yield _gauge("orch_ready", "1 where every replica of the plan serves.", float(status.get("state") == "READY"))
    yield _gauge("orch_start_time_seconds", "When the instance was started, in unix seconds.", status.get("started_at"))
    mps = status.get("mps", {}).get("state")
    yield _gauge("orch_mps_active", "1 where the replicas of a GPU share it through MPS.", mps and float(mps == "on"))
    restarts = status.get("balancer", {}).get("restarts")
    yield _counter("orch_balancer_restarts", "Times that the balancer was started again.", restarts)
    planned = status.get("plan", {}).get("total")
    yield _gauge("orch_planned_replicas", "Replicas that the plan in force asks for.", planned)
    host = status.get("host", {})
    total, available = host.get("memory_total_bytes"), host.get("memory_available_bytes")
    yield _gauge("orch_host_memory_size_bytes", "Memory of the host, or of the group it is limited to.", total)
    yield _gauge("orch_host_memory_available_bytes", "Of that memory, what is free for use.", available)


def _requests(status: Status) -> Iterator[Metric]:
    queue = status.get("queue", {})
    ended = CounterMetricFamily("orch_requests", "Requests that have ended, by how.", labels=["outcome"])
    for outcome, count in outcomes(queue).items():
        ended.add_metric([outcome], count)
    yield ended
    yield _counter("orch_requests_retried", "Runs of requests that a lost worker made necessary.", queue.get("retried"))
    depth = GaugeMetricFamily("orch_queue_depth", "Requests that wait for a worker.", labels=["priority"])
    waiting = queue.get("by_priority") or {ANY_PRIORITY: queue.get("queued", 0)}
    for priority, count in waiting.items():
        depth.add_metric([str(priority).lower()], count)
    yield depth
    yield _gauge("orch_requests_outstanding", "Requests that are with workers.", queue.get("outstanding"))
    yield _gauge("orch_requests_held_bytes", "Bytes of all requests that are accepted.", queue.get("bytes"))
    yield _gauge("orch_clients", "Clients that are connected to the balancer.", queue.get("clients"))
    yield _counter("orch_malformed_messages", "Messages of clients that could not be read.", queue.get("malformed"))
    arena = status.get("arena", {})
    yield _gauge("orch_arena_size_bytes", "Shared memory for large arrays.", arena.get("bytes"))
    yield _gauge("orch_arena_leased_bytes", "Of that memory, what is in use.", arena.get("leased_bytes"))
    yield from _latencies(status.get("latency") or {})
    rows = HistogramMetricFamily("orch_batch_rows", "Rows of the batches that models were given.")
    _observe(rows, [], (status.get("batch_rows") or {}).get("bounds", ()), status.get("batch_rows") or {}, "sum")
    yield rows


def outcomes(queue: Mapping[str, int]) -> dict[str, int]:
    """Requests by how they ended, each counted once, as far as the balancer tells."""
    told = {outcome: queue[outcome] for outcome in OUTCOMES if outcome in queue}
    if "answered" in told:
        told["answered"] -= told.get("failed", 0)
    return told


def _latencies(latency: Row) -> Iterator[Metric]:
    bounds_s = latency.get("bounds_s", ())
    whole = HistogramMetricFamily("orch_request_duration_seconds", "From a request's admission to its answer.")
    _observe(whole, [], bounds_s, latency.get("total", {}), "sum_s")
    yield whole
    stages = HistogramMetricFamily(
        "orch_request_stage_duration_seconds",
        "Parts of that time: in the queue, at a worker until its batch began, and in the model.",
        labels=["stage"],
    )
    for stage in STAGES:
        _observe(stages, [stage], bounds_s, latency.get(stage, {}), "sum_s")
    yield stages


def _replicas(rows: Sequence[Row]) -> Iterator[Metric]:
    states = GaugeMetricFamily("orch_replicas", "Replicas by state.", labels=["state"])
    for state in sorted({str(row["state"]) for row in rows}):
        states.add_metric([state.lower()], sum(row["state"] == state for row in rows))
    yield states
    ready = [{**row, "ready": float(row["state"] == "READY")} for row in rows]
    yield _gauges("orch_replica_ready", "1 where the replica serves.", REPLICA, ready, "ready")
    yield _gauges("orch_replica_outstanding_requests", "Requests with the worker.", REPLICA, rows, "outstanding")
    yield _gauges(
        "orch_replica_footprint_bytes", "What a replica was measured to cost.", REPLICA, rows, "footprint_bytes"
    )
    yield _gauges(
        "orch_replica_memory_bytes", "Memory of its device that the worker holds.", REPLICA, rows, "memory_bytes"
    )
    yield _gauges("orch_replica_resident_memory_bytes", "Host memory of the worker.", REPLICA, rows, "resident_bytes")
    for name, text, key in (
        ("orch_replica_requests", "Requests that the replica has answered.", "answered"),
        ("orch_replica_restarts", "Times that the replica was started again.", "restarts"),
        ("orch_replica_cpu_seconds", "Seconds of a core that the worker has used since its start.", "cpu_s"),
    ):
        yield _each(CounterMetricFamily(name, text, labels=REPLICA), REPLICA, rows, key)


def _gpus(rows: Sequence[Row]) -> Iterator[Metric]:
    about = InfoMetricFamily("orch_gpu", "The GPUs of the plan.", labels=GPU)
    for row in rows:
        about.add_metric(_values(GPU, row), {"name": str(row["name"])})
    yield about
    busy = [{**row, "ratio": percent / 100} for row in rows if (percent := row.get("utilization_percent")) is not None]
    text = "Share of the last moments in which some kernel ran on the GPU."
    yield _gauges("orch_gpu_utilization_ratio", text, GPU, busy, "ratio")
    yield _gauges("orch_gpu_memory_size_bytes", "Memory of the GPU.", GPU, rows, "total_bytes")
    yield _gauges("orch_gpu_memory_used_bytes", "Memory in use, whoever uses it.", GPU, rows, "used_bytes")
    yield _gauges("orch_gpu_memory_planned_bytes", "Memory that the plan gives out.", GPU, rows, "planned_bytes")
    yield _gauges("orch_gpu_power_watts", "Power that the card draws.", GPU, rows, "power_w")
    yield _gauges("orch_gpu_power_limit_watts", "Power that the driver holds the card to.", GPU, rows, "power_limit_w")
    yield _gauges("orch_gpu_temperature_celsius", "Temperature of the card.", GPU, rows, "temperature_c")
    yield _gauges("orch_gpu_ready_replicas", "Replicas that serve on the GPU.", GPU, rows, "ready")


def _gateways(rows: Sequence[Row]) -> Iterator[Metric]:
    restarts = CounterMetricFamily(
        "orch_gateway_restarts", "Times that a gateway was started again.", labels=["gateway"]
    )
    answers = CounterMetricFamily(
        "orch_http_requests", "HTTP requests answered, by route and status.", labels=["gateway", "route", "status"]
    )
    durations = HistogramMetricFamily(
        "orch_http_request_duration_seconds",
        "From an HTTP request's arrival to the end of its answer.",
        labels=["gateway", "route"],
    )
    for row in rows:
        gateway, http = str(row["id"]), row.get("http") or {}
        if row.get("restarts") is not None:
            restarts.add_metric([gateway], row["restarts"])
        for route, status, count in http.get("requests", ()):
            answers.add_metric([gateway, route, str(status)], count)
        for route, histogram in http.get("durations", {}).items():
            _observe(durations, [gateway, route], http.get("bounds_s", ()), histogram, "sum_s")
    yield from (restarts, answers, durations)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    return _each(GaugeMetricFamily(name, text), (), [{"value": value}], "value")


def _counter(name: str, text: str, value: float | None) -> Metric:
    return _each(CounterMetricFamily(name, text), (), [{"value": value}], "value")


def _gauges(name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row], key: str) -> Metric:
    return _each(GaugeMetricFamily(name, text, labels=labels), labels, rows, key)


def _each(
    family: GaugeMetricFamily | CounterMetricFamily, labels: tuple[str, ...], rows: Iterable[Row], key: str
) -> Metric:
    """One sample for each row that tells `key`."""
    for row in rows:
        if row.get(key) is not None:
            family.add_metric(_values(labels, row), row[key])
    return family


def _values(labels: tuple[str, ...], row: Row) -> list[str]:
    return [str(row[KEYS[label]]) for label in labels]


def _observe(
    family: HistogramMetricFamily, labels: list[str], bounds: Sequence[float], histogram: Row, sum_key: str
) -> None:
    """Add a histogram whose counts are of one bucket each, the last of them above every bound."""
    counts = histogram.get("counts", ())
    if len(counts) != len(bounds) + 1:
        return
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    family.add_metric(labels, list(zip(names, itertools.accumulate(counts), strict=True)), histogram.get(sum_key, 0.0))
