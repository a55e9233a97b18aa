"""Bytes that nobody should send, on every socket there is: never a crash, and nobody else notices."""

from __future__ import annotations

import random
import socket as sockets
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest
import zmq

from orch import wire
from orch.wire import Kind, Record
from tests.process.harness import ClosedLoop, Instance, Place, eventually

NUM_MESSAGES = 3000
SEED = 20_26


def random_bytes(rng: random.Random) -> list[bytes]:
    """Anything at all, in one frame or several."""
    return [rng.randbytes(rng.choice((0, 1, 39, 40, 41, 200, 2000))) for _ in range(rng.choice((1, 1, 1, 2, 5)))]


def a_record(rng: random.Random) -> Record:
    """A valid record of any kind, with senseless contents."""
    bodies = [
        b"",
        rng.randbytes(rng.randrange(50)),
        wire.write_map(session=rng.randbytes(16), sdk="junk"),
        wire.write_map(session=rng.randbytes(3), sdk=5),
        wire.write_map(replica="r0", generation=1, model="Steady", max_batch_size=2**40),
        wire.write_map(code="overloaded", message="junk", retry_after_s=-1),
        b"\x91" * 2000,
    ]
    frames = tuple(rng.randbytes(rng.randrange(20)) for _ in range(rng.choice((0, 0, 0, 1, 3))))
    kind, model = rng.choice(list(Kind)), rng.choice((0, 0, 1, 65535))
    return Record(
        kind, rng.getrandbits(16), rng.randrange(256), rng.randrange(256), model,
        rng.choice((0, 1, 2, 2**64 - 1)), rng.getrandbits(64), rng.choice((0, 1, -1, 2**63 - 1, -(2**63))),
        rng.choice((0, 1, 65535)), rng.choice(bodies), frames,
    )  # fmt: skip


def senseless_records(rng: random.Random) -> list[bytes]:
    """A message that decodes, and means nothing."""
    return [bytes(frame) for frame in wire.encode([a_record(rng) for _ in range(rng.randrange(1, 5))])]


def mutated(rng: random.Random) -> list[bytes]:
    """A message of which some bytes are others."""
    frames = senseless_records(rng)
    head = bytearray(frames[0])
    for _ in range(rng.randrange(1, 6)):
        head[rng.randrange(len(head))] = rng.randrange(256)
    cut = rng.choice((len(head), len(head), rng.randrange(len(head))))
    return [bytes(head[:cut]), *rng.choice((frames[1:], [], [b"more", *frames[1:]]))]


@pytest.fixture
def served(place: Place) -> Instance:
    """Two replicas of a steady model."""
    return place.up("plain.py:Steady", replicas=2)


@pytest.mark.parametrize("end", ["front", "back"])
def test_junk_on_a_socket_of_the_balancer_harms_nobody(served: Instance, end: str) -> None:
    """Random bytes, senseless records and mutated ones, from strangers and from one that had said HELLO."""
    rng = random.Random(SEED)
    pids = served.pid_of("balancer"), served.pid_of("r0"), served.pid_of("r1")
    makers: list[Callable[[random.Random], list[bytes]]] = [random_bytes, senseless_records, mutated]
    endpoint = f"ipc://{served.directory}/{end}.sock"
    with zmq.Context() as context, ClosedLoop(served.client(), "a", 16) as loop:
        for turn in range(NUM_MESSAGES // 100):
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.LINGER, 500)
                socket.connect(endpoint)
                if turn % 2 and end == "front":
                    hello = wire.write_map(session=rng.randbytes(16), sdk="junk")
                    socket.send(wire.pack_head([Record(Kind.HELLO, body=hello)]))
                for _ in range(100):
                    socket.send_multipart(rng.choice(makers)(rng))
        loop.finish()
    assert (served.pid_of("balancer"), served.pid_of("r0"), served.pid_of("r1")) == pids
    assert served.status()["balancer"]["restarts"] == 0
    assert "Traceback" not in served.log("balancer")
    if end == "front":
        assert served.queue()["malformed"] > 100
    assert len(served.log("balancer").splitlines()) < 200 if end == "front" else True
    assert served.client().request(["b", 1], timeout=5) == ["answer", "b", 1]


def test_what_is_no_zeromq_at_all_harms_nobody(served: Instance) -> None:
    """HTTP, noise, silence and half a greeting on the sockets of the balancer and on the supervisor's own."""
    rng = random.Random(SEED)
    pieces = [b"GET / HTTP/1.1\r\n\r\n", b"", b"\n" * 100, b"{}\n", b"[1]\n", b'{"call": 5}\n', b'{"call": "fly"}\n']
    pieces += [b'{"call": "restart", "replica": ["x"]}\n', b'{"call": "down", "drain_timeout_s": NaN}\n']
    pieces += [b'{"call": "scale", "replicas": "x"}\n', b'{"call": "down", "drain_timeout_s": "x"}\n', b"\xff" * 64]
    pieces += [rng.randbytes(rng.randrange(1, 500)) for _ in range(30)]
    with ExitStack() as ends, ClosedLoop(served.client(), "a", 16) as loop:
        for name in ("front", "back", "control"):
            for piece in pieces:
                end = ends.enter_context(sockets.socket(sockets.AF_UNIX))
                end.connect(f"{served.directory}/{name}.sock")
                with suppress(OSError):
                    end.sendall(piece)
                if rng.random() < 0.5:
                    end.close()
        loop.finish()
    assert served.process.poll() is None, served.output()
    assert served.status()["balancer"]["restarts"] == 0
    assert [each["restarts"] for each in served.replicas().values()] == [0, 0]
    assert served.status()["state"] == "READY"


def test_a_forged_worker_is_given_nothing(served: Instance) -> None:
    """READY from a process that the supervisor has not started is ignored."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{served.directory}/back.sock")
        for replica, generation in (("r0", 1), ("r1", 1), ("r2", 1), ("r0", 2)):
            ready = wire.write_map(replica=replica, generation=generation, model="Steady", max_batch_size=8, kept=[])
            socket.send(wire.pack_head([Record(Kind.READY, body=ready)]))
        client = served.client()
        assert list(client.map([["a", i] for i in range(200)])) == [["answer", "a", i] for i in range(200)]
        assert not socket.poll(100)
    eventually(lambda: "not expected" in served.log("balancer"))


def test_a_session_of_somebody_else_cannot_be_guessed_away(served: Instance) -> None:
    """A stranger's CANCEL and CREDIT name its own requests only."""
    client = served.client()
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(served.endpoint)
        hello = wire.write_map(session=b"somebody else 16", sdk="junk")
        socket.send(wire.pack_head([Record(Kind.HELLO, body=hello)]))
        assert socket.poll(5000)
        futures = [client.submit(["a", i]) for i in range(200)]
        for start in range(0, 400, 100):
            socket.send(wire.pack_head([Record(Kind.CANCEL, request_id=start + i) for i in range(100)]))
        assert [future.result(timeout=10) for future in futures] == [["answer", "a", i] for i in range(200)]
