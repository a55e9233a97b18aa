"""What clients say, brought into the balancer's terms."""

from __future__ import annotations

import time

import pytest

from orch.wire import Flag, Kind, Record, repacked
from orch_balancer.front import on_our_clock


@pytest.mark.parametrize("budget_ns", [1, 5_000_000_000, 2**63 - 1, -1, -(2**63)])
def test_a_budget_becomes_a_deadline_that_can_be_packed(budget_ns: int) -> None:
    """Whatever remains, or does not, the worker's copy of the request has a deadline within the header's range."""
    before = time.monotonic_ns()
    request = on_our_clock(repacked(Record(Kind.REQUEST, flags=Flag.BUDGET | Flag.NO_RETRY, deadline_ns=budget_ns)))

    assert 1 <= request.deadline_ns <= 2**63 - 1
    assert request.deadline_ns >= min(before + budget_ns, 2**63 - 1)
    assert request.flags == Flag.NO_RETRY


def test_no_budget_is_no_deadline() -> None:
    """0 means the same on every clock."""
    assert on_our_clock(repacked(Record(Kind.REQUEST, flags=Flag.BUDGET))).deadline_ns == 0
