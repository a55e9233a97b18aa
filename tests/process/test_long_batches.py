"""Batches beside which the rest of the work is done by another thread."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orch import errors
from tests.process.harness import Instance, Place, eventually


def num_threads(instance: Instance) -> int:
    """Of the worker."""
    return len(list(Path(f"/proc/{instance.pid_of('r0')}/task").iterdir()))


def warm(instance: Instance) -> None:
    """Until the worker has learned that its batches take long, and others wait behind them."""
    before = num_threads(instance)
    assert list(instance.client().map([["number", 1]] * 40, concurrency=20)) == [1] * 40
    assert num_threads(instance) == before + 1


@pytest.mark.parametrize("shared", ["0", "64MiB"])
def test_answers_are_right_though_the_model_uses_its_memory_again(place: Place, shared: str) -> None:
    """An output is sent, or copied, before the next batch may overwrite it; and order does not matter."""
    instance = place.up("unhurried.py:Unhurried", "--shared-memory", shared, replicas=1)
    warm(instance)
    client = instance.client()
    wanted = [["array" if i % 2 else "number", i] for i in range(120)]
    for (what, number), answer in zip(wanted, client.map(wanted, concurrency=24), strict=True):
        if what == "number":
            assert answer == number
        else:
            assert answer.min() == answer.max() == number


def test_a_worker_that_is_seldom_busy_has_no_other_thread(place: Place) -> None:
    """What is handed from one to another takes longer than what one does alone."""
    instance = place.up("unhurried.py:Unhurried", replicas=1)
    before = num_threads(instance)
    warm(instance)
    client = instance.client()
    for number in range(20):
        assert client.request(["number", number]) == number
    assert num_threads(instance) == before


def test_one_that_fails_fails_alone(place: Place) -> None:
    """As in short batches."""
    instance = place.up("unhurried.py:Unhurried", replicas=1)
    warm(instance)
    client = instance.client()
    futures = [client.submit(["fail" if i == 5 else "number", i]) for i in range(16)]
    for i, future in enumerate(futures):
        if i == 5:
            with pytest.raises(errors.ModelError, match="5 is not liked"):
                future.result(timeout=10)
        else:
            assert future.result(timeout=10) == i


def test_streams_have_their_turn_among_long_batches(place: Place) -> None:
    """They are run by the model's own thread as well."""
    instance = place.up("unhurried.py:Unhurried", replicas=1)
    warm(instance)
    client = instance.client()
    futures = [client.submit(["number", i]) for i in range(40)]
    assert list(client.stream(["stream", 50])) == list(range(50))
    assert [future.result(timeout=10) for future in futures] == list(range(40))


def test_what_was_accepted_is_answered_before_the_worker_stops(place: Place) -> None:
    """Both the batch that runs and the one that was made ready for it."""
    instance = place.up("unhurried.py:Unhurried", replicas=1)
    warm(instance)
    client = instance.client()
    futures = [client.submit(["number", i]) for i in range(400)]
    eventually(lambda: sum(instance.queue()[each] for each in ("queued", "outstanding", "answered")) >= 403)
    os.kill(instance.process.pid, signal.SIGTERM)
    assert [future.result(timeout=10) for future in futures] == list(range(400))
    assert instance.process.wait(10) == 0


def test_a_new_balancer_finds_the_worker_again(place: Place) -> None:
    """What ran for the old one is void, and runs again."""
    instance = place.up("unhurried.py:Unhurried", replicas=1)
    warm(instance)
    client = instance.client()
    futures = [client.submit(["number", i]) for i in range(60)]
    balancer = instance.pid_of("balancer")
    assert balancer is not None
    os.kill(balancer, signal.SIGKILL)
    assert [future.result(timeout=20) for future in futures] == list(range(60))
    assert instance.status()["replicas"][0]["restarts"] == 0
