"""CUDA MPS under orch on a real GPU: what it gains, and what becomes of requests when parts of it die."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest

from orch.errors import ModelError, Poisoned, RequestError
from orch.planning import gpu
from tests.process.harness import Instance, Place, eventually

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

MODEL = str(Path(__file__).parent / "models" / "cuda.py") + ":Decoder"


@pytest.fixture
def place() -> Iterator[Place]:
    """Directories of their own, and nothing left in them."""
    place = Place()
    yield place
    place.clean()


def up(place: Place, mps: str, replicas: int, *options: str) -> Instance:
    """An instance that serves the decoder."""
    instance = place.up(MODEL, f"--mps={mps}", f"--replicas={replicas}", "--device=cuda", *options, wait=False)
    settled(instance, replicas)
    return instance


def settled(instance: Instance, replicas: int, within: float = 120) -> None:
    """All replicas READY, each behind its fence, and none on its way."""

    def ready() -> bool:
        assert instance.process.poll() is None, instance.output()
        status = instance.status()
        return status.get("state") == "READY" and len(instance.ready()) == replicas

    eventually(ready, within=within)
    if instance.status()["mps"]["state"] == "on" and replicas > 1:
        eventually(lambda: all(row["fence_bytes"] for row in instance.replicas().values()) and ready(), within=within)


def say(**facts: object) -> None:
    """A line for docs/measurements.md."""
    sys.stdout.write(f"MEASURED {json.dumps(facts, default=str)}\n")


def rate(instance: Instance, seconds: float, outstanding: int) -> float:
    """Answers per second, closed loop."""
    client = instance.client()
    count, end, lock = 0, time.monotonic() + seconds, threading.Semaphore(0)

    def send() -> None:
        client.submit({"n": 1}).add_done_callback(answered)

    def answered(future: Future[Any]) -> None:
        nonlocal count
        future.result()
        count += 1
        if time.monotonic() < end:
            send()
        else:
            lock.release()

    began = time.monotonic()
    for _ in range(outstanding):
        send()
    for _ in range(outstanding):
        lock.acquire(timeout=60)
    return count / (time.monotonic() - began)


@pytest.mark.parametrize("mps", ["off", "on"])
def test_replicas_of_a_lone_decoder_gain(place: Place, mps: str) -> None:
    """Under MPS four replicas answer at least 1.6 times as much as one; in turns they do not."""
    rates = {}
    for replicas in (1, 2, 4):
        instance = up(place, mps, replicas, "--set=pause=0.004")
        rate(instance, 1.0, 2 * replicas)
        rates[replicas] = round(rate(instance, 3.0, 2 * replicas), 1)
        status = instance.status()
        say(what="status", mps=status["mps"], footprints=[each["footprint_bytes"] for each in status["replicas"]])
        instance.leave()
        place.instances.remove(instance)
    say(what="lone decoder, answers/s by replicas", mps=mps, rates=rates)
    if mps == "on":
        assert rates[4] > 1.6 * rates[1]


def numbered(client: Any, count: int) -> list[Future[Any]]:
    """Requests with numbers, to be told apart."""
    return [client.submit({"n": n}) for n in range(count)]


def all_answered(futures: list[Future[Any]]) -> bool:
    """Every one, with its own number."""
    return [future.result(120)[1] for future in futures] == list(range(len(futures)))


def under_way(futures: list[Future[Any]]) -> None:
    """Wait until some are answered, and most are not."""
    eventually(lambda: sum(future.done() for future in futures) > 200, within=60)


def test_no_request_is_lost_whatever_dies(place: Place) -> None:
    """SIGKILL of a busy worker, of the MPS server, of the daemon: under load, all answered, four READY again."""
    instance = up(place, "on", 4)
    client = instance.client()

    def victims() -> dict[str, int]:
        mine = {each: psutil.Process(each).name() for each in place.processes()}
        server = [pid for pid, name in mine.items() if name.startswith("nvidia-cuda-mps-s")]
        daemon = [pid for pid, name in mine.items() if name.startswith("nvidia-cuda-mps-c")]
        assert server, mine
        assert daemon, mine
        return {"worker": instance.pid_of("r1") or 0, "MPS server": server[0], "MPS daemon": daemon[0]}

    for who in ("worker", "MPS server", "MPS daemon"):
        pid = victims()[who]
        futures = numbered(client, 4000)
        under_way(futures)
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(instance.ready()) < 4, within=30)
        eventually(lambda: len(instance.ready()) == 4, within=120)
        back_s = time.monotonic() - began
        assert all_answered(futures)
        say(what=f"SIGKILL of the {who}", ready_again_s=round(back_s, 2), queue=instance.queue())
    assert instance.queue()["lost"] == 0


@pytest.mark.parametrize("harm", ["assert", "illegal"])
def test_a_fault_of_one_replica_costs_no_other_request(place: Place, harm: str) -> None:
    """The offender ends in an error of its own; everything else is answered, and four replicas are back."""
    instance = up(place, "on", 4)
    client = instance.client()
    before = numbered(client, 2000)
    offender = client.submit({"n": -1, "do": harm})
    after = numbered(client, 2000)
    began = time.monotonic()

    with pytest.raises(RequestError) as caught:
        offender.result(200)
    ended_s = time.monotonic() - began
    assert all_answered(before)
    assert all_answered(after)
    eventually(lambda: len(instance.ready()) == 4, within=120)
    say(
        what=f"fault: {harm}",
        offender=f"{type(caught.value).__name__}: {caught.value}",
        offender_ended_s=round(ended_s, 2),
        all_back_s=round(time.monotonic() - began, 2),
        restarts={name: each["restarts"] for name, each in instance.replicas().items()},
        queue=instance.queue(),
    )
    assert isinstance(caught.value, (Poisoned, ModelError))


def test_a_leaking_replica_meets_its_own_fence(place: Place) -> None:
    """It gets an out-of-memory of its own, far below the card's memory; its neighbours answer throughout."""
    instance = up(place, "on", 4)
    client = instance.client()
    leak = client.submit({"n": -1, "do": "leak"})
    neighbours = numbered(client, 2000)

    with pytest.raises(ModelError) as caught:
        leak.result(120)
    assert all_answered(neighbours)
    card = gpu.read_gpus()[0]
    say(what="leak", error=str(caught.value)[:200], used=card.used_bytes, total=card.total_bytes)
    assert card.used_bytes < 40 * 2**30


def test_nothing_stays_when_the_supervisor_is_killed(place: Place) -> None:
    """No process, no MPS daemon, no device memory after 10 s."""
    before = gpu.read_gpus()[0].used_bytes
    instance = up(place, "on", 3)
    began = time.monotonic()
    os.kill(instance.process.pid, signal.SIGKILL)
    instance.process.wait()
    eventually(lambda: not place.processes(), within=10)
    eventually(lambda: gpu.read_gpus()[0].used_bytes < before + 64 * 2**20, within=10)
    say(what="SIGKILL of the supervisor under MPS", all_gone_s=round(time.monotonic() - began, 2))
