"""Clients that vanish, never read, or flood: the others do not notice."""

from __future__ import annotations

import ast
import logging
import statistics

import pytest

from orch import bundles, payload, wire
from orch.wire import HEADER, Flag, Kind, Record
from tests.process import raw
from tests.process.harness import ClosedLoop, Place, eventually, moment, reset_peak, resident_bytes

log = logging.getLogger(__name__)

MIB = 2**20
# As the figure of one run: 5 x is what it is built for; a test on a busy machine asks for less.
MAX_RATIO = 20.0
# Answers of a mebibyte each, none of which is ever read.
NUM_LARGE = 400


@pytest.mark.parametrize("how", ["kill", "vanish", "leave"])
def test_a_client_that_is_gone_frees_its_queued_work(place: Place, how: str) -> None:
    """Killed, ended without a goodbye, or closed: its queue is gone at once, only what runs still runs."""
    instance = place.up("plain.py:Sleeper")
    with place.program("submit.py", instance.endpoint, "50", "0.5") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "submitted\n"
        eventually(lambda: instance.queue()["queued"] >= 40)
        if how == "kill":
            program.kill()
        else:
            program.communicate(f"{how}\n", timeout=10)
        began = moment()
        eventually(lambda: instance.queue()["queued"] == 0, within=2)
        assert instance.client().request(0.0) == 0.0
        assert moment() - began < 3
    eventually(lambda: instance.queue()["clients"] == 1)


def wrong_bundles() -> list[bytes]:
    """What begins like a bundle of two requests, and is none."""
    bodies = tuple(payload.encode(["wrong", i])[0] for i in range(2))
    right = Record(Kind.REQUEST, Flag.BUNDLE, request_id=1, rows=2, frames=bodies)
    records = [
        right._replace(kind=Kind.CANCEL),
        right._replace(kind=Kind.RESULT),  # of a client
        right._replace(flags=Flag.BUNDLE | Flag.STREAM),
        right._replace(request_id=2**64 - 1),
        right._replace(rows=1),
        right._replace(rows=3),
        right._replace(rows=257),
    ]
    heads = [head for record in records for (head,) in wire.messages([record])]
    ((good,),) = wire.messages([right])
    return [*heads, good * 129, good[: HEADER.size] + b"\xff" * (len(good) - HEADER.size)]


def answers_to(peer: raw.Raw, num: int) -> dict[int, list[Record]]:
    """The first so many, by request id; bundles opened."""
    found: dict[int, list[Record]] = {}
    while sum(map(len, found.values())) < num:
        records = peer.receive()
        assert records, found
        for record in records:
            for each in bundles.singles(record) if record.flags & Flag.BUNDLE else [record]:
                found.setdefault(each.request_id, []).append(each)
    return found


def test_who_sends_a_wrong_bundle_is_told_and_dropped_and_others_are_served(place: Place) -> None:
    """At once; its other requests are cancelled with it."""
    instance = place.up("plain.py:Steady")
    wrong = wrong_bundles()
    with ClosedLoop(instance.client(), "a", 16) as loop:
        for i, head in enumerate(wrong):
            with raw.connect(instance.endpoint) as peer:
                peer.send(raw.greeting(b"%016d" % i))
                welcome = peer.receive()
                assert welcome is not None
                assert welcome[0].kind == Kind.WELCOME
                peer.send([head])
                (error,) = answers_to(peer, 1)[0]
                assert wire.read_map(error.body, wire.ERROR_FIELDS)["code"] == "protocol", head
                assert peer.receive() is None
        loop.finish()
    assert instance.queue()["malformed"] == len(wrong)
    assert instance.queue()["clients"] == 1
    assert "Traceback" not in instance.log("balancer") + instance.log("r0")


def test_bundles_that_overlap_are_answered_request_by_request(place: Place) -> None:
    """Each number once, whichever bundle it came in first; what is wrong with one body is its own fault."""
    instance = place.up("plain.py:Steady", replicas=2)
    bodies = [payload.encode(["b", number])[0] for number in range(1, 41)]
    bodies[6] = b"\xc1"
    bundles = [
        Record(Kind.REQUEST, Flag.BUNDLE, request_id=start + 1, rows=stop - start, frames=tuple(bodies[start:stop]))
        for start, stop in ((0, 10), (5, 30), (0, 30), (29, 40), (39, 40))
    ]
    with raw.connect(instance.endpoint) as peer:
        ((head,),) = wire.messages([*bundles, Record(Kind.CANCEL, request_id=40)])
        peer.send([raw.greeting(b"it overlaps them")[0] + head])
        welcome = peer.receive()
        assert welcome is not None
        assert welcome[0].kind == Kind.WELCOME
        found = answers_to(peer, 39)
        assert peer.receive(within_s=0.2) is None
    assert sorted(found) == list(range(1, 40))
    for number, (answer,) in found.items():
        if number == 7:
            assert wire.read_map(answer.body, wire.ERROR_FIELDS)["code"] == "failed"
        else:
            assert payload.decode(answer.body) == ["answer", "b", number]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("transport", ["unix", "zeromq"])
