"""What clients say, brought into the balancer's terms."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from orch.wire import Flag, Kind, Record
from orch_balancer.front import on_our_clock
from orch_balancer.peers import Watch


@pytest.mark.parametrize("budget_ns", [1, 5_000_000_000, 2**63 - 1, -1, -(2**63)])
def test_a_budget_becomes_a_deadline_that_can_be_packed(budget_ns: int) -> None:
    """Whatever remains, or does not, the worker's copy of the request has a deadline within the header's range."""
    before = time.monotonic_ns()
    request = on_our_clock(Record(Kind.REQUEST, flags=Flag.BUDGET | Flag.NO_RETRY, deadline_ns=budget_ns))

    assert 1 <= request.deadline_ns <= 2**63 - 1
    assert request.deadline_ns >= min(before + budget_ns, 2**63 - 1)
    assert request.flags == Flag.NO_RETRY


def test_no_budget_is_no_deadline() -> None:
    """0 means the same on every clock."""
    assert on_our_clock(Record(Kind.REQUEST, flags=Flag.BUDGET)).deadline_ns == 0


def test_all_who_watch_a_process_hear_of_its_end() -> None:
    """A worker's process may be a client too; and who has forgotten it hears nothing."""
    watch = Watch()
    heard: list[str] = []

    def as_worker(_pid: int) -> None:
        heard.append("worker")

    def as_client(_pid: int) -> None:
        heard.append("client")

    def as_other(_pid: int) -> None:
        heard.append("other")

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        for on_death in (as_worker, as_client, as_client, as_other):
            assert watch.watch_process(process.pid, on_death)
        watch.forget_process(process.pid, as_other)
        watch.dispatch()
        assert heard == []
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5.0
        while not heard and time.monotonic() < deadline:
            watch.dispatch()
        assert heard == ["worker", "client"]
        assert not watch.watch_process(process.pid, as_client)
