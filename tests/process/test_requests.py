"""What a client gets for what it sends: answers, errors, order, and time."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from orch import AsyncClient, Client
from orch.errors import (
    DeadlineExceeded,
    ModelError,
    NoSuchModel,
    Overloaded,
    PayloadTooLarge,
    WorkerLost,
)
from tests.process.harness import Instance, Place, eventually, moment


@pytest.fixture(scope="module")
def obedient(shared_place: Place) -> Instance:
    """Two replicas of a model that does what requests say."""
    return shared_place.up("naughty.py:Obedient", "--max-payload=1MiB", replicas=2)


@pytest.fixture
def client(obedient: Instance) -> Iterator[Client]:
    """A client of it."""
    with Client(obedient.endpoint) as client:
        yield client


# --- answers


@pytest.mark.parametrize(
    "payload",
    [None, True, -1, 2**70, 1.5, "text", "ü" * 1000, b"bytes", b"\0" * 100_000, [], [1, [2.0]], (1, "a"), {"k": (1,)}],
    ids=repr,
)
def test_a_payload_comes_back_as_it_was(client: Client, payload: Any) -> None:
    """The types of the wire survive the way to the model and back."""
    answer = client.request(payload)
    assert answer == payload
    assert type(answer) is type(payload)


def test_a_function_is_a_model(place: Place) -> None:
    """A plain function that takes and returns a list serves as well as a class."""
    instance = place.up("plain.py:double")
    assert instance.client().request(21) == 42


def test_a_module_on_the_path_is_a_target(place: Place) -> None:
    """`package.module:Name` is looked for where the command was run, too."""
    (place.base / "my_models.py").write_text("def halve(inputs):\n    return [each / 2 for each in inputs]\n")
    instance = place.up("my_models:halve")
    assert instance.client().request(21) == 10.5


def test_the_default_instance_is_found_by_its_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Client() finds "default", Client(name=...) the other, and `orch request` both."""
    place.up("plain.py:Echo")
    place.up("plain.py:double", name="other")
    monkeypatch.setenv("ORCH_RUNTIME_DIR", str(place.runtime))
    with Client() as one, Client(name="other") as other:
        assert (one.request(1), other.request(1)) == (1, 2)
        assert (one.models, other.models) == (["Echo"], ["double"])
    assert place.orch("request", "--json", "[1, 2]").out == "[1, 2]\n"
    assert place.orch("request", "--name=other", "--json", "4").out == "8\n"


