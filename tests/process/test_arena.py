"""Large arrays through shared memory: the same bits, whoever dies, and nothing left."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orch import Client, chunk, wire
from orch.chunk import Chunk
from orch.wire import Flag, Kind, Record
from tests.process import raw
from tests.process.harness import Instance, Place, eventually

SIZE = 300_000
DTYPES = ["?", "u1", "<i2", ">i4", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16", "<M8[s]", "<m8[ns]", "S7", "<U5"]


def arena(instance: Instance) -> dict[str, int]:
    """The balancer's figures of the shared memory."""
    found: dict[str, int] = instance.status().get("arena", {})
    return found


def array(number: int, size: int = SIZE) -> Any:
    """An array like no other."""
    return np.full(size, number % 251, np.uint8)


def warm(client: Client) -> None:
    """Until both directions go through the shared memory."""
    for number in range(8):
        assert np.array_equal(client.request(["echo", array(number)]), array(number))


def flood(client: Client, count: int, what: str = "double") -> None:
    """Many at a time; every answer is that of its request."""
    futures = [client.submit([what, array(number % 100)]) for number in range(count)]
    for number, future in enumerate(futures):
        assert np.array_equal(future.result(timeout=30), array(number % 100) * (2 if what == "double" else 1))


def test_both_directions_go_through_the_memory(place: Place) -> None:
    """After the first few, and everything is given back by a client that rests."""
    instance = place.up("keeping.py:Keeping", replicas=2)
    client = instance.client()
    warm(client)
    before = arena(instance)
    flood(client, 64)
    after = arena(instance)
    assert after["requests"] > before["requests"]
    assert after["results"] > before["results"]
    assert after["leased_bytes"] > 0
    eventually(lambda: arena(instance)["leased_bytes"] == 0)
    flood(client, 64)


