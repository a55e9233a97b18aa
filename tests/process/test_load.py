"""A load on a real instance: its figures, its end, and the samples that it is made of."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orch.errors import ConfigError
from orch.load import load_samples, measure
from orch.samples import write_samples
from orch.supervising.process import Child, base_environ
from tests.process.harness import Instance, Place, eventually, moment

SAMPLES = [["who", 1], ["who", 2], ["who", 3]]


def test_the_rate_is_what_the_model_can_do(place: Place) -> None:
    """Twenty milliseconds for a batch of 8 are 400 answers a second, and no more."""
    instance = place.up("plain.py:Steady", "--set=seconds=0.02")
    rate = measure(instance.endpoint, SAMPLES, 16, window_s=0.5, max_s=10.0)
    assert 200 < rate.answers_per_s <= 402, rate
    assert rate.answers_per_s == pytest.approx(rate.answers / rate.seconds)
    assert rate.answers >= 2 * 4 * 16 or not rate.steady, rate
    assert 0.02 <= rate.p50_s <= rate.p99_s, rate
    assert (rate.outstanding, rate.errors, rate.error) == (16, 0, None)
    eventually(lambda: not instance.queue()["outstanding"] + instance.queue()["queued"])
    assert instance.queue()["rejected"] == 0


def test_a_load_larger_than_a_clients_window_takes_several(place: Place) -> None:
    """Nothing of it is kept back: the balancer has all of it, here in four sessions."""
    instance = place.up("plain.py:Steady", "--client-queue-limit=8", "--set=seconds=0.05")
    seen: list[int] = []

    def look(answers: int) -> None:
        if answers > 32 and not seen:
            queue = instance.queue()
            seen.append(queue["outstanding"] + queue["queued"])

    rate = measure(instance.endpoint, SAMPLES, 32, window_s=0.5, max_s=2.0, on_tick=look)
    assert (rate.outstanding, rate.errors) == (32, 0)
    assert seen
    assert seen[0] > 8, "more than one client may have"


def test_a_full_queue_is_counted_and_slows_nothing_down(place: Place) -> None:
    """What was refused rests before it is sent again: a hundred times a second would be a flood."""
    instance = place.up("plain.py:Steady", "--queue-limit=1", "--set=seconds=0.02")
    rate = measure(instance.endpoint, SAMPLES, 64, window_s=0.5, max_s=2.0)
    assert rate.answers > 0
    assert 0 < rate.errors <= 64 * 25, rate
    assert rate.error is not None
    assert rate.error.startswith("Overloaded: ")


def test_a_model_that_fails_its_samples_is_counted(place: Place) -> None:
    """No answers: no rate, and the reason."""
    instance = place.up("naughty.py:Obedient")
    rate = measure(instance.endpoint, [["raise", "odd"]], 4, max_s=1.0)
    assert (rate.answers, rate.answers_per_s, rate.p50_s, rate.steady) == (0, 0.0, 0.0, False)
    assert rate.errors >= 4
    assert rate.error == "ModelError: ValueError: odd"


def test_it_ends_also_when_nothing_is_answered(place: Place) -> None:
    """A batch of 3 s, and one second to measure in."""
    instance = place.up("plain.py:Sleeper")
    began = moment()
    rate = measure(instance.endpoint, [3.0], 4, max_s=1.0)
    assert moment() - began < 2.5
    assert (rate.answers, rate.answers_per_s, rate.errors) == (0, 0.0, 0)
    eventually(lambda: not instance.queue().get("queued"))


def test_what_interrupts_a_load_ends_it(place: Place) -> None:
    """A callback, or Ctrl-C: it passes through, and nothing is left queued."""
    instance = place.up("plain.py:Steady")

    def interrupt(answers: int) -> None:
        if answers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(instance.endpoint, SAMPLES, 64, on_tick=interrupt)
    eventually(lambda: not instance.queue()["outstanding"] + instance.queue()["queued"])


def test_a_load_needs_an_instance_that_takes_its_samples(place: Place) -> None:
    """With the knob to turn."""
    instance = place.up("plain.py:Echo", "--max-payload=1KiB")
    with pytest.raises(
        ConfigError, match=r"max_payload = 1\.0 KiB: a warm-up sample has 2\.0 KiB; `orch up --max-payload`"
    ):
        measure(instance.endpoint, [b"x" * 2000], 1)


# --- samples


def test_a_worker_writes_the_samples_of_its_warm_up(place: Place) -> None:
    """Before it is READY, once; an instance that was not asked to writes none."""
    path = place.base / "samples"
    place.up("paying.py:Apart", f"--samples={path}", f"--set=clock={place.base}/clock", "--set=apart=0", replicas=2)
    assert load_samples(path) == ["one", "another"]
    assert [each.name for each in place.base.iterdir() if each.name.startswith("samples")] == ["samples"]


def test_a_worker_without_samples_says_so_and_serves(place: Place) -> None:
    """Whoever wants a load learns what to do."""
    path = place.base / "samples"
    instance = place.up("plain.py:Echo", f"--samples={path}")
    with pytest.raises(ConfigError, match=r"Echo's warmup\(\) returns no samples.*use --replicas auto or a number"):
        load_samples(path)
    assert instance.client().request("still here") == "still here"


def test_a_worker_that_cannot_write_its_samples_serves(place: Place) -> None:
    """Its log says why."""
    path = place.base / "missing" / "samples"
    instance = place.up("plain.py:Echo", f"--samples={path}")
    assert instance.client().request("still here") == "still here"
    instance.await_log("the warm-up samples could not be written", "r0")
    with pytest.raises(ConfigError, match="no warm-up samples at"):
        load_samples(path)


# --- the process that a search starts


@pytest.fixture
def loader(place: Place) -> Iterator[Child]:
    """One of its own, which is gone afterwards."""
    child = Child("orch.supervising.loader", (), base_environ(place.environ(), "a-test"))
    yield child
    child.signal(signal.SIGKILL)
    child.reap()
    child.close()


def hear(child: Child) -> dict[str, Any]:
    """The next message."""
    messages = eventually(lambda: child.link.receive() or child.link.closed, within=20.0)
    assert isinstance(messages, list), child.output.read()
    return messages[0]


def begin(child: Child, instance: Instance, place: Place) -> None:
    """Hand it the samples."""
    write_samples(Path(place.base) / "samples", SAMPLES, "Steady")
    child.link.send(do="begin", endpoint=instance.endpoint, samples=str(place.base / "samples"))


def test_a_loader_measures_as_often_as_it_is_asked(place: Place, loader: Child) -> None:
    """Its answers are the fields of a rate."""
    instance = place.up("plain.py:Steady")
    begin(loader, instance, place)
    for outstanding in (8, 16):
        loader.link.send(do="measure", outstanding=outstanding, max_s=1.5)
        rate = hear(loader)
        assert (rate["event"], rate["outstanding"], rate["errors"]) == ("measured", outstanding, 0)
        assert rate["answers_per_s"] > 0


def test_a_loader_without_samples_says_so_and_ends(place: Place, loader: Child) -> None:
    """A measurement that was asked for with the same breath fails without a traceback."""
    loader.link.send(do="begin", endpoint=f"unix://{place.base}/nobody.sock", samples=str(place.base / "none"))
    loader.link.send(do="measure", outstanding=8, max_s=1.5)
    failed = hear(loader)
    assert (failed["event"], failed["type"]) == ("failed", "ConfigError")
    eventually(lambda: select.select([loader.pidfd], [], [], 0)[0])
    assert not loader.output.read()


def test_a_loader_without_an_instance_says_so_and_lives(place: Place, loader: Child) -> None:
    """The balancer may be back for the next measurement."""
    write_samples(place.base / "samples", SAMPLES, "Steady")
    loader.link.send(do="begin", endpoint=f"unix://{place.base}/nobody.sock", samples=str(place.base / "samples"))
    loader.link.send(do="measure", outstanding=8, max_s=1.5)
    failed = hear(loader)
    assert (failed["event"], failed["type"]) == ("failed", "NotRunning")
    assert not select.select([loader.pidfd], [], [], 0.5)[0]


def test_a_loader_ends_with_its_link_amid_a_measurement(place: Place, loader: Child) -> None:
    """Nothing of the load stays behind, and the instance serves on."""
    instance = place.up("plain.py:Steady")
    begin(loader, instance, place)
    loader.link.send(do="measure", outstanding=64, max_s=30.0)
    eventually(lambda: instance.queue().get("outstanding"), within=10.0)
    loader.link.socket.shutdown(socket.SHUT_RDWR)
    eventually(lambda: select.select([loader.pidfd], [], [], 0)[0], within=2.0)
    eventually(lambda: not instance.queue()["outstanding"] + instance.queue()["queued"])
    assert instance.client().request(["me", 1]) == ["answer", "me", 1]


def test_a_loader_that_is_killed_leaves_nothing_queued(place: Place, loader: Child) -> None:
    """The balancer sees that its client is gone."""
    instance = place.up("plain.py:Steady")
    begin(loader, instance, place)
    loader.link.send(do="measure", outstanding=64, max_s=30.0)
    eventually(lambda: instance.queue().get("outstanding"), within=10.0)
    os.kill(loader.pid, signal.SIGKILL)
    eventually(lambda: not instance.queue()["outstanding"] + instance.queue()["queued"])


def test_requests_of_real_clients_go_first(place: Place) -> None:
    """64 sessions of the load wait for eight batches' turns: one of a client waits for the two that are under way."""
    instance = place.up("plain.py:Steady", "--set=seconds=0.05", "--client-queue-limit=1")
    client = instance.client()
    client.request(["me", 0])
    waits_s: list[float] = []

    def ask(answers: int) -> None:
        if answers > 64 and len(waits_s) < 5:
            began = moment()
            assert client.request(["me", 1]) == ["answer", "me", 1]
            waits_s.append(moment() - began)

    measure(instance.endpoint, SAMPLES, 64, window_s=1.0, max_s=4.0, on_tick=ask)
    assert len(waits_s) == 5
    assert sorted(waits_s)[2] < 0.3, waits_s
