"""The main job on a real GPU: replicas with contexts of their own, measured, killed and counted.

ORCH_TEST_WEIGHTS: a folder with model.safetensors and tokenizer.json, where the demo package is not installed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orch.planning import gpu
from orch.planning.cards import Gpu
from orch.planning.sizes import GIB, format_size
from tests.process.harness import Instance, Place, eventually

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
EMBEDDER = f"{ROOT}/examples/embedder.py:Embedder"
SENTENCES = (ROOT / "examples" / "sentences.txt").read_text().splitlines()
WEIGHTS = os.environ.get("ORCH_TEST_WEIGHTS")
SET_WEIGHTS = [f"--set=weights={WEIGHTS}"] if WEIGHTS else []


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Directories of their own, and nothing left in them."""
    place = Place()
    yield place
    place.clean()


@pytest.fixture(scope="module")
def four(place: Place) -> Instance:
    """Four replicas of the embedder on the GPU."""
    instance = place.up(EMBEDDER, "--replicas=4", "--device=cuda", *SET_WEIGHTS, wait=False)
    serving(instance, within=180)
    return instance


def serving(instance: Instance, within: float) -> None:
    """Wait until every replica has loaded; torch and CUDA take their time."""

    def ready() -> bool:
        assert instance.process.poll() is None, instance.output()
        return instance.status().get("state") == "READY"

    eventually(ready, within=within)


def the_gpu() -> Gpu:
    """The card, read now."""
    found = gpu.read_gpus()
    assert found
    return found[0]


def say(**facts: object) -> None:
    """A line for docs/measurements.md."""
    sys.stdout.write(f"MEASURED {json.dumps(facts, default=str)}\n")  # seen with pytest -s


def test_each_of_four_replicas_has_a_context_of_its_own(four: Instance) -> None:
    """NVML lists four processes, and their pids are the workers'."""
    card = the_gpu()
    replicas = four.call("status")["replicas"]
    listed = {process.pid: process.used_bytes for process in card.processes}
    say(what="four replicas", card=card.name, total=card.total_bytes, listed=listed, replicas=replicas)
    assert {each["pid"] for each in replicas} <= set(listed)
    assert len(replicas) == 4
    assert all((each["device"], each["gpu"]) == ("cuda:0", card.uuid) for each in replicas)


def test_the_status_shows_what_was_measured(four: Instance) -> None:
    """The footprint is what NVML counts for the process: more than the weights and a context, far less than 7 GiB."""
    for each in four.call("status")["replicas"]:
        assert 300 * 2**20 < each["footprint_bytes"] < 7 * GIB
        assert each["measured"] == "what the driver counts for the process"


def test_answers_agree_with_the_cpu(four: Instance, place: Place) -> None:
    """The same 300 sentences on the GPU and on the CPU differ by at most 2e-3."""
    with four.client() as client:
        started = time.monotonic()
        on_gpu = np.stack(list(client.map(SENTENCES, concurrency=256)))
        took_s = time.monotonic() - started
    cpu = place.up(EMBEDDER, "--replicas=1", "--device=cpu", *SET_WEIGHTS, name="cpu", wait=False)
    serving(cpu, within=120)
    with cpu.client() as client:
        on_cpu = np.stack(list(client.map(SENTENCES, concurrency=64)))
    cpu.stop()
    difference = float(np.abs(on_gpu - on_cpu).max())
    say(what="GPU against CPU", max_abs_difference=difference, sentences=len(SENTENCES), seconds=took_s)
    assert difference <= 2e-3


def test_a_killed_replica_frees_its_memory_and_comes_back(four: Instance) -> None:
    """Under load: no answer is lost, the context's memory is given back, and a new worker loads."""
    victim = four.call("status")["replicas"][1]
    before = the_gpu()
    with four.client() as client:
        futures = [client.submit(sentence) for sentence in SENTENCES * 5]
        started = time.monotonic()
        os.kill(victim["pid"], signal.SIGKILL)
        eventually(lambda: victim["pid"] not in {each.pid for each in the_gpu().processes}, within=30)
        freed_s = time.monotonic() - started
        eventually(lambda: four.pid_of(victim["id"]) not in (None, victim["pid"]), within=30)
        eventually(lambda: victim["id"] in four.ready(), within=120)
        ready_s = time.monotonic() - started
        answers = [future.result(60) for future in futures]
    after = the_gpu()
    say(
        what="one of four killed",
        answers=len(answers),
        freed_s=freed_s,
        ready_again_s=ready_s,
        used_before=before.used_bytes,
        used_after=after.used_bytes,
        queue=four.call("status")["queue"],
    )
    assert len(answers) == 5 * len(SENTENCES)
    assert four.replicas()[victim["id"]]["restarts"] == victim["restarts"] + 1
    assert abs(after.used_bytes - before.used_bytes) < GIB


def test_nothing_stays_on_the_card_when_it_stops(four: Instance) -> None:
    """SIGTERM: exit code 0, and no process of ours on the GPU."""
    pids = {each["pid"] for each in four.call("status")["replicas"]}
    assert four.stop() == 0
    eventually(lambda: not pids & {each.pid for each in the_gpu().processes}, within=10)


def test_a_declared_footprint_is_planned_by_the_formula(place: Place) -> None:
    """7 GiB each: what part 7 of the architecture says, and the plan names the limit that binds."""
    card = the_gpu()
    assert card.total_bytes is not None
    room = min(card.total_bytes * 0.92, card.total_bytes - card.reserved_bytes - card.used_bytes - 256 * 2**20)
    expected = int(room // (7 * GIB))
    finished = place.orch("plan", "--vram-per-replica", "7GiB", "--replicas", "auto", "--json")
    plan = json.loads(finished.out)
    text = place.orch("plan", "--vram-per-replica", "7GiB").out
    say(what="7 GiB each", total=plan["total"], limit=plan["limit"], because=plan["because"], text=text)
    assert finished.code == 0
    assert (plan["total"], plan["limit"]) == (expected, "memory")
    if card.total_bytes // 2**20 == 143771:
        assert expected == 18


def test_auto_starts_as_many_as_it_plans(place: Place) -> None:
    """`--replicas auto` with a declared 30 GiB: as many workers become READY as the sum allows (4 on an H200)."""
    instance = place.up(
        EMBEDDER, "--replicas=auto", "--vram-per-replica=30GiB", "--device=cuda", *SET_WEIGHTS, name="auto", wait=False
    )
    serving(instance, within=180)
    status = instance.call("status")
    say(what="auto at 30 GiB", plan=status["plan"], ready=len(status["replicas"]), output=instance.output()[-2000:])
    assert len(status["replicas"]) == status["plan"]["total"] >= 1
    assert instance.stop() == 0


def test_no_more_than_fits_is_started(place: Place) -> None:
    """Asking for 19 replicas of 7 GiB ends with the sum and the exit code of DOES_NOT_FIT."""
    card = the_gpu()
    asked = int((card.total_bytes or 0) * 0.92 // (7 * GIB)) + 1
    finished = place.orch("up", EMBEDDER, "--vram-per-replica=7GiB", f"--replicas={asked}", "--device=cuda")
    say(what="too many", code=finished.code, line=finished.err.splitlines()[-1], free=format_size(card.free_bytes))
    assert finished.code == 6
