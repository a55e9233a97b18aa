"""A balancer that does not read: what has a deadline ends, what has none waits, and nothing is lost or sent twice."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from orch.errors import DeadlineExceeded
from tests.process.harness import FACTOR, Place, elapse, eventually, moment

KIB, NUM = 1024, 1500


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "is killed"])
def test_calls_behind_a_full_pipe_end_in_their_time_or_are_answered(place: Place, goes_on: bool) -> None:
    """Two threads ask at once, and a balancer stands still with more on its way than the kernel keeps."""
    instance = place.up("plain.py:Echo")
    client = instance.client()
    assert client.request("hello", timeout=5) == "hello"
    pid = instance.pid_of("balancer")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        inputs = [f"{i} {'x' * 16 * KIB}" for i in range(NUM)]
        patient = [client.submit(each) for each in inputs]
        late = [client.submit(each, timeout=0.3) for each in inputs[:300]]
        errors: list[BaseException] = []

        def ask() -> None:
            try:
                client.request("hello", timeout=0.3)
            except DeadlineExceeded as err:
                errors.append(err)

        began = moment()
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert [type(future.exception(timeout=5)) for future in late] == [DeadlineExceeded] * len(late)
        assert moment() - began < 1.5 * FACTOR
        assert len(errors) == 2
        spent_s = time.process_time()
        elapse(0.4)
        assert time.process_time() - spent_s < 0.2, "it spins"
        assert all(future.cancel() for future in patient[::3])
    finally:
        os.kill(pid, signal.SIGCONT if goes_on else signal.SIGKILL)
    for i, future in enumerate(patient):
        assert future.cancelled() if i % 3 == 0 else future.result(timeout=20) == inputs[i]
    eventually(lambda: instance.queue().get("bytes") == 0)
    assert instance.queue()["queued"] == instance.queue()["outstanding"] == 0
    assert client.request("hello", timeout=5) == "hello"