def test_a_client_that_never_reads_is_dropped_and_nobody_else_notices(place: Place, transport: str) -> None:
    """Its answers are held up to a bound; beyond it, it is given up, and the balancer's memory stays small."""
    listen = f"ipc://{place.base}/listen.sock"
    instance = place.up("naughty.py:Obedient", f"--listen={listen}")
    balancer = instance.pid_of("balancer")
    assert balancer is not None
    before = resident_bytes(balancer)
    with raw.connect(instance.endpoint if transport == "unix" else listen, narrow=True) as sleeper:
        sleeper.send(raw.greeting(b"a client asleep!"))
        welcome = sleeper.receive()
        assert welcome is not None
        assert welcome[0].kind == Kind.WELCOME
        polite = instance.client()
        slowest = 0.0
        content, _ = payload.encode(["zeros", MIB])
        requests = [Record(Kind.REQUEST, request_id=number, body=content) for number in range(1, NUM_LARGE + 1)]
        for message in wire.messages(requests):
            sleeper.send(message)
        while "does not read" not in instance.log("balancer") and instance.queue()["answered"] < NUM_LARGE:
            began = moment()
            assert polite.request("hello", timeout=10) == "hello"
            slowest = max(slowest, moment() - began)
        grown = resident_bytes(balancer, peak=True) - before
        eventually(lambda: "does not read" in instance.log("balancer"), within=2)
        log.info("the balancer grew by %.0f MiB; the slowest polite request took %.3f s", grown / MIB, slowest)
        assert slowest < 2
        assert grown < 200 * MIB
    assert polite.request("still here") == "still here"


@pytest.mark.timeout(60)
def test_a_polite_client_is_served_beside_a_flooding_one(place: Place) -> None:
    """The flood does not delay it much, and does not fill the balancer's memory."""
    instance = place.up("plain.py:Steady", replicas=2)
    balancer = instance.pid_of("balancer")
    assert balancer is not None
    client = instance.client()

    def p99_of(seconds: float) -> float:
        times: list[float] = []
        end = moment() + seconds
        while moment() < end:
            began = moment()
            assert client.request(["polite", len(times)]) == ["answer", "polite", len(times)]
            times.append(moment() - began)
        return statistics.quantiles(times, n=100)[98]

    p99_of(0.5)
    alone = p99_of(3)
    reset_peak(balancer)
    before = resident_bytes(balancer)
    with place.program("flood.py", instance.endpoint) as flood:
        assert flood.stdout is not None
        assert flood.stdout.readline() == "flooding\n"
        eventually(lambda: instance.queue()["queued"] > 100)
        beside = p99_of(4)
        grown = resident_bytes(balancer, peak=True) - before
        out, err = flood.communicate(timeout=30)
    assert not err
    submitted, ends = out.split(" ", 1)
    log.info("p99 alone %.1f ms, beside %.1f ms: %.1f x", 1000 * alone, 1000 * beside, beside / alone)
    log.info("the balancer grew by %.1f MiB; the flood sent %s: %s", grown / MIB, submitted, ends.strip())
    assert beside < MAX_RATIO * alone
    assert grown < 64 * MIB
    assert ast.literal_eval(ends)["answered"] > 0


def test_clients_take_turns(place: Place) -> None:
    """A small closed loop beside a large one gets its share: turns are by client, not by request."""
    instance = place.up("plain.py:Steady", "--max-batch-size=1")
    with ClosedLoop(instance.client(), "big", 512) as big, ClosedLoop(instance.client(), "small", 4) as small:
        eventually(lambda: len(small.answered) > 50, within=10)
        counts = len(small.answered), len(big.answered)
        assert small.finish() + big.finish() > 0
    assert counts[0] > counts[1] / 3, counts
