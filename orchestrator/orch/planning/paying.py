"""How many replicas pay: one more at a time, until one more brings too little; then a look further ahead.

One more replica that brings 4 % is hardly worth its while, but five more may bring 13 % together, and one count may do
badly by chance between two that do well: so a quarter more are tried at once, and half as many more if the last step
still brought something, and so on from there for as long as that pays.

Takes what was measured and says what to do next; it measures nothing and starts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A smaller count is as good as the best if that gives no more than this on top ("+1 %"): less would be noise, and a
# replica costs memory.
AS_GOOD = 0.02
# A leap ahead pays if it brings this part of what one step has to bring, in all.
LEAP_SHARE = 0.5
# One that loses more than this shows that there is nothing to be had further on.
LOSS = 0.03
# From an answer to the next request at the worker and back: what is on the way keeps no replica busy.
TRANSIT_S = 0.002
MAX_TRANSIT_BATCHES = 16  # for each replica: enough for batches that take no time at all
# For a measurement. Beyond the first, slow models are given this many of their batches (a ramp of 2 and two windows of
# 8, with some to spare), but not for ever.
MEASURE_S, MEASURE_BATCHES, MAX_MEASURE_S = 30.0, 25, 120.0
FROM_HERE_WHOLE = 100.0  # answers/s that are shown without decimals

# What was measured, in order: so many replicas gave so many answers per second. A count may be there twice.
History = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Try:
    """Run so many replicas, then measure."""

    count: int


@dataclass(frozen=True, slots=True)
class Again:
    """Measure the same count once more: the last figure may have been noise."""

    count: int


@dataclass(frozen=True, slots=True)
class Keep:
    """It is decided. because: sentences for people."""

    count: int
    because: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """What saturates some replicas: requests outstanding, and seconds that measuring it may take."""

    outstanding: int
    max_s: float


def load_for(count: int, max_batch_size: int, batch_s: float) -> Load:
    """A running batch and one ahead for each replica, and what is on its way. batch_s: seconds that a full one takes.

    Replicas that run in turns take `count` times as long.
    """
    rows = count * max_batch_size
    in_transit = math.ceil(rows * TRANSIT_S / max(batch_s, TRANSIT_S / MAX_TRANSIT_BATCHES))
    max_s = min(MAX_MEASURE_S, max(MEASURE_S, MEASURE_BATCHES * batch_s * count))
    return Load(2 * rows + in_transit, max_s)


def decide(history: History, *, most: int, min_gain: float, cannot: str | None = None) -> Try | Again | Keep:
    """What to do after the last measurement. Rates are positive.

    most: replicas that fit. min_gain: what one more has to bring, as a share. cannot: why no more can be had or
    measured, which ends it.
    """
    if cannot is not None:
        return _keep(history, cannot)
    if not history:
        return Try(1)
    too_little = f"less than {100 * min_gain:g} % more"
    num_climbed = _climbed(history, min_gain)
    if num_climbed is None:
        count, rates = history[-1][0], rates_of(history)
        if count > 1 and rates[count] < rates[count - 1] * (1 + min_gain):
            return Again(count)
        return Try(count + 1) if count < most else _keep(history, "there is room for no more")
    further = _further(rates_of(history[:num_climbed]), history[num_climbed:], 1 + min_gain * LEAP_SHARE)
    if further is None or max(count for count, _ in history) >= most:
        return _keep(history, too_little)
    return Try(min(further, most))


def _climbed(history: History, min_gain: float) -> int | None:
    """How many of the measurements were made one count at a time; None: that goes on."""
    rates: dict[int, float] = {}
    for place, (count, rate) in enumerate(history, start=1):
        again = count in rates
        rates[count] = max(rate, rates.get(count, 0.0))
        if again and rates[count] < rates[count - 1] * (1 + min_gain):
            return place
    return None


def _further(climbed: Mapping[int, float], leapt: History, enough: float) -> int | None:
    """The count to leap to from the last one that paid, or None: looking further does not pay.

    enough: what a rate has to be for a leap to pay, in parts of the last one that paid.
    """
    last = max(climbed)
    flat = climbed[last] < climbed[last - 1] * enough
    paid = last - 1 if flat else last
    paid_rate, misses = climbed[paid], 0
    if climbed[last] < paid_rate * (1 - LOSS):
        return None
    for count, rate in leapt:
        if rate >= paid_rate * enough:
            paid, paid_rate, misses, flat = count, rate, 0, False
        elif rate < paid_rate * (1 - LOSS):
            return None
        else:
            misses += 1
    leaps = [max(paid + 2, math.ceil(1.25 * paid)), max(paid + 3, math.ceil(1.5 * paid))]
    return leaps[misses] if misses < (1 if flat else 2) else None


def rates_of(history: History) -> dict[int, float]:
    """The rate of each count, smallest count first: the higher one of two, because what disturbs only lowers it."""
    rates: dict[int, float] = {}
    for count, rate in sorted(history):
        rates[count] = max(rate, rates.get(count, 0.0))
    return rates


def told(history: History) -> str:
    """The last measurement for people: "2 replicas: 88.1 answers/s (+96 %)"."""
    count, rate = history[-1]
    again = " once more" if [each for each, _ in history].count(count) > 1 else ""
    return f"{_replicas(count)}{again}: {_per_s(rate)} answers/s{_more(_gain(history, count, rate))}"


def _keep(history: History, why: str) -> Keep:
    rates = rates_of(history)
    best = max(rates.values(), default=0.0)
    kept = next((count for count, rate in rates.items() if rate * (1 + AS_GOOD) >= best), 1)
    figures = [f"{count}: {_per_s(rate)}/s{_more(_gain(history, count, rate))}" for count, rate in rates.items()]
    if figures:
        first = next(iter(rates))
        figures[0] = figures[0].replace(f"{first}:", f"{_replicas(first)}:", 1)
    sentence = f"{', '.join(figures)}: {why}" if figures else why
    return Keep(kept, (f"{sentence}; {_replicas(kept)} kept",))


def _gain(history: History, count: int, rate: float) -> float | None:
    """The share by which `rate` is more than that of the next smaller count; None: there is none."""
    smaller = [each for other, each in rates_of(history).items() if other < count]
    return rate / smaller[-1] - 1 if smaller else None


def _replicas(count: int) -> str:
    return f"{count} replica{'s' if count > 1 else ''}"


def _per_s(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= FROM_HERE_WHOLE else f"{rate:#.3g}"


def _more(gain: float | None) -> str:
    return "" if gain is None else f" ({round(100 * gain):+d} %)"
