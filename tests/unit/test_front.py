"""What clients say, brought into the balancer's terms."""

from __future__ import annotations

import time

import pytest

from orch import wire
from orch.wire import Flag, Kind, Record
from orch_balancer.front import on_our_clock


def as_passed_on(request: Record) -> Record:
    """As a worker will read it; what the balancer itself goes by says the same."""
    ((head,),) = wire.messages([request])
    packed = on_our_clock(wire.receive(head)[0])
    read = wire.decode(packed[9])[0]
    assert packed[:9] == read[:9]
    assert (read.body, read.frames) == (request.body, request.frames)
    return read


@pytest.mark.parametrize("budget_ns", [1, 5_000_000_000, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize(
    ("flags", "rows", "bodies"), [(Flag.NO_RETRY, 3, ()), (Flag.NO_RETRY | Flag.BUNDLE, 2, (b"a", b"bc"))]
)
def test_a_budget_becomes_a_deadline_that_can_be_packed(
    budget_ns: int, flags: int, rows: int, bodies: tuple[bytes, ...]
) -> None:
    """Whatever remains, or does not, the worker's copy of the request has a deadline within the header's range."""
    before = time.monotonic_ns()
    request = as_passed_on(
        Record(Kind.REQUEST, flags=flags | Flag.BUDGET, deadline_ns=budget_ns, rows=rows, frames=bodies)
    )

    assert 1 <= request.deadline_ns <= 2**63 - 1
    assert request.deadline_ns >= min(before + budget_ns, 2**63 - 1)
    assert request.flags == flags


def test_no_budget_is_no_deadline() -> None:
    """0 means the same on every clock."""
    assert as_passed_on(Record(Kind.REQUEST, flags=Flag.BUDGET)).deadline_ns == 0
