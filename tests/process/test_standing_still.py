"""Workers that live, and do nothing."""

from __future__ import annotations

import os
import signal

from tests.process.harness import Place


def test_a_worker_that_stands_still_between_batches_is_replaced(place: Place) -> None:
    """What it was given is run by others, although no batch of it ever began."""
    instance = place.up("plain.py:Steady", "--timeout=0.5", "--replicas=2")
    client = instance.client()
    stopped = instance.pid_of("r0")
    assert stopped is not None

    os.kill(stopped, signal.SIGSTOP)
    futures = [client.submit(["a", number]) for number in range(8)]

    assert [future.result(timeout=10) for future in futures] == [["answer", "a", number] for number in range(8)]