def test_tcp_on_loopback_serves_as_well(place: Place) -> None:
    """--listen adds an endpoint."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    instance = place.up("plain.py:Echo", f"--listen={endpoint}")
    with Client(endpoint) as client:
        assert client.request("hello", timeout=5) == "hello"
        array = np.arange(1_000_000)
        assert np.array_equal(client.request(array, timeout=10), array)
        assert list(client.map(range(500))) == list(range(500))
    assert instance.client().request("hello") == "hello"


# --- map, futures, asyncio


def test_map_keeps_the_order(client: Client) -> None:
    """However the answers come in, outputs come in the order of the inputs."""
    inputs = [["sleep", 0.001 * (i % 3)] if i % 50 == 0 else ["n", i] for i in range(2000)]
    assert list(client.map(inputs, concurrency=128)) == inputs


def test_map_takes_inputs_as_outputs_are_read(client: Client) -> None:
    """An endless iterator of inputs is no problem: no more are taken than may be outstanding."""
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    outputs = client.map(endless(), concurrency=8)
    assert list(itertools.islice(outputs, 100)) == list(range(1, 101))
    assert taken <= 108 + 1
    outputs.close()  # type: ignore[attr-defined]  # a generator


def test_map_raises_the_first_error_in_order(client: Client) -> None:
    """An input that fails raises where its output would have been."""
    outputs = client.map([1, 2, ["raise", "three"], 4])
    assert [next(outputs), next(outputs)] == [1, 2]
    with pytest.raises(ModelError, match="ValueError: three"):
        next(outputs)


def test_asyncio_has_all_of_it(obedient: Instance) -> None:
    """request, gather, map and cancellation with AsyncClient."""

    async def use() -> None:
        async with AsyncClient(obedient.endpoint) as client:
            assert await client.request("hello", timeout=5) == "hello"
            assert await asyncio.gather(*(client.request(i) for i in range(200))) == list(range(200))
            assert [each async for each in client.map(range(300), concurrency=16)] == list(range(300))
            with pytest.raises(ModelError):
                await client.request(["raise", "no"])
            sleeping = asyncio.ensure_future(client.request(["sleep", 0.2]))
            await asyncio.sleep(0)
            sleeping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sleeping

    asyncio.run(use())


def test_a_queued_request_that_is_cancelled_never_runs(place: Place) -> None:
    """cancel() reaches the queue."""
    instance = place.up("plain.py:Sleeper")
    client = instance.client()
    running = client.submit(0.5)
    eventually(lambda: instance.queue()["outstanding"] == 1)
    waiting = [client.submit(0.5) for _ in range(20)]
    eventually(lambda: instance.queue()["queued"] == 20)
    began = moment()
    assert all(future.cancel() for future in waiting)
    eventually(lambda: instance.queue()["queued"] == 0, within=1)
    assert running.result(timeout=5) == 0.5
    assert client.request(0.0, timeout=5) == 0.0
    assert moment() - began < 2
    assert instance.queue()["cancelled"] == 20


def test_all_priorities_are_served(client: Client) -> None:
    """high, normal and low are accepted; another word is a mistake."""
    for priority in ("high", "normal", "low"):
        assert client.request("hello", priority=priority) == "hello"
    with pytest.raises(ValueError, match="high, normal or low"):
        client.request("hello", priority="urgent")  # type: ignore[arg-type]


def test_high_priority_overtakes_low(place: Place) -> None:
    """What waits as low is still waiting when high, submitted later, is answered."""
    client = place.up("plain.py:Sleeper").client()
    low = [client.submit(0.02, priority="low") for _ in range(60)]
    assert client.request(0.02, priority="high", timeout=5) == 0.02
    assert sum(future.done() for future in low) < 30
    for future in low:
        future.cancel()


# --- refusals


def test_a_timeout_is_deadline_exceeded(client: Client) -> None:
    """In time, whoever holds the request."""
    began = moment()
    with pytest.raises(DeadlineExceeded):
        client.request(["sleep", 1.0], timeout=0.2)
    assert 0.15 < moment() - began < 0.6
    future = client.submit(["sleep", 1.0], timeout=0.1)
    with pytest.raises(DeadlineExceeded):
        future.result(timeout=2)


def test_what_waits_past_its_deadline_never_runs(place: Place) -> None:
    """It ends in the queue, and the model hears nothing of it."""
    instance = place.up("plain.py:Sleeper")
    client = instance.client()
    first = client.submit(0.4)
    eventually(lambda: instance.queue()["outstanding"] == 1)
    late = [client.submit(5.0, timeout=0.1) for _ in range(10)]
    for future in late:
        with pytest.raises(DeadlineExceeded):
            future.result(timeout=2)
    assert first.result(timeout=5) == 0.4
    assert client.request(0.0, timeout=1) == 0.0


def test_a_full_queue_is_overloaded_within_milliseconds(place: Place) -> None:
    """The refusal is quick, says when to come again, and what was accepted is answered all the same."""
    instance = place.up("plain.py:Sleeper", "--queue-limit=10")
    client = instance.client()
    running = client.submit(0.6)
    eventually(lambda: instance.queue()["outstanding"] == 1)
    queued = [client.submit(0.01) for _ in range(10)]
    eventually(lambda: instance.queue()["queued"] == 10)
    times = []
    for _ in range(20):
        began = moment()
        with pytest.raises(Overloaded, match="queue-limit") as refusal:
            client.submit(0.01).result(timeout=2)
        times.append(moment() - began)
        assert refusal.value.retry_after_s > 0
    assert sorted(times)[10] < 0.02, times
    assert [future.result(timeout=5) for future in [running, *queued]] == [0.6] + [0.01] * 10
    assert instance.queue()["rejected"] == 20


@pytest.mark.timeout(30)
def test_map_waits_out_a_full_queue(place: Place) -> None:
    """A loop over many inputs does not fail because the queue is short."""
    client = place.up("plain.py:Steady", "--queue-limit=10").client()
    inputs = [["a", i] for i in range(500)]
    assert list(client.map(inputs, concurrency=100)) == [["answer", *each] for each in inputs]


def test_a_payload_over_the_limit_is_refused_before_it_is_sent(client: Client, obedient: Instance) -> None:
    """PayloadTooLarge names both figures, and the connection lives on."""
    rejected = obedient.queue()["rejected"]
    with pytest.raises(PayloadTooLarge, match=r"2097\d{3} bytes.*1048576"):
        client.request(bytes(2 * 2**20))
    with pytest.raises(PayloadTooLarge):
        client.submit(np.zeros(2 * 2**20, np.uint8))
    assert client.request("hello") == "hello"
    assert obedient.queue()["rejected"] == rejected


def test_an_answer_over_the_limit_is_refused_too(client: Client) -> None:
    """The one who asked learns of it; others do not."""
    with pytest.raises(PayloadTooLarge, match="result"):
        client.request(["zeros", 2 * 2**20])
    assert len(client.request(["zeros", 2**19])) == 2**19


def test_an_unknown_model_is_named_along_with_the_known(client: Client) -> None:
    """NoSuchModel lists what is served."""
    assert client.models == ["Obedient"]
    assert client.request("hello", model="Obedient") == "hello"
    with pytest.raises(NoSuchModel, match="serves Obedient, not 'Other'"):
        client.request("hello", model="Other")


def test_what_cannot_travel_is_a_type_error_that_says_where(client: Client) -> None:
    """A lambda, an object, a generator: each is refused with its place in the tree."""
    with pytest.raises(TypeError, match=r"\['f'\]\[1\].*function"):
        client.request({"f": [1, lambda: None]})
    with pytest.raises(TypeError, match="generator"):
        client.submit(each for each in [1])
    assert client.request("hello") == "hello"


def test_senseless_numbers_are_refused(client: Client) -> None:
    """A negative timeout, no concurrency: a mistake of the caller, told at once."""
    with pytest.raises(ValueError, match="timeout"):
        client.request(1, timeout=-1)
    with pytest.raises(ValueError, match="concurrency"):
        client.map([1], concurrency=0)


# --- models that fail


def test_one_bad_input_fails_alone(client: Client, obedient: Instance) -> None:
    """Its neighbours in the batch get their answers; it gets the model's own words."""
    payloads: list[Any] = [["n", i] for i in range(64)]
    payloads[13] = payloads[40] = ["raise", "unlucky"]
    futures = [client.submit(each) for each in payloads]
    for payload, future in zip(payloads, futures, strict=True):
        if payload[0] == "raise":
            with pytest.raises(ModelError, match="ValueError: unlucky"):
                future.result(timeout=10)
        else:
            assert future.result(timeout=10) == payload
    assert "Traceback" in obedient.log("r0") + obedient.log("r1")


