"""The client as a citizen of its process: threads, forks, ends, interrupts, memory."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orch import Client
from orch.errors import Closed, ConfigError, NotRunning, WorkerLost
from tests.process.harness import Instance, Place, eventually, moment, reset_peak, resident_bytes

log = logging.getLogger(__name__)

MB = 1_000_000
LARGE = 100 * MB
# "About one copy": allocators and the interpreter itself may add to it.
ONE_COPY = 1.5


@pytest.fixture(scope="module")
def obedient(shared_place: Place) -> Instance:
    """Two replicas of a model that does what requests say."""
    return shared_place.up("naughty.py:Obedient", replicas=2)


def test_one_client_serves_eight_threads(obedient: Instance) -> None:
    """request, submit, map and stream at once; every thread gets its own answers."""
    client = obedient.client()

    def work(number: int) -> bool:
        mine = [[number, i] for i in range(200)]
        right = [client.request(each, timeout=20) for each in mine] == mine
        right &= list(client.map(mine, concurrency=16)) == mine
        right &= [future.result(timeout=20) for future in [client.submit(each) for each in mine]] == mine
        return right and [list(client.stream(each)) for each in mine[:20]] == [[each] for each in mine[:20]]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_fork_shares_no_socket(obedient: Instance) -> None:
    """Child and parent both go on with the client that they have, and get their own answers."""
    with obedient.place.program("fork.py", obedient.endpoint) as program:
        out, err = program.communicate(timeout=40)
    assert out == "ok\n", err
    eventually(lambda: obedient.queue()["clients"] <= len(obedient._clients))  # noqa: SLF001  its own harness


@pytest.mark.parametrize("how", ["request", "thread", "pending", "collected", "streaming"])
def test_a_client_need_not_be_closed(obedient: Instance, how: str) -> None:
    """A program that just ends does end, at once, and the balancer forgets it."""
    before = obedient.queue()["clients"]
    with obedient.place.program("careless.py", obedient.endpoint, how) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ended\n"
        began = moment()
        _, err = program.communicate(timeout=20)
        assert moment() - began < 2
    assert (program.returncode, err) == (0, "")
    eventually(lambda: obedient.queue()["clients"] <= before, within=2)


def test_an_interrupt_ends_a_request(place: Place) -> None:
    """Ctrl-C while request() waits is KeyboardInterrupt at once, and the client is as good as before."""
    instance = place.up("naughty.py:Obedient", replicas=2)
    with place.program("careless.py", instance.endpoint, "interrupted") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "asking\n"
        holder = eventually(lambda: [each["id"] for each in instance.replicas().values() if each["outstanding"]])
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "interrupted\n"
        _, err = program.communicate(timeout=20)
    assert (program.returncode, err) == (0, "")
    instance.kill(holder[0])  # it sleeps for half a minute; nobody waits for it


def test_close_ends_what_is_unanswered(obedient: Instance) -> None:
    """Pending futures end in Closed, a second close is nothing, and a closed client says that it is."""
    client = Client(obedient.endpoint)
    futures = [client.submit(["sleep", 0.5]) for _ in range(10)]
    stream = client.stream(["sleep", 0.5])
    client.close()
    client.close()
    for future in futures:
        with pytest.raises(Closed):
            future.result(timeout=2)
    with pytest.raises(Closed):
        list(stream)
    with pytest.raises(Closed, match="make a new one"):
        client.request("hello")


def test_close_ends_a_request_of_another_thread(obedient: Instance) -> None:
    """Nobody is left waiting for ever."""
    client = Client(obedient.endpoint)
    ended: list[BaseException] = []

    def ask() -> None:
        try:
            client.request(["sleep", 0.8])
        except Closed as err:
            ended.append(err)

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(lambda: obedient.queue()["outstanding"] > 0)
    client.close()
    thread.join(5)
    assert not thread.is_alive()
    assert len(ended) == 1


def test_callbacks_may_use_the_client(obedient: Instance) -> None:
    """A done-callback runs in the client's own thread, and may submit."""
    client = obedient.client()
    answers: list[Any] = []

    def again(future: Any) -> None:
        answers.append(future.result())
        if len(answers) < 100:
            client.submit(len(answers)).add_done_callback(again)

    client.submit(0).add_done_callback(again)
    eventually(lambda: answers == list(range(100)))


