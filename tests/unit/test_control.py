"""The control socket's own end: who never reads is hung up on, and a new caller is served."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.link import MAX_LINE_BYTES, Message
from orch.supervising.control import Caller, Server
from orch.supervising.reactor import Reactor

TURN_S = 0.0


class Echo:
    """A server that answers what it is asked, and remembers who asked."""

    def __init__(self, path: Path, reactor: Reactor) -> None:
        self.callers: list[Caller] = []
        self.path, self._reactor = path, reactor
        self.server = Server(path, reactor, self._handle)

    def _handle(self, caller: Caller, call: str, arguments: Message) -> None:
        self.callers.append(caller)
        caller.answer(call=call)

    def greet(self, connection: socket.socket) -> None:
        """Connect, and have a first call answered."""
        connection.connect(str(self.path))
        connection.sendall(b'{"call": "hello"}\n')
        self.turn()
        self.turn()
        assert json.loads(connection.recv(4096)) == {"ok": {"call": "hello"}}

    def turn(self) -> None:
        """One turn of the supervisor's loop."""
        self._reactor.wait(TURN_S)
        self.server.flush()


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Echo]:
    """One in a directory of its own."""
    with Reactor() as reactor:
        found = Echo(tmp_path / "c", reactor)
        yield found
        found.server.close()


def test_a_watcher_that_never_reads_is_hung_up_on(echo: Echo) -> None:
    """What waits for it is bounded; its descriptor is free for the next caller, who is served."""
    # Both ends are in this process: with the second caller's there already, its other end gets the first's number.
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        echo.greet(first)
        (watcher,) = echo.callers
        for _ in range(3):
            watcher.tell("servers", padding="x" * (MAX_LINE_BYTES // 2))
        assert watcher.closed
        echo.turn()
        echo.greet(second)
    echo.turn()
    assert [each.closed for each in echo.callers] == [True, True]
