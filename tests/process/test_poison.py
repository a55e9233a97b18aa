"""Requests that kill workers: convicted, alone, and nobody else pays for it."""

from __future__ import annotations

import pytest

from orch.errors import Poisoned
from tests.process.harness import Place, eventually

PATIENCE_S = 20


@pytest.mark.parametrize("order", ["os._exit", "abort", "kill"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_killer_is_poisoned_and_its_neighbours_succeed(place: Place, order: str, replicas: int) -> None:
    """63 requests beside one that kills its worker, by whatever means: 63 answers and one Poisoned."""
    instance = place.up("naughty.py:Obedient", replicas=replicas)
    client = instance.client()
    futures = [client.submit([order] if i == 20 else ["n", i]) for i in range(64)]
    for i, future in enumerate(futures):
        if i == 20:
            with pytest.raises(Poisoned, match="alone"):
                future.result(timeout=PATIENCE_S)
        else:
            assert future.result(timeout=PATIENCE_S) == ["n", i]
    queue = instance.queue()
    assert (queue["poisoned"], queue["lost"]) == (1, 0)
    deaths = sum(each["restarts"] for each in instance.replicas().values())
    # SIGKILL may be anybody's: it convicts only at the last attempt.
    assert deaths == (3 if order == "kill" else 2)
    instance.await_ready(replicas)
    assert client.request("hello", timeout=5) == "hello"


def test_several_killers_do_not_stop_the_service(place: Place) -> None:
    """Each is convicted for itself; the innocent are all answered."""
    instance = place.up("naughty.py:Obedient", replicas=2)
    client = instance.client()
    futures = [client.submit(["os._exit"] if i % 30 == 10 else ["n", i]) for i in range(90)]
    for i, future in enumerate(futures):
        if i % 30 == 10:
            with pytest.raises(Poisoned):
                future.result(timeout=40)
        else:
            assert future.result(timeout=40) == ["n", i]


def test_a_restart_that_was_ordered_convicts_nobody(place: Place) -> None:
    """Requests that are with a worker when orch itself kills it run again, as often as that happens."""
    instance = place.up("plain.py:Sleeper", "--drain-timeout=0.1", replicas=2)
    client = instance.client()
    futures = [client.submit(0.3) for _ in range(12)]
    for _ in range(2):
        place.orch("restart")
        eventually(lambda: not instance.status().get("restarting"), within=1)
    assert [future.result(timeout=PATIENCE_S) for future in futures] == [0.3] * 12
    assert instance.queue()["poisoned"] == 0