def test_a_callback_may_close_the_client(obedient: Instance) -> None:
    """It runs in the driving thread, which cannot wait for itself; what is unanswered ends all the same."""
    client = obedient.client()
    waiting = [client.submit(["sleep", 0.5]) for _ in range(4)]
    closed = threading.Event()

    def close(_future: Any) -> None:
        client.close()
        closed.set()

    client.submit("hello", priority="high").add_done_callback(close)
    assert closed.wait(5)
    for future in waiting:
        assert future.done() or isinstance(future.exception(timeout=5), Closed)


def test_no_call_waits_for_ever_when_the_client_closes_meanwhile(obedient: Instance) -> None:
    """submit() races close(); every future ends."""
    for _ in range(10):
        client = Client(obedient.endpoint)
        futures: list[Any] = []

        def ask(client: Client = client, futures: list[Any] = futures) -> None:
            with contextlib.suppress(Closed):
                while True:
                    futures.append(client.submit(1))

        thread = threading.Thread(target=ask)
        thread.start()
        eventually(lambda futures=futures: len(futures) > 20)  # type: ignore[misc]
        client.close()
        thread.join(5)
        for future in futures:
            future.exception(timeout=5)


def test_a_callback_that_exits_takes_no_other_call_with_it_for_ever(obedient: Instance) -> None:
    """What was unanswered ends with an error, and the client goes on."""
    client = obedient.client()
    others = [client.submit(["sleep", 0.3]) for _ in range(4)]

    def leave(_future: Any) -> None:
        raise SystemExit

    client.submit("hello").add_done_callback(leave)
    for other in others:
        other.exception(timeout=5)
    assert client.submit("hello").result(timeout=5) == "hello"


def test_collected_clients_leave_nothing_behind(obedient: Instance) -> None:
    """No thread, no descriptor, no connection; a future that is under way keeps its client."""

    def use() -> None:
        client = Client(obedient.endpoint)
        assert client.submit("hello").result(timeout=5) == "hello"

    def leavings() -> tuple[int, int]:
        gc.collect()
        names = [thread.name for thread in threading.enumerate()]
        return names.count("orch-client"), len(list(Path("/proc/self/fd").iterdir()))

    threads, descriptors = leavings()
    for _ in range(10):
        use()
    assert Client(obedient.endpoint).submit(["sleep", 0.2]).result(timeout=5) == ["sleep", 0.2]
    eventually(lambda: leavings()[0] <= threads and leavings()[1] <= descriptors)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "foo",
        "ipc://relative",
        f"ipc:///{'x' * 107}",
        "unix://relative",
        f"unix:///{'x' * 107}",
        "unix:///a\0b",
        "tcp://localhost",
        "tcp://host:0",
        "tcp://h:70000",
    ],
)
def test_what_is_no_endpoint_is_said_so(endpoint: str) -> None:
    """With the value, and what is allowed."""
    with pytest.raises(ConfigError, match=re.escape(repr(endpoint)) + ".*tcp://host:port"):
        Client(endpoint)


def test_the_command_line_names_a_bad_endpoint_in_one_line(place: Place) -> None:
    """And ends with the code of a setting that cannot work."""
    finished = place.orch("request", "--endpoint", "foo", "hello")
    assert finished.code == 3
    assert "'foo'" in finished.error_line()


