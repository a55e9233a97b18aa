"""The workers' side of the balancer, told by its supervisor who is to come and how fast each is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orch import channel, page, wire
from orch.wire import Flag, Kind, Record, repacked
from orch_balancer.admission import Limits
from orch_balancer.back import Back, Expected
from orch_balancer.entry import Place
from orch_balancer.local import Listener
from orch_balancer.outlet import Outlet
from orch_balancer.peers import Watch
from orch_balancer.router import Router
from orch_balancer.verdict import Cause
from tests.unit.ledger import check

WAIT_S = 5.0


class Hub:
    """The workers' side with its real socket; this process is the worker."""

    def __init__(self, folder: Path) -> None:
        self.router = Router(["m"], Limits(10, 1 << 20, 10, 3), epoch=7)
        self.watch = Watch()
        self.pages_fd = page.create()
        self.back = Back(
            self.router,
            self.watch,
            self.pages_fd,
            {},
            to_clients=Outlet(),
            opened=lambda _expected: None,
            gave_up=lambda _worker: None,
        )
        self.path = f"{folder}/b"
        self.listener = Listener(self.path, 1 << 20, self.watch, self.back)
        self.worker = channel.connect(self.path)

    def expects(self, weight: float, *, accepting: bool = True) -> None:
        """The supervisor's word on the one worker there is."""
        self.back.expect([Expected("r0", 1, os.getpid(), 0, accepting=accepting, weight=weight)])

    def opens(self) -> None:
        """The worker says READY."""
        ready = wire.write_map(replica="r0", generation=1, model="m", max_batch_size=4, kept=[])
        self.worker.send([wire.pack_head([Record(Kind.READY, body=ready)])])
        for _ in range(2):  # it is let in, and read
            self.watch.wait(WAIT_S)

    def weight(self) -> float:
        """As the router has it."""
        return self.router.pools[0].workers["r0"].weight

    def close(self) -> None:
        self.worker.close()
        self.watch.wait(0)
        self.listener.close()
        os.close(self.pages_fd)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """One for each test."""
    found = Hub(tmp_path)
    yield found
    found.close()


def test_a_worker_opens_with_the_weight_that_its_supervisor_gave_it(hub: Hub) -> None:
    """It is ranked by it from its first request on."""
    hub.expects(0.5)
    hub.opens()
    assert hub.weight() == 0.5
    assert hub.router.pools[0].idle == {"r0": 0.5}


def test_a_later_snapshot_changes_the_weight_of_a_worker_that_is_open(hub: Hub) -> None:
    """Also in the one that drains it."""
    hub.expects(1.0)
    hub.opens()
    hub.expects(0.5)
    assert hub.weight() == 0.5
    assert hub.router.pools[0].idle == {"r0": 0.5}
    hub.expects(0.25, accepting=False)
    assert hub.weight() == 0.25
    assert hub.router.pools[0].idle == {}
    check(hub.router)


def test_a_worker_whose_connection_ends_is_given_nothing_more(hub: Hub) -> None:
    """It is dying, or comes back on another: then it is open again."""
    hub.expects(1.0)
    hub.opens()
    hub.worker.close()
    hub.watch.wait(WAIT_S)
    assert not hub.router.pools[0].workers["r0"].accepting
    assert hub.back.next_deadline() is not None
    hub.worker = channel.connect(hub.path)
    hub.opens()
    assert hub.router.pools[0].workers["r0"].accepting
    assert hub.back.next_deadline() is None
    check(hub.router)


def test_what_a_worker_answered_before_its_death_counts(hub: Hub) -> None:
    """Also where the supervisor says that it is dead before the socket was read."""
    hub.expects(1.0)
    hub.opens()
    session = hub.router.hello(b"c" * 16, None)
    asked = [repacked(Record(Kind.REQUEST, request_id=number, body=b"x")) for number in (1, 2)]
    assert hub.router.admit(session, asked, 0.0) == []
    (assignment,) = hub.router.dispatch(0.0)
    answered, unanswered = assignment.entries
    hub.worker.send([wire.pack_head([Record(Kind.RESULT, ticket=answered.ticket)])])
    hub.worker.close()
    hub.back.lost("r0", 1, Cause("died", counts=False), (unanswered.ticket,))
    assert list(session.entries.values()) == [unanswered]
    assert unanswered.place is Place.QUEUED
    check(hub.router)


def test_a_snapshot_without_weights_is_of_equals() -> None:
    """What a supervisor says that knows of no difference."""
    message: dict[str, Any] = {"replica": "r0", "generation": 1, "pid": 7, "slot": 0, "accepting": True}
    assert Expected(**message).weight == 1.0


def test_each_ticket_of_a_bundle_that_nobody_waits_for_is_flagged(hub: Hub) -> None:
    """The worker looks up tickets, and knows of no lines."""
    hub.expects(1.0)
    hub.opens()
    session = hub.router.hello(b"c" * 16, None)
    bundle = Record(Kind.REQUEST, Flag.BUNDLE, request_id=1, rows=3, frames=(b"x", b"y", b"z"))
    ((head,),) = wire.messages([bundle])
    hub.router.admit(session, wire.receive(head), 0.0)
    (assignment,) = hub.router.dispatch(0.0)
    tickets = list(assignment.entries[0].tickets)
    seen = page.StatusPage(hub.pages_fd, 0)
    one = hub.router.cancel(session, 2)
    assert one is not None
    hub.back.flag([one])
    assert seen.newly_cancelled() == [tickets[1]]
    hub.back.flag(hub.router.leave(session))
    assert set(seen.newly_cancelled()) >= {tickets[0], tickets[2]}
    seen.close()
