"""What the protocol tells about the server and its models, as its JSON; gRPC's messages have the same fields.

Sources: the Open Inference Protocol's metadata objects, and Triton's extensions for model configuration, statistics and
the model repository.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from orch.model import ANY, Tensor
from orch_gateway.inference import MICROSECONDS, PRIORITIES, ModelSpec

SERVER_NAME = PLATFORM = "orch"
# Of Triton's names, those that are true here.
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "binary_tensor_data",
    "statistics",
)
NUM_PRIORITIES = 3
NS = 1_000_000_000
MS = 1_000


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and how long all of it took together."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class Statistics:
    """What has happened to one model since the start. num_rows: answered; num_batches: runs of the model."""

    last_inference_ms: int = 0  # wall clock, since 1970
    num_rows: int = 0
    num_batches: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    batches: Mapping[int, Duration] = field(default_factory=dict)  # by batch size, the time of the model's runs


def statistics_of(status: Mapping[str, Any], since_1970_s: float = 0.0) -> Statistics:
    """What the supervisor's status tells of its one model, since the balancer's start.

    since_1970_s: what the wall clock is ahead of the monotonic one.

    success: from a request's admission to its answer, also where the model refused it. queue: until its batch began, at
    the balancer and at the worker. What a worker does before and after the model's own time is not told apart.
    """
    queue, latency, batches = (status.get(name) or {} for name in ("queue", "latency", "batch_rows"))
    whole, waits, batch, compute = (_duration(latency.get(name)) for name in ("total", "queue", "batch", "compute"))
    refused = queue.get("failed", 0)
    answered = queue.get("answered", 0) - refused
    runs, last_at_s = batches.get("runs", ()), batches.get("last_at_s")
    return Statistics(
        last_inference_ms=round((since_1970_s + last_at_s) * MS) if last_at_s else 0,
        num_rows=answered,
        num_batches=sum(batches.get("counts", ())),
        success=Duration(answered, whole.ns),
        fail=Duration(refused + sum(queue.get(name, 0) for name in ("expired", "lost", "poisoned"))),
        queue=Duration(waits.count, waits.ns + batch.ns),
        compute_infer=compute,
        batches={rows: Duration(count, round(sum_s * NS)) for rows, count, sum_s in runs},
    )


def server_metadata(version: str) -> dict[str, Any]:
    """GET /v2. version: orch's own."""
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(spec: ModelSpec) -> dict[str, Any]:
    """GET /v2/models/NAME. Shapes have the batch dimension in front, which is of any size."""
    return {
        "name": spec.name,
        "versions": list(spec.versions),
        "platform": PLATFORM,
        "inputs": [_described(tensor) for tensor in spec.takes],
        "outputs": [_described(tensor) for tensor in spec.gives],
    }


def model_config(spec: ModelSpec) -> dict[str, Any]:
    """GET /v2/models/NAME/config. Shapes are those of one row, as Triton's `dims` are."""
    return {
        "name": spec.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": spec.max_batch_size,
        "input": [{**_configured(tensor), "format": "FORMAT_NONE", "optional": False} for tensor in spec.takes],
        "output": [{**_configured(tensor), "label_filename": ""} for tensor in spec.gives],
        "dynamic_batching": {
            "preferred_batch_size": [spec.max_batch_size],
            "max_queue_delay_microseconds": round(spec.max_batch_wait_s * MICROSECONDS),
            "priority_levels": NUM_PRIORITIES,
            "default_priority_level": next(
                level for level, name in PRIORITIES.items() if level and name == PRIORITIES[0]
            ),
        },
        "model_transaction_policy": {"decoupled": spec.streams},
    }


def model_statistics(found: Iterable[tuple[ModelSpec, Statistics]]) -> dict[str, Any]:
    """GET /v2/models/stats and /v2/models/NAME/stats: one entry for each model."""
    return {"model_stats": [_counted(spec, statistics) for spec, statistics in found]}


def repository_index(found: Iterable[tuple[ModelSpec, str]], *, only_ready: bool = False) -> list[dict[str, str]]:
    """POST /v2/repository/index. Each model comes with why it is not ready, "" if it is."""
    return [
        {"name": spec.name, "version": version, "state": "UNAVAILABLE" if reason else "READY", "reason": reason}
        for spec, reason in found
        if not (only_ready and reason)
        for version in spec.versions
    ]


def _duration(histogram: Mapping[str, Any] | None) -> Duration:
    told = histogram or {}
    return Duration(sum(told.get("counts", ())), round(told.get("sum_s", 0.0) * NS))


def _described(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [ANY, *tensor.shape]}


def _configured(tensor: Tensor) -> dict[str, Any]:
    """Triton's configuration calls BYTES a string."""
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": list(tensor.shape), "is_shape_tensor": False}


def _counted(spec: ModelSpec, statistics: Statistics) -> dict[str, Any]:
    nothing = asdict(Duration())
    parts: Sequence[str] = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    return {
        "name": spec.name,
        "version": spec.versions[-1],
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.num_rows,
        "execution_count": statistics.num_batches,
        "inference_stats": {
            **{part: asdict(getattr(statistics, part)) for part in parts},
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [
            {"batch_size": size, "compute_input": nothing, "compute_infer": asdict(took), "compute_output": nothing}
            for size, took in sorted(statistics.batches.items())
        ],
        "memory_usage": [],
        "response_stats": {},
    }
