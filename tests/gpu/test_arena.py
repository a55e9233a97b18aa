"""Large arrays through shared memory that each worker has registered with CUDA."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.process.harness import Place, eventually

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]

COPIER = str(Path(__file__).parent / "models" / "cuda.py") + ":Copier"
NUM_BYTES = 64 * 2**20


@pytest.fixture
def place() -> Iterator[Place]:
    """Directories of their own, and nothing left in them."""
    place = Place()
    yield place
    place.clean()


@pytest.mark.parametrize("mps", ["off", "on"])
def test_the_arena_is_registered_with_the_device(place: Place, mps: str) -> None:
    """An array in it counts as pinned, arrives whole, and is copied twice as fast as one in plain memory."""
    instance = place.up(COPIER, f"--mps={mps}", "--replicas=2", "--device=cuda", wait=False)
    eventually(lambda: instance.status().get("settled"), within=120)
    array = np.random.default_rng(0).integers(0, 256, NUM_BYTES, dtype=np.uint8)
    with instance.client() as client:

        def both_in_the_arena() -> list[dict[str, Any]]:
            """One array to each replica; a client's first ones go in frames, while it asks for chunks."""
            futures = [client.submit(array) for _ in range(2)]
            answers = [future.result(60) for future in futures]
            return answers if all(answer["pinned"] for answer in answers) else []

        answers = eventually(both_in_the_arena, within=20)
        alone = client.request(array)
    sys.stdout.write(f"MEASURED {json.dumps({'mps': mps, 'both at once': answers, 'alone': alone})}\n")
    assert all(answer["equal"] for answer in (*answers, alone))
    assert alone["gb_s"] > 2 * alone["plain_gb_s"]
    assert instance.stop() == 0
