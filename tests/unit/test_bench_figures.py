"""What the benchmark makes of what its clients saw."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the benchmarks are run from the checkout, never installed

from benchmarks.peers import bodies, figures, targets
from benchmarks.peers.figures import Sample
from benchmarks.peers.rows import BY_NAME as ROWS
from benchmarks.peers.workloads import POINTS, ideal

BY_NAME = {point.name: point for point in POINTS}


def test_a_percentile_is_a_latency_that_was_seen() -> None:
    """The smallest that enough of all do not exceed."""
    seen = figures.histogram([0.001] * 98 + [0.005, 0.020])
    assert figures.percentile_ms(seen, 0.5) == 1.0
    assert figures.percentile_ms(seen, 0.99) == 5.0
    assert figures.percentile_ms(seen, 1.0) == 20.0
    assert figures.percentile_ms(Counter(), 0.5) is None


def test_a_latency_is_kept_to_three_digits() -> None:
    """Microseconds below a millisecond, coarser above, never nothing."""
    assert [figures.rounded_us(each) for each in (0.000_123_4, 0.012_345, 1.234_56, 0.0)] == [123, 12_300, 1_230_000, 1]


def test_clients_side_by_side_count_as_one() -> None:
    """Their answers add up, the slowest of them says how long it took."""
    one, other = Sample(10, 1.0, 1, Counter({5: 10})), Sample(20, 2.0, 0, Counter({5: 1, 7: 19}))
    assert figures.merged([one, other]) == Sample(30, 2.0, 1, Counter({5: 11, 7: 19}))


def test_a_ratio_is_taken_within_each_round() -> None:
    """A round in which the machine was slow for both tells the same as any other; what is not there is left out."""
    ours: list[dict[str, float | None]] = [{"rps": 200.0}, {"rps": 20.0}, {"rps": 220.0}]
    theirs: list[dict[str, float | None]] = [{"rps": 100.0}, {"rps": 10.0}, {"rps": None}]
    assert figures.ratio(ours, theirs, "rps") == 2.0
    assert figures.ratio(ours, [], "rps") is None


def corrected(seen: Counter[int], interval_us: int) -> Counter[int]:
    """What wrk makes of a histogram: its stats_correct(), from the shortest latency up."""
    made = Counter(seen)
    for us in sorted(seen):
        if us >= 2 * interval_us:
            for lower in range(us - interval_us, interval_us, -interval_us):
                made[lower] += seen[us]
    return made


def test_what_wrk_makes_up_is_taken_out_again() -> None:
    """Every latency that was seen, and no other."""
    seen = Counter({90: 500, 100: 300, 250: 7, 301: 2, 1_000: 1, 5_050: 3})
    assert corrected(seen, 100) != seen
    assert figures.as_seen(corrected(seen, 100), 100) == seen


def test_wrk_is_believed_only_if_the_answers_can_be_whole() -> None:
    """It looks at no body: bytes that are missing make all answers errors, a bad status makes one."""
    text = "TOTALS 100 1000000 110000 0 0 0 1 0\nLATENCIES 10:60 20:40\n"
    sample = figures.wrk_sample(text, connections=10, body_bytes=1024)
    assert sample == Sample(99, 1.0, 1, Counter({10: 60, 20: 40}))
    assert figures.wrk_sample(text, connections=10, body_bytes=2048).answered == 0
    with pytest.raises(ValueError, match="unable to connect"):
        figures.wrk_sample("unable to connect", connections=10, body_bytes=1)


def test_a_recovery_is_seen_by_its_rate() -> None:
    """100 a second; after the kill half of that for a second, then all again."""
    before = [i / 100 for i in range(200)]
    halved = [2.0 + i / 50 for i in range(50)]
    after = [3.0 + i / 100 for i in range(300)]
    found = figures.recovery([*before, *halved, *after], failed=4, killed_at=2.0, end=6.0)
    assert found.before_rps == pytest.approx(100, rel=0.02)
    assert found.lost == 4
    assert found.full_rate_s == pytest.approx(0.96, abs=0.05)
    assert found.longest_gap_s == pytest.approx(0.02, abs=0.011)


def test_a_server_that_stays_at_half_never_recovers() -> None:
    """There is no such moment."""
    answered_at = [i / 100 for i in range(200)] + [2.0 + i / 50 for i in range(200)]
    assert figures.recovery(answered_at, 0, 2.0, 6.0).full_rate_s is None
    assert figures.recovery(answered_at[:200], 9, 2.0, 6.0).longest_gap_s == pytest.approx(4.0)


def test_the_ideal_keeps_every_worker_busy() -> None:
    """Full batches where enough is outstanding, else what is there, shared evenly."""
    full, part = ideal(BY_NAME["batch-256"]), ideal(BY_NAME["batch-16"])
    assert full is not None
    assert part is not None
    assert full.rps == pytest.approx(2 * 32 / 0.0082)
    assert full.time_s == pytest.approx(256 / full.rps)
    assert part.time_s == pytest.approx(0.0058)
    assert ideal(BY_NAME["echo-64"]) is None


def row(**changed: float) -> dict[str, float]:
    """One round of one server."""
    return {"rps": 100.0, "p50_ms": 10.0, "p99_ms": 20.0, "server_us": 50.0, **changed}


def test_a_target_is_held_against_the_one_it_names() -> None:
    """At least, at most, of the best peer, of the ideal, of orch itself elsewhere."""
    points = {
        "echo-64": {"orch": [row(rps=100)], "mosec": [row(rps=40)], "zmq_proxy": [row(server_us=100)]},
        "echo-8x8": {"orch": [row(rps=70)]},
        "batch-16": {"orch": [row(p50_ms=6)], "mosec": [row(p50_ms=12)], "ray": [row(p50_ms=10)]},
        "batch-256": {"orch": [row(rps=7_000, p99_ms=36)], "zmq_proxy": [row()]},
    }
    told = {text: (measured, kept) for text, measured, kept in targets.verdicts({"points": points, "kills": {}})}
    assert told["echo-64: requests/s >= 2.5 x mosec"] == ("2.50 x", "yes")
    assert told["echo-64: server CPU <= 0.75 x zmq_proxy"] == ("0.50 x", "yes")
    assert told["echo-8x8: requests/s >= 0.8 x echo-64"] == ("0.70 x", "no")
    assert told["batch-16: p50 <= 0.75 x the best peer"] == ("0.60 x", "yes")
    assert told["batch-256: requests/s >= 0.97 x the ideal"] == ("0.90 x", "no")
    assert told["batch-256: p99 <= 1.2 x the ideal"] == ("1.10 x", "yes")
    assert told["echo-64: requests/s >= 2 x nginx_uvicorn"] == ("not measured", "-")


def test_what_http_reaches_is_told_apart() -> None:
    """Each number of gateways is held against the same servers, in the same rounds."""
    found = {"orch": [row()], "orch_http": [row(rps=90)], "orch_http2": [row(rps=120)], "mosec": [row(rps=100)]}
    told = {text: kept for text, _, kept in targets.verdicts({"points": {"tensor-16": found}, "kills": {}})}
    assert told["tensor-16: orch_http's requests/s >= 1 x mosec"] == "no"
    assert told["tensor-16: orch_http2's requests/s >= 1 x mosec"] == "yes"
    assert told["tensor-16: requests/s >= 3 x mosec"] == "no"
    assert told["echo-64: orch_http's requests/s >= 8 x litserve"] == "-"


def test_a_gateway_is_ours_and_takes_tensors_elsewhere() -> None:
    """It runs in our environment, whoever drives it."""
    gateway, peer = ROWS["orch_http"], ROWS["mosec"]
    assert (gateway.is_peer, peer.is_peer) == (False, True)
    assert gateway.asked("echo") == ("/predict", bodies.BYTES)
    assert gateway.asked("tensor") == ("/v2/models/HttpMean/infer", bodies.RAW)
    assert peer.asked("tensor") == peer.asked("echo") == ("/inference", bodies.BYTES)
    headers, body = bodies.wrapped(bodies.RAW, b"abc")
    assert (headers["Inference-Header-Content-Length"], body) == ("0", b"abc")


def test_a_kill_must_cost_nothing_and_be_over_as_soon_as_for_others() -> None:
    """One lost request is too many."""
    ours, theirs = {"lost": 0, "full_rate_s": 0.2}, {"lost": 1, "full_rate_s": 0.3}
    told = targets.verdicts({"points": {}, "kills": {"orch": [ours, ours], "mosec": [theirs]}})
    assert told[-2:] == [
        ("kill: no request lost", "0 in 2 kills", "yes"),
        ("kill: full rate after <= mosec's 0.30 s", "0.20 s", "yes"),
    ]
    told = targets.verdicts({"points": {}, "kills": {"orch": [theirs], "mosec": [ours]}})
    assert [kept for _, _, kept in told[-2:]] == ["no", "no"]


def test_a_request_of_triton_says_how_long_its_head_is() -> None:
    """The head, then the bytes as they are."""
    headers, body = bodies.wrapped(bodies.TRITON, b"abc")
    size = int(headers["Inference-Header-Content-Length"])
    assert body[size:] == b"abc"
    assert b'"binary_data_size": 3' in body[:size]
    assert bodies.posted("h:1", "/x", {"A": "b"}, b"xyz").endswith(b"A: b\r\nContent-Length: 3\r\n\r\nxyz")
