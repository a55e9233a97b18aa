"""How an instance ends: in order, in a hurry, and when its supervisor is killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from orch.errors import Exit, NotRunning, Overloaded
from tests.process.harness import ClosedLoop, Place, eventually, moment


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_under_load_answers_all_that_was_accepted(place: Place, number: signal.Signals) -> None:
    """Nothing accepted is dropped, the exit code is 0, and neither a process nor a file is left."""
    instance = place.up("plain.py:Steady", "--set=seconds=0.02", replicas=2)
    client = instance.client()
    futures = [client.submit(["a", i]) for i in range(640)]
    eventually(lambda: sum(instance.queue()[each] for each in ("queued", "outstanding", "answered")) == 640)
    instance.send(number)
    instance.await_output("finishing what is accepted")
    late = client.submit(["late", 0])
    assert [future.result(timeout=20) for future in futures] == [["answer", "a", i] for i in range(640)]
    with pytest.raises((Overloaded, NotRunning)):
        late.result(timeout=10)
    assert instance.wait() == Exit.OK
    eventually(lambda: not place.processes(), within=2)
    assert not list(place.runtime.iterdir())
    assert "stopped" in instance.output()


def test_orch_down_answers_all_that_was_accepted(place: Place) -> None:
    """`orch down` is the same stop, and says how it went."""
    instance = place.up("plain.py:Steady", "--set=seconds=0.02", replicas=2)
    client = instance.client()
    futures = [client.submit(["a", i]) for i in range(320)]
    eventually(lambda: sum(instance.queue()[each] for each in ("queued", "outstanding", "answered")) == 320)
    down = place.orch("down")
    assert down.code == Exit.OK, down
    assert "320 requests answered" in down.out
    assert all(future.done() for future in futures)
    assert [future.result(timeout=5) for future in futures] == [["answer", "a", i] for i in range(320)]
    assert instance.wait() == Exit.OK


def test_a_worker_that_hangs_up_before_it_ends_is_stopped_in_order(place: Place) -> None:
    """It was told to end: that the balancer does not reach it any more is nobody's fault, and nobody kills it."""
    instance = place.up("reluctant.py:Reluctant")
    began = moment()
    assert instance.stop() == Exit.OK
    assert moment() - began > 0.8, "it had its time to end"
    assert "warning" not in instance.output()


def test_a_stop_under_a_closed_loop_refuses_and_never_loses(place: Place) -> None:
    """While clients go on asking, each request is either answered or refused as one that was never accepted."""
    instance = place.up("plain.py:Steady", replicas=2)
    with ClosedLoop(instance.client(), "a", 32) as loop:
        eventually(lambda: len(loop.answered) > 500)
        instance.send(signal.SIGTERM)
        assert instance.wait() == Exit.OK
        eventually(lambda: loop.num_sent == len(loop.answered) or loop.wrong)
    refusals = ("shutting down", "was stopped", "could not be submitted", "NotRunning")
    assert all(any(text in line for text in refusals) for line in loop.wrong), loop.wrong[:5]


def test_the_drain_deadline_ends_a_stop_and_the_exit_code_says_so(place: Place) -> None:
    """Requests that outlast the deadline are cut off; the stop is not DRAIN_INCOMPLETE for nothing."""
    instance = place.up("plain.py:Sleeper", "--drain-timeout=0.3", "--timeout=60")
    client = instance.client()
    futures = [client.submit(30.0), client.submit(30.0)]
    eventually(lambda: instance.queue()["outstanding"] >= 1)
    instance.send(signal.SIGTERM)
    instance.await_output("drain deadline")
    instance.send(signal.SIGTERM)  # the worker is in its batch: not waiting for that either
    assert instance.wait(within=8) == Exit.DRAIN_INCOMPLETE
    for future in futures:
        with pytest.raises(Exception, match="stopped"):
            future.result(timeout=5)


def test_each_further_interrupt_skips_a_rung(place: Place) -> None:
    """Ctrl-C once: drain; twice: terminate; three times: kill. Nobody waits for a request of ten minutes."""
    instance = place.up("plain.py:Sleeper", "--timeout=900")
    future = instance.client().submit(600.0)
    eventually(lambda: instance.queue()["outstanding"] == 1)
    began = moment()
    for said in ("finishing what is accepted", "not waiting"):
        instance.send(signal.SIGINT)
        instance.await_output(said)
    assert instance.process.poll() is None  # the worker may finish its batch
    instance.send(signal.SIGINT)
    assert instance.wait(within=5) == Exit.DRAIN_INCOMPLETE
    assert moment() - began < 8
    with pytest.raises(Exception, match="stopped"):
        future.result(timeout=5)


@pytest.mark.parametrize("target", ["plain.py:Echo", "naughty.py:Parent"])
def test_a_killed_supervisor_leaves_no_process(place: Place, target: str) -> None:
    """Within five seconds all is gone, also what the model has started, in whatever session."""
    instance = place.up(target, replicas=2)
    answer = instance.client().request(1)
    if isinstance(answer, list):
        assert set(answer) <= set(place.processes())
    assert len(place.processes()) >= 4
    instance.send(signal.SIGKILL)
    instance.wait(within=2)
    eventually(lambda: not place.processes(), within=5)
    assert not instance.directory.exists()


def test_a_killed_worker_takes_its_children_along(place: Place) -> None:
    """What a model started belongs to its worker: the next one begins with none of it left."""
    instance = place.up("naughty.py:Parent")
    children = instance.client().request(1)
    instance.kill("r0")
    eventually(lambda: not set(children) & set(place.processes()))
    assert not set(instance.client().request(1)) & set(children)


def test_an_orderly_stop_takes_the_models_children_along(place: Place) -> None:
    """SIGTERM to the supervisor, and what the models have started is gone when it is."""
    instance = place.up("naughty.py:Parent", replicas=2)
    assert instance.stop() == Exit.OK
    eventually(lambda: not place.processes(), within=2)


def test_a_killed_instance_can_be_started_again(place: Place) -> None:
    """Stale sockets and the lock of a supervisor that was killed are in nobody's way, not even at once."""
    instance = place.up("plain.py:Echo")
    instance.send(signal.SIGKILL)
    instance.wait()
    again = place.up("plain.py:Echo")
    assert again.client().request("hello") == "hello"


def test_stale_files_are_cleaned(place: Place) -> None:
    """Files that a crash of the whole machine would leave are replaced."""
    directory = place.runtime / "default"
    directory.mkdir(parents=True)
    for name in ("front.sock", "back.sock", "control.sock", "other"):
        (directory / name).write_text("stale")
    Path(place.runtime / "default.lock").write_text("1\n")
    instance = place.up("plain.py:Echo")
    assert instance.client().request("hello") == "hello"
    assert not (directory / "other").exists()


def test_a_worker_whose_supervisor_was_stopped_dead_is_gone_even_if_it_hangs(place: Place) -> None:
    """A model that computes for ever does not outlive the supervisor."""
    instance = place.up("plain.py:Sleeper", "--timeout=900")
    instance.client().submit(600.0)
    eventually(lambda: instance.queue()["outstanding"] == 1)
    worker = instance.pid_of("r0")
    instance.send(signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{worker}/cwd").exists(), within=5)
