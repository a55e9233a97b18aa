"""`orch up MODEL --replicas best`: as many replicas as pay, found by measuring."""

from __future__ import annotations

import os
import signal

import pytest

from orch.errors import Exit
from tests.process.harness import Instance, Place, eventually

# Two or three measurements, each of 4.5 s on a quiet machine and of 30 s on one that never settles.
SEARCH_S = 120.0
pytestmark = pytest.mark.timeout(180)


def best(place: Place, apart: float, model: str = "Apart") -> Instance:
    """Batches of 50 ms that begin `apart` seconds after each other, whichever replica runs them."""
    clock = f"--set=clock={place.base}/clock"
    return place.up(f"paying.py:{model}", clock, f"--set=apart={apart}", "--replicas=best", "--device=cpu", wait=False)


def await_found(instance: Instance) -> None:
    """Until the count is decided, and everything is at rest."""

    def found() -> bool:
        assert instance.process.poll() is None, instance.output()
        return bool(instance.status().get("settled"))

    eventually(found, within=SEARCH_S)


def test_a_replica_that_pays_is_kept(place: Place) -> None:
    """One begins a batch every 50 ms, two every 30: a second one pays, and a third would not."""
    instance = best(place, 0.03)
    await_found(instance)
    assert len(instance.ready()) == 2, instance.output()
    assert "2 replicas kept" in instance.output()
    assert instance.client().request("still here") == "still here"


def test_a_replica_that_does_not_pay_goes_again(place: Place) -> None:
    """One already begins a batch whenever that is allowed."""
    instance = best(place, 0.07)
    await_found(instance)
    assert instance.ready() == ["r0"], instance.output()
    assert "1 replica kept" in instance.output()
    assert instance.client().request("still here") == "still here"


def test_a_model_without_samples_is_refused(place: Place) -> None:
    """There is nothing to make a load of; the line says what to do instead."""
    instance = place.up("plain.py:Echo", "--replicas=best", "--device=cpu", wait=False)
    assert instance.wait() == Exit.BAD_CONFIG
    last = instance.output().strip().splitlines()[-1]
    assert last.startswith("orch: Echo's warmup() returns no samples"), instance.output()
    assert "--replicas auto" in last


def test_a_replica_that_cannot_be_had_ends_the_search(place: Place) -> None:
    """The second one fails to load, again and again: the first serves on, and is what is kept."""
    instance = best(place, 0.03, "Alone")
    await_found(instance)
    assert instance.ready() == ["r0"], instance.output()
    assert "1 replica kept" in instance.output()
    assert instance.client().request("still here") == "still here"


def test_a_measurement_is_made_anew_after_a_death(place: Place) -> None:
    """Replica 0 is killed under the load: what was measured is void, and the count is still found."""
    instance = best(place, 0.07)
    eventually(lambda: instance.queue().get("outstanding"), within=30.0)
    instance.kill("r0")
    instance.await_output("a measurement is void", within=30.0)
    await_found(instance)
    assert len(instance.ready()) == 1, instance.output()


def test_an_instance_that_stops_amid_a_measurement_leaves_nothing(place: Place) -> None:
    """The load is not waited for."""
    instance = best(place, 0.07)
    eventually(lambda: instance.queue().get("outstanding"), within=30.0)
    assert instance.stop(signal.SIGTERM) == Exit.OK


def test_a_supervisor_that_is_killed_takes_the_load_along(place: Place) -> None:
    """As everything else of the instance."""
    instance = best(place, 0.07)
    eventually(lambda: instance.queue().get("outstanding"), within=30.0)
    os.kill(instance.process.pid, signal.SIGKILL)
    instance.wait()
    eventually(lambda: not place.processes(), within=10.0)
