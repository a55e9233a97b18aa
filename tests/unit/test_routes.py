"""The balancer's connections, real ones, over either transport; and what its loop waits for."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import zmq

from orch import channel, wire
from orch.channel import Channel
from orch.errors import AddressInUse, RemoteProtocolError
from orch.wire import Kind, Record
from orch_balancer.local import Listener, LocalRoute, is_listened_to, listen
from orch_balancer.outlet import MAX_OUTBOX_BYTES, Outlet
from orch_balancer.outlet import Route as AnyRoute
from orch_balancer.peers import Peer, Watch
from orch_balancer.remote import Remote

PATIENCE_S = 5.0
ME = Peer(os.getuid(), os.getpid())
LARGE = bytes(100_000)
# Many times what a transport takes from us while the other end does not read.
MANY = 200


def until(condition: Callable[[], Any], turn: Callable[[], object]) -> None:
    """Take turns until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came so far"
        turn()


class Side:
    """Notes what it is told, and gives up whoever is gone, as the balancer's sides do."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, list[bytes]]] = []
        self.lost: list[Any] = []
        self.broken: list[Any] = []

    def take(self, route: Any, head: bytes, frames: Sequence[Any]) -> None:
        self.taken.append((route, [head, *map(bytes, frames)]))

    def malformed(self, route: Any, error: RemoteProtocolError) -> None:
        assert str(error)
        self.broken.append(route)

    def gone(self, route: Any) -> None:
        self.lost.append(route)


class Client(Protocol):
    """The other end of a connection."""

    def say(self, message: list[bytes]) -> None: ...

    def hear(self) -> list[list[bytes]]:
        """What has arrived."""

    def close(self) -> None: ...


class LocalClient:
    def __init__(self, path: str) -> None:
        self.channel = channel.connect(path)

    def say(self, message: list[bytes]) -> None:
        self.channel.send(message)

    def hear(self) -> list[list[bytes]]:
        return [[head, *map(bytes, frames)] for head, frames in self.channel.receive()]

    def close(self) -> None:
        self.channel.close()


class RemoteClient:
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 1)
        self.socket.connect(endpoint)

    def say(self, message: list[bytes]) -> None:
        self.socket.send_multipart(message)

    def hear(self) -> list[list[bytes]]:
        found = []
        while self.socket.poll(0):
            found.append(self.socket.recv_multipart())
        return found

    def close(self) -> None:
        self.socket.close()


class Hub:
    """The balancer's end of one transport, with an outlet as Front has one."""

    def __init__(self, transport: str, folder: Path) -> None:
        self.side, self.watch, self.outlet = Side(), Watch(), Outlet()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.path = f"{folder}/s"
        self.remote: Remote | None = None
        self.listener: Listener | None = None
        if transport == "zeromq":
            self.remote = Remote([f"ipc://{self.path}"], MAX_OUTBOX_BYTES, self.side)
        else:
            self.listener = Listener(self.path, MAX_OUTBOX_BYTES, self.watch, self.side)
        self.clients: dict[AnyRoute, Client] = {}

    def turn(self) -> None:
        """One pass of the loop."""
        if self.remote is None:
            self.watch.wait(0.001)
        else:
            self.remote.socket.poll(1)
            self.remote.read()
            self.remote.retry()

    def connects(self) -> AnyRoute:
        """A client that has said something."""
        client = LocalClient(self.path) if self.remote is None else RemoteClient(self.context, f"ipc://{self.path}")
        count = len(self.side.taken)
        client.say([b"hello", b"frame"])
        until(lambda: len(self.side.taken) > count, self.turn)
        found, message = self.side.taken[-1]
        assert message == [b"hello", b"frame"]
        route: AnyRoute = found
        self.clients[route] = client
        return route

    def disconnects(self, route: AnyRoute) -> None:
        """The client is gone, and the balancer's end has had time to notice."""
        self.clients.pop(route).close()
        if self.remote is None:
            self.turn()
        else:
            until(lambda: not self._takes(route), self.turn)

    def _takes(self, route: Any) -> bool:
        assert self.remote is not None
        try:
            self.remote.write(route.name, [b"x"])
        except zmq.Again:
            return True
        except zmq.ZMQError:
            return False
        return True

    def given_up(self) -> list[AnyRoute]:
        """Send, and turn: the routes that are gone, however that was learned."""
        failed = self.outlet.flush()
        self.turn()
        lost, self.side.lost = self.side.lost, []
        return failed + lost

    def reads(self, route: AnyRoute, count: int) -> list[Record]:
        """That many records at a client, while the balancer goes on."""
        records: list[Record] = []

        def turn() -> None:
            for head, *frames in self.clients[route].hear():
                records.extend(wire.decode(head, frames))
            self.turn()

        until(lambda: len(records) >= count, turn)
        return records

    def stuffs(self, route: AnyRoute) -> int:
        """Send to a client that does not read until the transport is full; how many records."""
        for number in range(MANY):
            self.outlet.put(route, a_record(number))
            assert self.given_up() == []
            if self.outlet.blocked:
                return number + 1
        raise AssertionError("the transport never filled")

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        for route, _ in self.side.taken:
            route.close()
        if self.remote is not None:
            self.remote.close(lingers=False)
        if self.listener is not None:
            self.listener.close()
        self.context.destroy(linger=0)


