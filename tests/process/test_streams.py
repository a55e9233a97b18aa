"""Answers in parts."""

from __future__ import annotations

import asyncio

import pytest

from orch import AsyncClient, Client
from orch.errors import DeadlineExceeded, ModelError, WorkerLost
from tests.process.harness import Instance, Place, elapse, eventually, moment


@pytest.fixture(scope="module")
def counter(shared_place: Place) -> Instance:
    """A model that counts, as fast as it can."""
    return shared_place.up("plain.py:Counter")


@pytest.fixture(scope="module")
def slow_counter(shared_place: Place) -> Instance:
    """A model that counts, fifty numbers a second."""
    return shared_place.up("plain.py:Counter", "--set=pause=0.02", name="slow")


def test_parts_come_in_order_and_end(counter: Instance) -> None:
    """No part, one, and many more than may be on their way at one time."""
    client = counter.client()
    for length in (0, 1, 31, 32, 33, 1000):
        assert list(client.stream(length)) == list(range(length))


def test_a_slow_reader_holds_the_model_back(counter: Instance) -> None:
    """Credit: the model is never more than a window ahead of who reads, and no part is lost."""
    with counter.client().stream(300) as stream:
        for number, part in enumerate(stream):
            assert part == number
            if number in (10, 100):
                elapse(0.3)
                waiting = stream._parts.arrived.qsize()  # noqa: SLF001  what is here and not yet read
                assert waiting <= 64, waiting


def test_parts_arrive_while_the_model_still_runs(slow_counter: Instance) -> None:
    """The first part does not wait for the last."""
    began = moment()
    with slow_counter.client().stream(100) as stream:
        assert next(stream) == 0
        assert moment() - began < 0.5


def test_leaving_a_stream_early_ends_it_in_the_worker(slow_counter: Instance) -> None:
    """close() cancels: the worker is free again long before the stream would have ended."""
    client = slow_counter.client()
    stream = client.stream(1000)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    stream.close()
    began = moment()
    assert list(client.stream(2)) == [0, 1]
    assert moment() - began < 3


def test_leaving_a_loop_early_ends_the_stream_in_the_worker(slow_counter: Instance) -> None:
    """`break` alone does it: the stream is collected."""
    client = slow_counter.client()
    for part in client.stream(1000):
        if part == 3:
            break
    began = moment()
    assert list(client.stream(2)) == [0, 1]
    assert moment() - began < 3


def test_a_stream_keeps_the_client_that_it_came_from(counter: Instance) -> None:
    """Whoever holds only the stream still gets all of it."""
    assert list(Client(counter.endpoint).stream(200)) == [*range(200)]


def test_a_stream_whose_client_is_gone_ends_in_the_worker(slow_counter: Instance) -> None:
    """So does a client that closes."""
    leaver = slow_counter.client()
    next(leaver.stream(1000))
    leaver.close()
    began = moment()
    assert list(slow_counter.client().stream(2)) == [0, 1]
    assert moment() - began < 3


def test_asyncio_streams_too(counter: Instance, slow_counter: Instance) -> None:
    """`async for`, two at a time, and leaving early."""

    async def use() -> None:
        async with AsyncClient(counter.endpoint) as client:

            async def read(length: int) -> list[int]:
                return [part async for part in client.stream(length)]

            assert list(await asyncio.gather(read(100), read(200))) == [[*range(100)], [*range(200)]]
        async with AsyncClient(slow_counter.endpoint) as client:
            stream = client.stream(1000)
            async for part in stream:
                if part == 3:
                    break
            await stream.aclose()  # type: ignore[attr-defined]  # a generator
            began = moment()
            assert [part async for part in client.stream(2)] == [0, 1]
            assert moment() - began < 3
            async for part in client.stream(1000):
                if part == 3:
                    break
            began = moment()
            assert [part async for part in client.stream(2)] == [0, 1]
            assert moment() - began < 3

    asyncio.run(use())


def test_a_stream_has_a_deadline(slow_counter: Instance) -> None:
    """The parts that came in time are there; then it ends."""
    parts: list[int] = []
    with pytest.raises(DeadlineExceeded):
        parts.extend(slow_counter.client().stream(1000, timeout=0.4))
    assert 3 < len(parts) < 25
    assert parts == list(range(len(parts)))


def test_a_stream_of_a_model_without_one_is_its_answer(place: Place) -> None:
    """predict()'s output is the one part."""
    client = place.up("plain.py:double").client()
    assert list(client.stream(21)) == [42]


def test_a_request_to_a_model_of_streams_gathers_the_parts(counter: Instance) -> None:
    """request() of a model that only streams gets the list."""
    assert counter.client().request(4) == [0, 1, 2, 3]


def test_a_stream_that_raises_ends_in_model_error(counter: Instance) -> None:
    """Before the first part as well as later."""
    with pytest.raises(ModelError, match="TypeError"):
        list(counter.client().stream("no number"))
    assert list(counter.client().stream(2)) == [0, 1]


def test_a_stream_that_has_begun_ends_with_its_worker(place: Place) -> None:
    """Parts cannot be taken back, so it is not run again; the next one is served."""
    instance = place.up("plain.py:Counter", "--set=pause=0.02", replicas=2)
    client = instance.client()
    stream = client.stream(1000)
    assert next(stream) == 0
    holder = next(each["id"] for each in instance.replicas().values() if each["outstanding"])
    instance.kill(holder)
    with pytest.raises(WorkerLost, match="already sent"):
        list(stream)
    assert list(client.stream(3)) == [0, 1, 2]


def test_a_stream_that_has_not_begun_moves_on(place: Place) -> None:
    """No part was sent: it is retried like any request."""
    instance = place.up("plain.py:Counter", "--set=pause=0.5", replicas=2)
    stream = instance.client().stream(2)
    holder = eventually(lambda: [each["id"] for each in instance.replicas().values() if each["outstanding"]])
    instance.kill(holder[0])
    assert list(stream) == [0, 1]


def test_a_stream_that_has_begun_ends_with_the_balancer(place: Place) -> None:
    """The one that had parts ends in WorkerLost; the client goes on with the next balancer."""
    instance = place.up("plain.py:Counter", "--set=pause=0.02")
    client = instance.client()
    stream = client.stream(1000)
    assert next(stream) == 0
    instance.kill("balancer")
    with pytest.raises(WorkerLost):
        list(stream)
    assert list(client.stream(3, timeout=20)) == [0, 1, 2]
