"""Bytes that nobody should send, on every socket there is: never a crash, and nobody else notices."""

from __future__ import annotations

import random
import socket as sockets
from collections.abc import Callable
from contextlib import ExitStack, suppress

import pytest

from orch import wire
from orch.channel import FRAME_LENGTH, PREFIX
from orch.wire import Flag, Kind, Record
from tests.process import raw
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
        kind, rng.getrandbits(16) & ~Flag.BUNDLE, rng.randrange(256), rng.randrange(256), model,
        rng.choice((0, 1, 2, 2**64 - 1)), rng.getrandbits(64), rng.choice((0, 1, -1, 2**63 - 1, -(2**63))),
        rng.choice((0, 1, 65535)), rng.choice(bodies), frames,
    )  # fmt: skip


def senseless_records(rng: random.Random) -> list[bytes]:
    """A message that decodes, and means nothing."""
    return [bytes(frame) for frame in wire.encode([a_record(rng) for _ in range(rng.randrange(1, 5))])]


def bundled(rng: random.Random) -> list[bytes]:
    """A valid bundle, with senseless contents and any numbers."""
    bodies = tuple(rng.choice((b"", b"\x01", rng.randbytes(20))) for _ in range(rng.randrange(1, 6)))
    flags = Flag.BUNDLE | rng.choice((0, Flag.NO_RETRY))
    kind, first = rng.choice((Kind.REQUEST, Kind.RESULT)), rng.choice((0, 1, 3, rng.getrandbits(63)))
    (message,) = wire.messages(
        [Record(kind, flags, request_id=first, ticket=rng.getrandbits(63), rows=len(bodies), frames=bodies)]
    )
    return message


def mutated(rng: random.Random) -> list[bytes]:
    """A message of which some bytes are others."""
    frames = rng.choice((senseless_records, bundled))(rng)
    head = bytearray(frames[0])
    for _ in range(rng.randrange(1, 6)):
        head[rng.randrange(len(head))] = rng.randrange(256)
    cut = rng.choice((len(head), len(head), rng.randrange(len(head))))
    return [bytes(head[:cut]), *rng.choice((frames[1:], [], [b"more", *frames[1:]]))]


@pytest.fixture
def served(place: Place) -> Instance:
    """Two replicas of a steady model; clients may come over ZeroMQ as well."""
    return place.up("plain.py:Steady", f"--listen={over_zeromq(place)}", replicas=2)


def over_zeromq(place: Place) -> str:
    """The other endpoint of `served`."""
    return f"ipc://{place.base}/listen.sock"


