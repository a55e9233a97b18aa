"""Figures out of what clients saw: histograms, percentiles, medians, and how a killed worker was made up for.

A histogram counts latencies by whole microseconds, rounded to three digits.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Histogram = Counter[int]

# A run is back at its full rate with the first WINDOW_S after the kill that reach this share of the rate before.
FULL = 0.9
WINDOW_S, STEP_S = 0.2, 0.02


@dataclass(frozen=True, slots=True)
class Sample:
    """What the clients of one run saw."""

    answered: int
    took_s: float
    errors: int
    latencies_us: Histogram


def histogram(latencies_s: Iterable[float]) -> Histogram:
    """Of latencies in seconds."""
    return Counter(rounded_us(each) for each in latencies_s)


def rounded_us(latency_s: float) -> int:
    """Three digits: what a percentile is good for."""
    us = max(1, round(latency_s * 1e6))
    scale = int(10 ** max(0, len(str(us)) - 3))
    return round(us / scale) * scale


def percentile_ms(latencies_us: Mapping[int, int], share: float) -> float | None:
    """The smallest latency that at least `share` of all do not exceed; None of nothing."""
    wanted = share * sum(latencies_us.values())
    seen = 0
    for us in sorted(latencies_us):
        seen += latencies_us[us]
        if seen >= wanted:
            return us / 1e3
    return None


def merged(samples: Sequence[Sample]) -> Sample:
    """Clients that ran side by side, as one."""
    return Sample(
        sum(each.answered for each in samples),
        max(each.took_s for each in samples),
        sum(each.errors for each in samples),
        sum((each.latencies_us for each in samples), Counter()),
    )


def figures_of(sample: Sample) -> dict[str, float | None]:
    """Requests per second, and milliseconds."""
    return {
        "rps": sample.answered / sample.took_s,
        "p50_ms": percentile_ms(sample.latencies_us, 0.5),
        "p99_ms": percentile_ms(sample.latencies_us, 0.99),
        "errors": sample.errors,
    }


def medians(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Of each figure, over the rounds that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: median(row.get(name) for row in rows) for name in names}


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def ratio(
    ours: Sequence[Mapping[str, float | None]], theirs: Sequence[Mapping[str, float | None]], name: str
) -> float | None:
    """Ours / theirs, round by round, for a slow phase of the machine hits both; the median."""
    pairs = [(mine.get(name), other.get(name)) for mine, other in zip(ours, theirs, strict=False)]
    return median(mine / other for mine, other in pairs if mine is not None and other)


# --- wrk ---------------------------------------------------------------------------------------------------------


STATUS = 3  # of wrk's kinds of errors: connect, read, write, status, timeout


def wrk_sample(text: str, connections: int, body_bytes: int) -> Sample:
    """What our wrk script printed: a line of totals, and a line with the histogram.

    body_bytes: of an answer. wrk looks at no body, but counts bytes: all answers are errors where some cannot be whole.
    """
    totals = re.search(r"^TOTALS (.*)$", text, re.MULTILINE)
    buckets = re.search(r"^LATENCIES(.*)$", text, re.MULTILINE)
    if totals is None or buckets is None:
        raise ValueError(f"wrk said: {text[-300:]}")
    answered, took_us, received, *errors = map(int, totals[1].split())
    seen = Counter({int(us): int(count) for us, _, count in (pair.partition(":") for pair in buckets[1].split())})
    per_connection = answered // connections
    latencies = as_seen(seen, took_us // per_connection) if per_connection else seen
    right = answered - errors[STATUS]
    if received < right * body_bytes:
        return Sample(0, took_us / 1e6, answered + sum(errors), latencies)
    return Sample(right, took_us / 1e6, sum(errors), latencies)


def as_seen(corrected: Histogram, interval_us: int) -> Histogram:
    """A histogram without the samples that wrk makes up against "coordinated omission".

    For each latency of at least two mean intervals it adds one at every interval below it, down to the interval.
    """
    seen = Counter(corrected)
    for us in sorted(seen, reverse=True):
        if us < 2 * interval_us or seen[us] <= 0:
            continue
        for made_up in range(us - interval_us, interval_us, -interval_us):
            seen[made_up] -= seen[us]
    return Counter({us: count for us, count in seen.items() if count > 0})


# --- kill --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recovery:
    """How the loss of a worker looked to the client. None: not while it was looked at."""

    before_rps: float
    lost: int
    full_rate_s: float | None
    longest_gap_s: float


def recovery(answered_at: Sequence[float], failed: int, killed_at: float, end: float) -> Recovery:
    """answered_at: seconds from the run's start, in order; killed_at and end: likewise."""

    def rate(begin: float, until: float) -> float:
        return sum(begin <= at < until for at in answered_at) / (until - begin)

    before = rate(min(0.5, killed_at / 2), killed_at)
    starts = (killed_at + i * STEP_S for i in range(max(0, int((end - WINDOW_S - killed_at) / STEP_S))))
    full = next((at for at in starts if rate(at, at + WINDOW_S) >= FULL * before), None)
    after = [killed_at, *(at for at in answered_at if at > killed_at), end]
    gap = max(later - earlier for earlier, later in pairwise(after))
    return Recovery(before, failed, None if full is None else full - killed_at, gap)