def a_record(number: int, body: bytes = LARGE) -> Record:
    """Something for a peer."""
    return Record(Kind.RESULT, request_id=number, body=body)


@pytest.fixture(params=["unix", "zeromq"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    """One of each transport."""
    made = Hub(request.param, tmp_path)
    yield made
    made.close()


# --- over either transport


def test_a_route_knows_its_peer_and_keeps_its_name(hub: Hub) -> None:
    """What one client says comes over one route; another's over another."""
    a, b = hub.connects(), hub.connects()
    assert a.peer == b.peer == ME
    for _ in range(3):
        hub.clients[a].say([b"again"])
    until(lambda: len(hub.side.taken) == 5, hub.turn)
    assert [route for route, _ in hub.side.taken] == [a, b, a, a, a]


def test_a_peer_that_does_not_read_loses_nothing_and_holds_up_nobody(hub: Hub) -> None:
    """What the transport does not take waits, in order, and goes out as the peer reads."""
    slow, quick = hub.connects(), hub.connects()
    count = hub.stuffs(slow)
    for _ in range(20):
        hub.outlet.put(slow, a_record(count, b"x"))
        hub.outlet.put(quick, a_record(count, b"y"))
        assert hub.given_up() == []
        assert hub.reads(quick, 1) == [a_record(count, b"y")]
        count += 1
    assert slow.unsent_bytes > 0
    assert [record.request_id for record in hub.reads(slow, count)] == list(range(count))
    until(lambda: not hub.outlet.blocked, hub.turn)
    assert slow.unsent_bytes == 0


def test_a_peer_that_lets_too_much_pile_up_is_given_up(hub: Hub) -> None:
    """Its connection ends, what waited for it is gone, and others are not touched."""
    slow, quick = hub.connects(), hub.connects()
    hub.stuffs(slow)
    large = bytes(MAX_OUTBOX_BYTES // 4)  # one buffer, however often it is sent
    failed: list[AnyRoute] = []
    for number in range(6):
        hub.outlet.put(slow, a_record(number, large))
        hub.outlet.put(quick, a_record(number, b""))
        failed += hub.given_up()
        assert hub.reads(quick, 1) == [a_record(number, b"")]
        if failed:
            break
    assert failed == [slow]
    slow.close()
    assert slow.unsent_bytes == 0
    assert not hub.outlet.blocked
    assert hub.given_up() == []


def test_a_peer_that_is_gone_is_learned_of(hub: Hub) -> None:
    """At the latest when something is sent to it; the others get theirs."""
    gone, there = hub.connects(), hub.connects()
    hub.disconnects(gone)
    hub.outlet.put(gone, a_record(1))
    hub.outlet.put(there, a_record(2))
    assert hub.given_up() == [gone]
    assert hub.reads(there, 1) == [a_record(2)]


def test_a_peer_that_goes_while_something_waits_for_it_blocks_nobody(hub: Hub) -> None:
    """What waits is dropped; it is given up with the next answer at the latest."""
    slow = hub.connects()
    hub.stuffs(slow)
    hub.disconnects(slow)
    until(lambda: not hub.outlet.blocked, hub.turn)
    hub.outlet.put(slow, a_record(1))
    assert hub.given_up() == [slow]


def test_a_closed_route_takes_anything_and_leaves_no_trace(hub: Hub) -> None:
    """The client on it was replaced; what is still said to it harms nobody."""
    number_for_the_client = os.open(os.devnull, os.O_RDONLY)
    old, other = hub.connects(), hub.connects()
    os.close(number_for_the_client)
    old.close()
    young = hub.connects()  # our end of it has the number of the old one's
    old.close()
    old.send([b"late"])
    assert old.unsent_bytes == 0
    for route in (other, young):
        hub.outlet.put(route, a_record(1))
        assert hub.given_up() == []
        assert hub.reads(route, 1) == [a_record(1)]
        hub.clients[route].say([b"I am heard"])
        until(lambda route=route: hub.side.taken[-1] == (route, [b"I am heard"]), hub.turn)  # type: ignore[misc]


def test_a_path_that_somebody_serves_is_not_taken_over(hub: Hub, tmp_path: Path) -> None:
    """A path whose owner is dead is."""
    for take in (
        lambda path: Listener(path, 1, Watch(), Side()),
        lambda path: Remote([f"ipc://{path}"], 1, Side()),
    ):
        with pytest.raises(AddressInUse, match="another process does"):
            take(hub.path)
    hub.connects()
    with listen(f"{tmp_path}/dead"):
        assert is_listened_to(f"{tmp_path}/dead")
    assert not is_listened_to(f"{tmp_path}/dead")
    listen(f"{tmp_path}/dead").close()


def test_nobody_can_listen_where_there_is_no_directory(tmp_path: Path) -> None:
    """One line says so."""
    with pytest.raises(AddressInUse, match="No such file"):
        listen(f"{tmp_path}/none/s")


# --- Unix sockets


@pytest.fixture
def connected() -> Iterator[tuple[Watch, Side, LocalRoute, Channel]]:
    """A route, and the other end of it."""
    watch, side = Watch(), Side()
    ours, theirs = map(Channel, socket.socketpair())
    route = LocalRoute(ours, ME, watch, side)
    yield watch, side, route, theirs
    route.close()
    theirs.close()


def test_what_a_peer_said_is_read_before_its_end(connected: tuple[Watch, Side, LocalRoute, Channel]) -> None:
    """Everything, and the end once."""
    watch, side, route, theirs = connected
    for number in range(100):
        theirs.send([b"message %d" % number])
    theirs.close()
    until(lambda: side.lost, lambda: watch.wait(0.01))
    assert side.taken == [(route, [b"message %d" % number]) for number in range(100)]
    watch.wait(0)
    assert side.lost == [route]


def test_all_that_has_arrived_can_be_read_at_once(connected: tuple[Watch, Side, LocalRoute, Channel]) -> None:
    """More than one read takes in; then it goes on as before."""
    watch, side, route, theirs = connected
    count = 0
    while theirs.send([b"%d" % count, LARGE]):
        count += 1
    route.read_all()
    assert len(side.taken) == count
    assert side.lost == []
    until(theirs.flush, lambda: watch.wait(0.01))
    until(lambda: len(side.taken) == count + 1, lambda: watch.wait(0.01))
    theirs.close()
    route.read_all()
    assert side.lost == [route]
    route.read_all()
    assert side.lost == [route]


def test_peers_are_served_in_portions(tmp_path: Path) -> None:
    """When it is enough the rest wait, and come first; who is closed meanwhile is not served."""
    watch, side = Watch(), Side()
    listener = Listener(f"{tmp_path}/s", 10, watch, side)
    peers = [channel.connect(f"{tmp_path}/s") for _ in range(4)]
    with contextlib.closing(listener), contextlib.ExitStack() as stack:
        for peer in peers:
            stack.enter_context(contextlib.closing(peer))
        watch.wait(1.0)  # all are accepted
        for number, peer in enumerate(peers):
            peer.send([b"%d" % number])
        watch.wait(1.0, lambda: len(side.taken) == 2)
        assert len(side.taken) == 2
        assert watch.is_ready
        first, second = (message for _, message in side.taken)
        left = {b"0", b"1", b"2", b"3"} - {*first, *second}
        for number, peer in enumerate(peers):  # those that were served speak again, and wait behind the others
            if b"%d" % number not in left:
                peer.send([b"again"])
        watch.wait(0, lambda: len(side.taken) == 3)
        assert side.taken[2][1][0] in left
        watch.wait(0, lambda: len(side.taken) == 4)
        assert side.taken[3][1][0] in left
        assert not watch.is_ready
        watch.wait(0, lambda: True)
        assert watch.is_ready
        for route in {route for route, _ in side.taken}:
            route.close()
        assert not watch.is_ready, "one that is closed meanwhile"


def test_what_is_no_message_ends_the_connection(connected: tuple[Watch, Side, LocalRoute, Channel]) -> None:
    """The side hears why, and that it has ended; the peer sees the end."""
    watch, side, route, theirs = connected
    theirs.send([b"fine"])
    theirs.socket.send(b"\xff" * 100)
    until(lambda: side.lost, lambda: watch.wait(0.01))
    assert (side.broken, side.lost) == ([route], [route])
    assert theirs.receive() == []
    assert theirs.closed


def test_a_frame_over_the_limit_ends_its_connection_alone(tmp_path: Path) -> None:
    """The limit is that of the listener."""
    watch, side = Watch(), Side()
    listener = Listener(f"{tmp_path}/s", 10, watch, side)
    rude, polite = (channel.connect(f"{tmp_path}/s") for _ in range(2))
    with contextlib.closing(listener), contextlib.closing(rude), contextlib.closing(polite):
        rude.send([b"head", b"x" * 11])
        polite.send([b"head", b"x" * 10])
        until(lambda: side.broken and side.taken, lambda: watch.wait(0.01))
        assert [message for _, message in side.taken] == [[b"head", b"x" * 10]]
        assert polite.receive() == []
        assert not polite.closed
        assert rude.receive() == []
        assert rude.closed
        side.taken[0][0].close()


TURNS_AWAY = """
import logging, os, resource, socket, sys
from orch import channel
from orch_balancer.local import Listener
from orch_balancer.peers import Watch

logging.basicConfig(stream=sys.stdout, format="%(message)s")
taken, lost = [], []
class Side:
    def take(self, route, head, frames): taken.append(head)
    def malformed(self, route, error): raise error
    def gone(self, route): lost.append(route)

watch = Watch()
listener = Listener(sys.argv[1], 1000, watch, Side())
first = channel.connect(sys.argv[1])
watch.wait(1)
callers = [channel.connect(sys.argv[1]) for _ in range(5)]
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 4096))
for _ in range(20):
    watch.wait(0.01)
for caller in callers:
    assert caller.receive() == [] and caller.closed, "a caller was left to wait"
first.send([b"still here"])
watch.wait(1)
assert taken == [b"still here"], taken
for caller in callers:
    caller.close()
late = channel.connect(sys.argv[1])
late.send([b"late"])
for _ in range(3):
    watch.wait(0.1)
assert taken[1:] == [b"late"], taken
"""


def test_where_no_descriptor_is_left_a_caller_is_turned_away(tmp_path: Path) -> None:
    """It is not left in the queue, where it would wake the loop for ever; who is connected does not notice."""
    done = subprocess.run(
        [sys.executable, "-c", TURNS_AWAY, f"{tmp_path}/s"], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "turned away" in done.stdout
    assert "ulimit -n" in done.stdout


# --- what the loop waits for


@pytest.fixture
def pipe() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of something."""
    one, other = socket.socketpair()
    one.setblocking(False)
    yield one, other
    one.close()
    other.close()


def test_a_handler_is_called_while_its_descriptor_is_readable(pipe: tuple[socket.socket, socket.socket]) -> None:
    """And not before it is, nor after it is removed."""
    one, other = pipe
    watch = Watch()
    calls: list[str] = []
    watch.add(one.fileno(), lambda: calls.append("read"))
    watch.wait(0)
    assert calls == []
    other.send(b"x")
    watch.wait(PATIENCE_S)
    watch.wait(PATIENCE_S)
    assert calls == ["read", "read"]
    watch.remove(one.fileno())
    watch.remove(one.fileno())
    watch.wait(0)
    assert calls == ["read", "read"]


def test_a_hang_up_is_something_to_read(pipe: tuple[socket.socket, socket.socket]) -> None:
    """To read tells which."""
    one, other = pipe
    watch = Watch()
    calls: list[bytes] = []
    watch.add(one.fileno(), lambda: calls.append(one.recv(1)))
    other.close()
    watch.wait(PATIENCE_S)
    assert calls == [b""]


def test_room_to_write_is_told_of_only_while_it_is_asked_for(pipe: tuple[socket.socket, socket.socket]) -> None:
    """There nearly always is some: the loop would never sleep."""
    one, other = pipe
    watch = Watch()
    calls: list[str] = []
    watch.add(one.fileno(), lambda: calls.append("read"))
    watch.when_writable(one.fileno(), lambda: calls.append("write"))
    watch.wait(PATIENCE_S)
    assert calls == ["write"]
    other.send(b"x")
    watch.wait(PATIENCE_S)
    assert calls == ["write", "write", "read"]
    watch.when_writable(one.fileno(), None)
    watch.when_writable(one.fileno(), None)
    watch.wait(PATIENCE_S)
    assert calls == ["write", "write", "read", "read"]


def test_a_handler_may_end_others_and_itself(pipe: tuple[socket.socket, socket.socket]) -> None:
    """What was ready in the same pass and is removed by then is not called."""
    watch = Watch()
    pairs = [pipe, socket.socketpair()]
    calls: list[int] = []

    def end_all(number: int) -> None:
        calls.append(number)
        for one, _ in pairs:
            watch.remove(one.fileno())

    for number, (one, other) in enumerate(pairs):
        watch.add(one.fileno(), lambda number=number: end_all(number))  # type: ignore[misc]
        other.send(b"x")
    watch.wait(PATIENCE_S)
    watch.wait(0)
    assert len(calls) == 1
    for end in itertools.chain.from_iterable(pairs[1:]):
        end.close()


def test_a_watch_is_readable_when_something_in_it_is(pipe: tuple[socket.socket, socket.socket]) -> None:
    """So that it can wait beside a ZeroMQ socket."""
    one, other = pipe
    watch = Watch()
    watch.add(one.fileno(), lambda: None)
    assert select.select([watch.fileno()], [], [], 0)[0] == []
    other.send(b"x")
    assert select.select([watch.fileno()], [], [], PATIENCE_S)[0] == [watch.fileno()]


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
        assert watch.watches(process.pid)
        watch.forget_process(process.pid, as_other)
        watch.wait(0)
        assert heard == []
        process.kill()
        process.wait()
        until(lambda: heard, lambda: watch.wait(0.01))
        assert heard == ["worker", "client"]
        assert not watch.watches(process.pid)
        assert not watch.watch_process(process.pid, as_client)