@pytest.mark.parametrize("end", ["front", "back", "listen"])
def test_junk_on_a_socket_of_the_balancer_harms_nobody(served: Instance, end: str) -> None:
    """Random bytes, senseless records and bundles, mutated ones, from strangers and from one that had said HELLO."""
    rng = random.Random(SEED)
    pids = served.pid_of("balancer"), served.pid_of("r0"), served.pid_of("r1")
    makers: list[Callable[[random.Random], list[bytes]]] = [random_bytes, senseless_records, bundled, mutated]
    endpoint = over_zeromq(served.place) if end == "listen" else f"unix://{served.directory}/{end}.sock"
    # Whoever breaks the framing, too, has to call again.
    in_a_row = 100 if end == "listen" else 5
    with ClosedLoop(served.client(), "a", 16) as loop:
        for turn in range(NUM_MESSAGES // in_a_row):
            with raw.connect(endpoint) as peer:
                if turn % 2 and end != "back":
                    peer.send(raw.greeting(rng.randbytes(16)))
                for _ in range(in_a_row):
                    peer.send(rng.choice(makers)(rng))
        loop.finish()
    assert (served.pid_of("balancer"), served.pid_of("r0"), served.pid_of("r1")) == pids
    assert served.status()["balancer"]["restarts"] == 0
    assert "Traceback" not in served.log("balancer")
    if end != "back":
        assert served.queue()["malformed"] > 100
        assert len(served.log("balancer").splitlines()) < 200
    assert served.client().request(["b", 1], timeout=5) == ["answer", "b", 1]


def beginnings(rng: random.Random) -> list[bytes]:
    """What is no message, or not all of one, to a reader of the framing."""
    head = wire.pack_head([Record(Kind.REQUEST, request_id=1)])
    lies = [(0, 0), (2**32 - 1, 0), (40, 65), (40, 2**32 - 1), (2**20, 64)]
    lengths = [0, 1, 2**20, 2**40, 2**63, 2**64 - 1]
    found = [b"", b"\n" * 100, b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", PREFIX.pack(40, 0), PREFIX.pack(40, 0)[:3]]
    found += [PREFIX.pack(*lie) + head for lie in lies]
    found += [PREFIX.pack(len(head), 1) + FRAME_LENGTH.pack(length) + head + b"a piece of it" for length in lengths]
    return found + [rng.randbytes(rng.randrange(1, 500)) for _ in range(30)]


def test_what_is_no_message_at_all_harms_nobody(served: Instance) -> None:
    """HTTP, noise, silence, lies about lengths and half a message on all sockets, the supervisor's own among them."""
    rng = random.Random(SEED)
    pieces = [b"{}\n", b"[1]\n", b'{"call": 5}\n', b'{"call": "fly"}\n', *beginnings(rng)]
    pieces += [b'{"call": "restart", "replica": ["x"]}\n', b'{"call": "down", "drain_timeout_s": NaN}\n']
    pieces += [b'{"call": "scale", "replicas": "x"}\n', b'{"call": "down", "drain_timeout_s": "x"}\n']
    paths = [f"{served.directory}/{name}.sock" for name in ("front", "back", "control")]
    paths.append(over_zeromq(served.place).removeprefix("ipc://"))
    with ExitStack() as ends, ClosedLoop(served.client(), "a", 16) as loop:
        for path in paths:
            for piece in pieces:
                end = ends.enter_context(sockets.socket(sockets.AF_UNIX))
                end.connect(path)
                with suppress(OSError):
                    end.sendall(piece)
                if rng.random() < 0.5:
                    end.close()
        loop.finish()
    assert served.process.poll() is None, served.output()
    assert "Traceback" not in served.log("balancer")
    assert served.status()["balancer"]["restarts"] == 0
    assert [each["restarts"] for each in served.replicas().values()] == [0, 0]
    assert served.status()["state"] == "READY"
    assert served.queue()["malformed"] > 10


def test_a_forged_worker_is_given_nothing(served: Instance) -> None:
    """READY from a process that the supervisor has not started is ignored."""
    with raw.connect(f"unix://{served.directory}/back.sock") as forger:
        for replica, generation in (("r0", 1), ("r1", 1), ("r2", 1), ("r0", 2)):
            ready = wire.write_map(replica=replica, generation=generation, model="Steady", max_batch_size=8, kept=[])
            forger.send([wire.pack_head([Record(Kind.READY, body=ready)])])
        client = served.client()
        assert list(client.map([["a", i] for i in range(200)])) == [["answer", "a", i] for i in range(200)]
        assert forger.receive(within_s=0.1) is None
    eventually(lambda: served.log("balancer").count("not expected") == 4)


@pytest.mark.parametrize("transport", ["unix", "zeromq"])
def test_a_session_of_somebody_else_cannot_be_guessed_away(served: Instance, transport: str) -> None:
    """A stranger's CANCEL and CREDIT name its own requests only."""
    client = served.client()
    with raw.connect(served.endpoint if transport == "unix" else over_zeromq(served.place)) as stranger:
        stranger.send(raw.greeting(b"somebody else 16"))
        assert stranger.receive()
        futures = [client.submit(["a", i]) for i in range(200)]
        for start in range(0, 400, 100):
            stranger.send([wire.pack_head([Record(Kind.CANCEL, request_id=start + i) for i in range(100)])])
        assert [future.result(timeout=10) for future in futures] == [["answer", "a", i] for i in range(200)]
