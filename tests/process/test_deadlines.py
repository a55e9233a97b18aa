"""Calls with timeouts, many at once: each ends in its time, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from concurrent.futures import wait
from typing import Any

import pytest

from orch import AsyncClient, Client
from orch.errors import DeadlineExceeded
from tests.process.harness import FACTOR, Instance, Place, a_free_port, eventually, moment

RUN, NUM_RUNS = 40, 8
TOO_SHORT_S, SLOW_S, PLENTY_S = 0.2 * FACTOR, 1.0 * FACTOR, 30.0


@pytest.fixture(scope="module")
def endpoints(shared_place: Place) -> tuple[Instance, dict[str, str]]:
    """One replica of eight inputs a batch, and where to reach it."""
    tcp = f"tcp://127.0.0.1:{a_free_port()}"
    instance = shared_place.up("naughty.py:Obedient", f"--listen={tcp}", replicas=1)
    return instance, {"unix": instance.endpoint, "tcp": tcp}


def keep_busy(instance: Instance, client: Client) -> Any:
    """A batch that takes long, where those before it were short: the worker is given the next one ahead."""
    assert list(client.map(range(400))) == list(range(400))
    slow = client.submit(["sleep", SLOW_S])
    eventually(lambda: instance.queue()["outstanding"] == 1)
    return slow


def is_at_rest(instance: Instance) -> bool:
    """Whether the balancer holds nothing."""
    queue = instance.queue()
    return queue["queued"] == queue["outstanding"] == queue["bytes"] == 0


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_of_many_calls_those_whose_time_is_too_short_end_in_it_and_the_others_are_answered(
    endpoints: tuple[Instance, dict[str, str]], scheme: str
) -> None:
    """Whatever travels together; what is late never runs, in the queue or at the worker."""
    instance, addresses = endpoints
    before = instance.queue()
    with Client(addresses[scheme]) as client:
        slow = keep_busy(instance, client)
        began = moment()
        runs = []
        for number in range(NUM_RUNS):
            is_late = number % 2 == 0
            what, timeout = (f"{scheme} late", TOO_SHORT_S) if is_late else (f"{scheme} early", PLENTY_S)
            runs.append((is_late, [client.submit(["print", f"{what} {i}"], timeout=timeout) for i in range(RUN)]))
        untimed = [client.submit(i) for i in range(RUN)]
        late = [future for is_late, run in runs if is_late for future in run]
        assert not wait(late, timeout=10).not_done
        assert moment() - began < SLOW_S, "they have waited for the batch that runs"
        assert not slow.done()
        assert [type(future.exception()) for future in late] == [DeadlineExceeded] * len(late)
        for is_late, run in runs:
            if not is_late:
                assert [future.result(timeout=10) for future in run] == [
                    ["print", f"{scheme} early {i}"] for i in range(RUN)
                ]
        assert [future.result(timeout=10) for future in untimed] == list(range(RUN))
        assert slow.result(timeout=10) == ["sleep", SLOW_S]
        eventually(lambda: is_at_rest(instance))
        instance.await_log(f"{scheme} early {RUN - 1}", "r0")
        assert f"{scheme} late" not in instance.log("r0")
        after = instance.queue()
        ended = {name: after[name] - before[name] for name in ("answered", "failed", "lost", "poisoned")}
        assert (ended["failed"], ended["lost"], ended["poisoned"]) == (0, 0, 0), ended
        assert ended["answered"] == 400 + 1 + NUM_RUNS // 2 * RUN + RUN


def test_a_coroutine_ends_in_its_time_too(endpoints: tuple[Instance, dict[str, str]]) -> None:
    """Driven by the loop itself."""
    instance, addresses = endpoints

    async def use() -> list[Any]:
        async with AsyncClient(addresses["unix"]) as client:
            calls = [
                client.request(["n", i], timeout=TOO_SHORT_S if i // RUN % 2 else PLENTY_S) for i in range(4 * RUN)
            ]
            return await asyncio.gather(*calls, return_exceptions=True)

    with Client(addresses["unix"]) as client:
        slow = keep_busy(instance, client)
        outcomes = asyncio.run(use())
        assert slow.result(timeout=10) == ["sleep", SLOW_S]
    for i, outcome in enumerate(outcomes):
        assert isinstance(outcome, DeadlineExceeded) if i // RUN % 2 else outcome == ["n", i]
    eventually(lambda: is_at_rest(instance))
