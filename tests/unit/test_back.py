"""The workers' side of the balancer, told by its supervisor who is to come and how fast each is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from orch import page, wire
from orch.wire import Kind, Record
from orch_balancer.back import Back, Expected
from orch_balancer.peers import Watch
from orch_balancer.router import Limits, Router

WAIT_MS = 5_000


class Hub:
    """The workers' side with its real socket; this process is the worker."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.endpoint = f"ipc://{folder}/b"
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.bind(self.endpoint)
        self.worker = self.context.socket(zmq.DEALER)
        self.router = Router(["m"], Limits(10, 1 << 20, 10, 3), epoch=7)
        self.watch = Watch()
        self.pages_fd = page.create()
        self.back = Back(
            self.socket,
            self.router,
            self.watch,
            self.pages_fd,
            {},
            answer=lambda _route, _record: None,
            opened=lambda _expected: None,
            gave_up=lambda _worker: None,
        )

    def expects(self, weight: float, *, accepting: bool = True) -> None:
        """The supervisor's word on the one worker there is."""
        self.back.expect([Expected("r0", 1, os.getpid(), 0, accepting=accepting, weight=weight)])

    def opens(self) -> None:
        """The worker says READY."""
        ready = wire.write_map(replica="r0", generation=1, model="m", max_batch_size=4, kept=[])
        self.worker.connect(self.endpoint)
        self.worker.send(wire.pack_head([Record(Kind.READY, body=ready)]))
        assert self.socket.poll(WAIT_MS)
        self.back.read()

    def weight(self) -> float:
        """As the router has it."""
        return self.router.pools[0].workers["r0"].weight

    def close(self) -> None:
        self.context.destroy(linger=0)
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
    hub.router.check_invariants()


def test_a_snapshot_without_weights_is_of_equals() -> None:
    """What a supervisor says that knows of no difference."""
    message: dict[str, Any] = {"replica": "r0", "generation": 1, "pid": 7, "slot": 0, "accepting": True}
    assert Expected(**message).weight == 1.0
