"""What HTTP clients and the page are told of a real GPU under load, beside what the driver says at that moment."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orch.planning import gpu
from tests.process.harness import Instance, Place, eventually
from tests.process.web import Web

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]

DECODER = str(Path(__file__).resolve().parent / "models" / "cuda.py") + ":Decoder"
CLIENTS = 8
MIB = 2**20


@pytest.fixture
def place() -> Iterator[Place]:
    """Directories of their own, and nothing left in them."""
    place = Place()
    yield place
    place.clean()


def metrics(web: Web) -> dict[str, float]:
    """Each sample of a gauge of the GPUs, by its name."""
    text = web.get("/metrics").body.decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("orch_gpu_")
    }


class Load(threading.Thread):
    """Requests over HTTP, one after the other."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self.stopping, self.answered = url, False, 0
        self.start()

    def run(self) -> None:
        with Web(self._url) as web:
            while not self.stopping:
                assert web.post("/predict", {"n": 1}).status == 200
                self.answered += 1


def serving(place: Place) -> Instance:
    """Four replicas that share the GPU by MPS."""
    options = ("--device=cuda:0", "--mps=on", "--load-parallelism=2")
    instance = place.up(DECODER, *options, replicas=4, http=True, wait=False)

    def ready() -> bool:
        assert instance.process.poll() is None, instance.output()
        return instance.status().get("state") == "READY"

    eventually(ready, within=120)
    return instance


def test_metrics_and_status_agree_with_the_driver(place: Place) -> None:
    """Utilization, power and memory under load are those of NVML; orch's page has them from the same status."""
    instance = serving(place)
    loads = [Load(instance.url) for _ in range(CLIENTS)]
    with Web(instance.url) as web, gpu.session():
        eventually(lambda: metrics(web).get("orch_gpu_utilization_ratio", 0) > 0.3, within=30)
        found = metrics(web)
        card, live = gpu.read_gpus()[0], gpu.read_live()[0]
        info = web.get("/v1/gpu/info").json
        status = web.get("/v1/status").json
        sys.stdout.write(f"MEASURED {json.dumps({'metrics': found, 'live': repr(live)})}\n")
        if out := os.environ.get("ORCH_TEST_OUT"):
            (Path(out) / "status.json").write_text(json.dumps(status))
            (Path(out) / "gpu_info.json").write_text(json.dumps(info))
            (Path(out) / "metrics.txt").write_bytes(web.get("/metrics").body)
        assert found["orch_gpu_memory_size_bytes"] == card.total_bytes
        assert card.used_bytes is not None
        assert abs(found["orch_gpu_memory_used_bytes"] - card.used_bytes) < 64 * MIB
        assert 50 < found["orch_gpu_power_watts"] <= found["orch_gpu_power_limit_watts"]
        assert 10 < found["orch_gpu_temperature_celsius"] < 110
        assert found["orch_gpu_ready_replicas"] == len(instance.ready())
        assert card.name in json.dumps(info)
        assert card.name in json.dumps(status)
    for each in loads:
        each.stopping = True
    for each in loads:
        each.join(30)
        assert each.answered