def test_a_client_without_an_instance_says_not_running(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name at once, by endpoint after connect_timeout; both say how to start one."""
    monkeypatch.setenv("ORCH_RUNTIME_DIR", str(place.runtime))
    with pytest.raises(NotRunning, match="orch up"):
        Client()
    for scheme in ("unix", "ipc"):
        began = moment()
        with pytest.raises(NotRunning, match="orch up"):
            Client(f"{scheme}://{place.base}/nobody.sock", connect_timeout=0.3)
        assert 0.2 < moment() - began < 1.5


def test_a_client_survives_a_new_instance(place: Place) -> None:
    """Stopped and started again: the same client object goes on, as the same endpoint answers."""
    instance = place.up("plain.py:Echo")
    client = Client(instance.endpoint)
    assert client.request("hello") == "hello"
    instance.stop()
    instance = place.up("plain.py:Echo")
    assert client.request("hello again", timeout=10) == "hello again"
    assert list(client.map(range(100))) == list(range(100))
    client.close()


def test_retry_false_is_not_resent_to_a_new_balancer(place: Place) -> None:
    """What may run only once ends in WorkerLost when the balancer dies with it; the rest is answered."""
    instance = place.up("plain.py:Sleeper")
    client = instance.client()
    once = client.submit(0.5, retry=False)
    often = [client.submit(0.05) for _ in range(10)]
    eventually(lambda: instance.queue()["outstanding"] + instance.queue()["queued"] == 11)
    instance.kill("balancer")
    with pytest.raises(WorkerLost):
        once.result(timeout=10)
    assert [future.result(timeout=20) for future in often] == [0.05] * 10


# --- arrays


@pytest.mark.parametrize("size", [0, 10, 10_000, 1_000_000])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "complex128", "datetime64[ns]", "float16", "bool"])
def test_numpy_arrays_travel_both_ways(describe: Instance, size: int, dtype: str) -> None:
    """With their dtype and shape, inline or in a frame of their own."""
    array = (np.arange(size) % 100).astype(dtype).reshape(2, -1)
    answer = describe.client().request(array, timeout=10)
    assert (answer["type"], answer["dtype"]) == ("ndarray", dtype)
    assert answer["back"].dtype == array.dtype
    assert np.array_equal(answer["back"], array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_torch_tensors_travel_both_ways(describe: Instance, dtype: str) -> None:
    """bfloat16 too; the model sees a tensor."""
    torch = pytest.importorskip("torch")
    for shape in ((), (3, 5), (300, 500)):
        tensor = torch.ones(shape).to(getattr(torch, dtype))
        answer = describe.client().request(tensor, timeout=30)
        assert (answer["type"], answer["dtype"]) == ("Tensor", f"torch.{dtype}")
        assert torch.equal(answer["back"], tensor)


@pytest.fixture(scope="module")
def describe(shared_place: Place) -> Instance:
    """A model that says what arrived."""
    return shared_place.up("arrays.py:Describe", name="describe")


@pytest.mark.timeout(60)
def test_a_large_array_is_held_about_once_in_each_process(place: Place) -> None:
    """100 MB there and 100 MB back: client, balancer and worker each rise by one copy, and fall again."""
    instance = place.up("arrays.py:Large")
    pids = {"balancer": instance.pid_of("balancer"), "worker": instance.pid_of("r0")}
    rises: dict[str, dict[str, float]] = {}
    with place.program("large.py", instance.endpoint, str(LARGE)) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        for turn in range(6):
            before = {}
            for who, pid in pids.items():
                assert pid is not None
                reset_peak(pid)
                before[who] = resident_bytes(pid)
            if turn:
                program.stdin.write("\n")
                program.stdin.flush()
            name = program.stdout.readline().strip()
            rises[name] = {
                who: (resident_bytes(pid, peak=True) - before[who]) / LARGE for who, pid in pids.items() if pid
            }
        program.stdin.write("\n")
        program.stdin.flush()
        for name, rise in json.loads(program.stdout.readline()).items():
            rises[name]["client"] = rise / LARGE
    log.info("copies: %s", {name: {who: round(n, 2) for who, n in each.items()} for name, each in rises.items()})
    assert rises["send"]["client"] < 0.2  # it has the array already, and sends it from there
    assert rises["send"]["balancer"] < ONE_COPY
    assert rises["send"]["worker"] < ONE_COPY
    assert rises["receive"]["worker"] < ONE_COPY  # the model's own array, sent from there
    assert rises["receive"]["balancer"] < ONE_COPY
    assert rises["receive"]["client"] < ONE_COPY
    eventually(lambda: all(pid and resident_bytes(pid) < LARGE for pid in pids.values()))
