"""Replicas over all GPUs of a machine; each test needs two."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.errors import ModelError
from orch.planning import gpu
from orch.planning.sizes import GIB
from tests.process.harness import Place, eventually

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

FILLER = str(Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "models" / "filler.py") + ":Filler"


@pytest.fixture
def place() -> Iterator[Place]:
    """Directories of their own, and nothing left in them."""
    if len(gpu.read_gpus()) < 2:
        pytest.skip("this machine has fewer than two GPUs")
    place = Place()
    yield place
    place.clean()


def say(**facts: object) -> None:
    """A line for docs/measurements.md."""
    sys.stdout.write(f"MEASURED {json.dumps(facts, default=str)}\n")


def test_every_gpu_is_filled_and_every_replica_fenced(place: Place) -> None:
    """As many as each holds; a leak on either GPU meets the replica's own fence, and its neighbours answer."""
    cards = gpu.read_gpus()[:2]
    gib = min(card.total_bytes or 0 for card in cards) / GIB / 5
    options = (f"--set=gib={gib:.1f}", "--device=cuda:0,1", "--mps=on", "--load-parallelism=4")
    instance = place.up(FILLER, *options, replicas="auto", wait=False)  # type: ignore[arg-type]
    eventually(lambda: instance.status().get("settled"), within=150)
    status = instance.status()
    per_gpu = Counter(each["gpu"] for each in status["replicas"])
    say(what="two GPUs", plan=status["plan"], gpus=status["gpus"], view=place.orch("status").out)
    assert set(per_gpu) == {card.uuid for card in cards}
    assert all(4 <= count <= 5 for count in per_gpu.values())
    assert all(each["fence_bytes"] for each in status["replicas"])
    for row in status["gpus"]:
        assert abs(row["used_bytes"] - row["planned_bytes"]) < 0.02 * row["planned_bytes"]

    client = instance.client()
    workers = {each["pid"]: each["gpu"] for each in status["replicas"]}
    answered = Counter(workers[pid] for pid, _, _ in client.map([{"n": n, "pause": 0.005} for n in range(400)]))
    say(what="400 requests by GPU", answered=answered)
    assert set(answered) == set(per_gpu)

    for _ in range(8):  # the longest idle is chosen: each in its turn
        leak = client.submit({"n": -1, "do": "leak"})
        with pytest.raises(ModelError, match="out of memory"):
            leak.result(60)
    used = {card.uuid: card.used_bytes for card in gpu.read_gpus()}
    say(what="after eight leaks", used=used, planned={row["uuid"]: row["planned_bytes"] for row in status["gpus"]})
    assert all(used[row["uuid"]] < row["total_bytes"] - GIB for row in status["gpus"])
    assert len(instance.ready()) == len(workers)