@pytest.mark.parametrize(
    ("order", "says"),
    [
        (["sys.exit"], "SystemExit: 3"),
        (["interrupt"], "KeyboardInterrupt"),
        (["no memory"], "MemoryError"),
        (["lambda"], "cannot travel"),
    ],
)
def test_what_a_model_does_to_itself_is_a_model_error(
    client: Client, obedient: Instance, order: list[str], says: str
) -> None:
    """sys.exit, Ctrl-C, no memory, an output that cannot travel: the worker lives on."""
    pids = {each["pid"] for each in obedient.replicas().values()}
    with pytest.raises(ModelError, match=says):
        client.request(order, timeout=10)
    assert client.request("hello", timeout=10) == "hello"
    assert {each["pid"] for each in obedient.replicas().values()} == pids


def test_what_a_model_prints_is_kept_under_its_name(client: Client, obedient: Instance) -> None:
    """print, standard error and the bare descriptor all end in the replica's log, and harm nothing."""
    assert client.request(["print", "from print"]) == ["print", "from print"]
    assert client.request(["write stdout", "from write"]) == ["write stdout", "from write"]
    for text in ("from print", "from print (error)", "from write"):
        obedient.await_log(text, "r0", "r1")
        obedient.await_output(f"| {text}\n")


def test_a_model_that_forks_answers_once(client: Client, obedient: Instance) -> None:
    """The child that returns from predict() is ended; the parent's answer is the only one."""
    before = obedient.queue()["answered"]
    assert client.request(["fork and return"], timeout=10) == ["fork and return"]
    assert [client.request(i, timeout=10) for i in range(20)] == list(range(20))
    assert obedient.queue()["answered"] == before + 21


@pytest.mark.parametrize(("target", "says"), [("Miscounts", "0 outputs for 1 inputs"), ("NotAList", "returned a str")])
def test_a_model_that_breaks_its_contract_is_told_so(place: Place, target: str, says: str) -> None:
    """A wrong count of outputs, or no list, is a ModelError for all and no death."""
    instance = place.up(f"naughty.py:{target}")
    client = instance.client()
    for _ in range(3):
        with pytest.raises(ModelError, match=says):
            client.request(1, timeout=10)
    assert instance.replicas()["r0"]["restarts"] == 0


def test_a_hanging_model_is_killed_and_its_request_runs_elsewhere(place: Place) -> None:
    """After --timeout, on another worker; the one that hung comes back."""
    instance = place.up("naughty.py:HangsOnce", "--timeout=0.5", f"--set=flag={place.base}/flag", replicas=2)
    client = instance.client()
    began = moment()
    answer, pid = client.request("hang", timeout=20)
    assert answer == "hang"
    assert 0.4 < moment() - began < 5
    instance.await_ready(2)
    assert pid in [each["pid"] for each in instance.replicas().values()]
    assert "killed" in instance.output()


def test_without_retry_a_lost_worker_is_an_error(place: Place) -> None:
    """retry=False: never run twice; the caller is told that it may have run."""
    instance = place.up("naughty.py:Obedient", replicas=2)
    client = instance.client()
    future = client.submit(["sleep", 5.0], retry=False)
    holder = eventually(lambda: [each["id"] for each in instance.replicas().values() if each["outstanding"]])
    instance.kill(holder[0])
    with pytest.raises(WorkerLost, match="may not be retried"):
        future.result(timeout=5)
    assert client.request("hello", timeout=5) == "hello"