@pytest.mark.parametrize(
    "options", [(), ("--shared-memory=0",), ("--shared-memory=1MiB",)], ids=["arena", "none", "full"]
)
def test_every_dtype_arrives_bit_by_bit(place: Place, options: tuple[str, ...]) -> None:
    """With shared memory, without, and where it is too small for what is outstanding."""
    instance = place.up("keeping.py:Keeping", *options)
    client = instance.client()
    warm(client)
    chance = np.random.default_rng(1)
    inputs: list[Any] = []
    for dtype in DTYPES * 4:
        item = np.dtype(dtype).itemsize
        raw = chance.integers(0, 2 if dtype == "?" else 100, 200_000 // item * item, dtype=np.uint8)
        inputs.append((raw.astype("<u4") if dtype == "<U5" else raw).view("u1")[: 200_000 // item * item].view(dtype))
    inputs += [each.reshape(2, -1)[:, ::2] for each in inputs if each.size % 2 == 0]
    inputs += [{"a": inputs[0], "b": [inputs[5], (inputs[7], "text")]}, b"0123456789" * 50_000, "text" * 50_000]
    outputs: list[Any] = []
    for start in range(0, len(inputs), 8):
        futures = [client.submit(["echo", each]) for each in inputs[start : start + 8]]
        outputs += [future.result(timeout=30) for future in futures]
    for each, got in zip(inputs, outputs, strict=True):
        if isinstance(each, np.ndarray):
            assert (got.dtype, got.shape, got.tobytes()) == (each.dtype, each.shape, each.tobytes())
            got.flat[0] = got.flat[-1]  # it is the caller's own
        elif isinstance(each, dict):
            assert np.array_equal(got["a"], each["a"])
            assert np.array_equal(got["b"][0], each["b"][0])
            assert got["b"][1][1] == "text"
        else:
            assert got == each
    assert (arena(instance)["requests"] > 0) == (options != ("--shared-memory=0",))


def test_what_a_model_keeps_does_not_change(place: Place) -> None:
    """Its chunks are not written again before the model lets go of them, or dies."""
    instance = place.up("keeping.py:Keeping")
    client = instance.client()
    warm(client)
    kept = [client.request(["keep", array(number)]) for number in range(50, 55)]
    assert kept == [1, 2, 3, 4, 5]
    flood(client, 100, "echo")
    assert client.request(["kept"]) == [number * SIZE for number in range(50, 55)]
    held = 5 * 512 * 1024
    eventually(lambda: 0 < arena(instance)["leased_bytes"] <= held)
    assert client.request(["let_go"]) == 0
    eventually(lambda: arena(instance)["leased_bytes"] == 0)
    client.request(["keep", array(1)])
    client.request(["keep", array(2)])
    client.request(["keep", array(3)])
    eventually(lambda: 0 < arena(instance)["leased_bytes"] <= held)
    instance.kill("r0")
    eventually(lambda: arena(instance)["leased_bytes"] == 0)


@pytest.mark.parametrize("what", ["echo", "slow"])
def test_a_killed_client_leaves_no_lease(place: Place, what: str) -> None:
    """Killed while it writes, while its requests run, or with results unread: the others notice nothing."""
    instance = place.up("keeping.py:Keeping", replicas=2)
    client = instance.client()
    warm(client)
    for turn in range(3):
        with place.program("arrays.py", instance.endpoint, what, str(SIZE), "8") as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "warm\n"
            if what == "slow":
                eventually(lambda: instance.queue()["outstanding"] > 0)
            flood(client, 10 + turn, "echo")
            program.kill()
        flood(client, 30, "echo")
    eventually(lambda: arena(instance)["leased_bytes"] == 0, within=10.0)


@pytest.mark.parametrize("who", ["r0", "balancer"])
def test_a_death_under_load_costs_no_answer(place: Place, who: str) -> None:
    """Of a worker that reads and writes, and of the one that leases: every answer is right, and the memory is empty."""
    instance = place.up("keeping.py:Keeping", replicas=2)
    client = instance.client()
    warm(client)
    for _ in range(3):
        futures = [client.submit(["slow", array(number), 0.02]) for number in range(40)]
        eventually(lambda: instance.queue().get("outstanding", 0) > 0)
        old = instance.kill(who)
        for number, future in enumerate(futures):
            assert np.array_equal(future.result(timeout=30), array(number) * 2)
        instance.await_successor(who, old)
        instance.await_ready(2)
    warm(client)
    flood(client, 50)
    assert arena(instance)["requests"] > 0
    eventually(lambda: arena(instance)["leased_bytes"] == 0)


def test_a_cancelled_request_gives_its_memory_back(place: Place) -> None:
    """When its worker has answered, and not before."""
    instance = place.up("keeping.py:Keeping")
    client = instance.client()
    warm(client)
    futures = [client.submit(["slow", array(number), 0.3]) for number in range(6)]
    eventually(lambda: instance.queue()["outstanding"] > 0)
    for future in futures[::2]:
        future.cancel()
    flood(client, 20)
    for number in range(1, 6, 2):
        assert np.array_equal(futures[number].result(timeout=20), array(number) * 2)
    eventually(lambda: arena(instance)["leased_bytes"] == 0)


def test_nothing_is_left_of_a_killed_supervisor(place: Place) -> None:
    """No process has the memory mapped any more."""
    instance = place.up("keeping.py:Keeping")
    pid = instance.pid_of("balancer")
    client = instance.client()
    warm(client)
    assert any("orch-arena" in str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())
    instance.send(signal.SIGKILL)
    instance.wait()
    eventually(lambda: not place.processes())
    instance.close_clients()
    assert "orch-arena" not in Path("/proc/self/maps").read_text()


def test_nobody_can_truncate_it(place: Place) -> None:
    """The file is sealed: a reader of it can never be killed by SIGBUS."""
    instance = place.up("keeping.py:Keeping")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{instance.directory}/arena.sock")
        _, (fd,), _, _ = socket.recv_fds(connection, 8, 1)
    try:
        for size in (0, 1 << 40):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
    finally:
        os.close(fd)


def test_a_made_up_descriptor_ends_its_session_alone(place: Place) -> None:
    """A lease of nobody, of another client, too long, too short: refused, counted, and the others go on."""
    instance = place.up("keeping.py:Keeping")
    client = instance.client()
    warm(client)
    hello = Record(Kind.HELLO, body=wire.write_map(session=b"0123456789abcdef", sdk="test", window=0))
    epoch = client._driver.limits["epoch"]  # noqa: SLF001
    bodies = [b"", b"short"]
    for number in range(1, 12):
        for where in (Chunk(epoch << 32 | number, 0, 1 << 19), Chunk(epoch << 32 | number, number << 19, 1 << 19)):
            bodies.append(chunk.write_descriptor(where, [SIZE]) + b"\xc0")
            bodies.append(chunk.write_descriptor(where, [1 << 50]) + b"\xc0")
    for body in bodies:
        with raw.connect(instance.endpoint) as stranger:
            request = Record(Kind.REQUEST, Flag.ARENA, request_id=1, body=body)
            stranger.send([wire.pack_head([hello, request])])
            kinds: list[int] = []
            while Kind.ERROR not in kinds:
                said = stranger.receive()
                assert said is not None
                kinds += [record.kind for record in said]
    assert instance.queue()["malformed"] == len(bodies)
    flood(client, 20)
