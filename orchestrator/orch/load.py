"""A closed-loop load on a running instance: how many answers a second it gives to so many requests outstanding.

    from orch.load import load_samples, measure

    rate = measure("unix:///path/front.sock", load_samples("samples.msgpack"), outstanding=64)
    print(rate.answers_per_s, rate.p99_s)

It speaks as a client does, at the lowest priority, so requests of real clients go first. Payloads are encoded once, and
each answer sends the next request from the thread that received it: what is measured is the instance.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from orch import payload as payloads
from orch.calls import WINDOW_BYTES, Call
from orch.connection import check_endpoint
from orch.driver import Driver
from orch.errors import ConfigError
from orch.planning.sizes import format_size
from orch.samples import load_samples
from orch.steady import Edge, Steady
from orch.wire import Priority

__all__ = ["Rate", "load_samples", "measure"]

CONNECT_S = 5.0
# How often the answers are counted; a fraction of any window.
# So many errors in a row, and so many seconds without an answer, end a measurement.
HOPELESS, HOPELESS_S = 32, 2.0
TICK_S = 0.02
# What was answered by an error is sent again after this: a full queue would answer as fast as it is asked.
REST_S = 0.1
# How long answers that count no more are waited for; those of a slow model are cancelled instead.
LEAVE_S = 0.5
# Connections, each with a thread and with a window at the balancer; what they do not hold is not sent.
MAX_CONNECTIONS = 64

Encoded = tuple[bytes, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Rate:
    """What was measured. Latencies are from the sending of a request to its answer, in seconds.

    outstanding: requests that were kept under way, at most 64 clients' windows. answers, seconds: those that count,
    nothing of the ramp. errors: all there were, the ramp's too, and `error` is the first of them. steady: two windows
    of the measurement agreed.
    """

    answers_per_s: float
    p50_s: float
    p99_s: float
    answers: int
    seconds: float
    outstanding: int
    errors: int = 0
    error: str | None = None
    steady: bool = False


def measure(
    endpoint: str,
    samples: Sequence[Any],
    outstanding: int,
    *,
    window_s: float = 2.0,
    max_s: float = 30.0,
    on_tick: Callable[[int], None] = lambda _answers: None,
) -> Rate:
    """Keep `outstanding` requests under way, made of the samples in turn, until the rate has settled.

    It ends when two windows of `window_s` seconds in a row agree (a slow model's windows are longer), or after `max_s`
    seconds, whatever is answered; connecting, and closing the connections, may add some. on_tick: called some 50
    times a second with the number of answers so far; what it raises ends the load and passes through.

    Raises:
        NotRunning: nothing answers at the endpoint.
        ConfigError: it is none, or a sample is over the instance's limit.
        TypeError: a sample cannot travel.
        ValueError: there are no samples, or `outstanding` is not positive.
    """
    if not samples or outstanding < 1:
        raise ValueError(f"{len(samples)} samples, {outstanding} outstanding; there must be at least 1 of each")
    encoded = [payloads.encode(sample) for sample in samples]
    with ExitStack() as cleanup:
        flows = _connect(check_endpoint(endpoint), encoded, outstanding, cleanup)
        started = time.monotonic()
        outstanding = sum(flow.start() for flow in flows)
        steady = Steady(started, outstanding, window_s, max_s)
        rested = now = started
        last = Edge(0, started)
        failed = 0  # by the last answer
        while not steady.is_over(now, last):
            time.sleep(TICK_S)
            now = time.monotonic()
            if now - rested >= REST_S:
                rested = now
                for flow in flows:
                    flow.try_again()
            before, last = last, Edge(sum(len(f.at) for f in flows), max(f.last_at(started) for f in flows))
            errors = sum(flow.errors for flow in flows)
            if last.answers != before.answers:
                failed = errors
            elif errors - failed >= max(HOPELESS, outstanding) and now - last.at >= HOPELESS_S:
                break  # the model fails: more of it would only fill its log
            on_tick(last.answers)
        _leave(flows)
    at, took_s = (np.concatenate([np.array(getattr(flow, name)) for flow in flows]) for name in ("at", "took_s"))
    begin, end = steady.span(now, last, float(took_s.max(initial=0.0)))
    seconds = max(end - begin, TICK_S)
    counted = took_s[(at > begin) & (at <= end)]
    p50_s, p99_s = np.quantile(counted, (0.5, 0.99)) if counted.size else (0.0, 0.0)
    return Rate(
        answers_per_s=counted.size / seconds,
        p50_s=float(p50_s),
        p99_s=float(p99_s),
        answers=int(counted.size),
        seconds=seconds,
        outstanding=outstanding,
        errors=sum(flow.errors for flow in flows),
        error=next((flow.error for flow in flows if flow.error), None),
        steady=steady.agreed,
    )


def _connect(endpoint: str, samples: Sequence[Encoded], outstanding: int, cleanup: ExitStack) -> list[_Flow]:
    """As many connections as it takes to have all requests at the balancer."""
    largest = max(payloads.nbytes(*sample) for sample in samples)
    turns = itertools.cycle(samples)
    flows: list[_Flow] = []
    left = outstanding
    while left > 0 and len(flows) < MAX_CONNECTIONS:
        driver = Driver(lambda: endpoint, CONNECT_S, 0)
        cleanup.callback(driver.close)
        if largest > driver.limits["max_payload_bytes"]:
            raise ConfigError(
                f"max_payload = {format_size(driver.limits['max_payload_bytes'])}: a warm-up sample has "
                f"{format_size(largest)}; `orch up --max-payload` raises it"
            )
        share = max(1, min(left, driver.limits["window"], WINDOW_BYTES // max(1, largest)))
        flows.append(_Flow(driver, turns, share))
        cleanup.callback(flows[-1].end)
        left -= share
    return flows


def _leave(flows: Sequence[_Flow]) -> None:
    """Send nothing more, and wait a moment for what is under way: a balancer minds a client that leaves its answers."""
    for flow in flows:
        flow.end()
    until = time.monotonic() + LEAVE_S
    while time.monotonic() < until and not all(flow.is_quiet for flow in flows):
        time.sleep(TICK_S)


class _Flow:
    """One connection's part of the load. Its answers come on the driver's thread, everything else from `measure`."""

    def __init__(self, driver: Driver, turns: itertools.cycle[Encoded], outstanding: int) -> None:
        self.at = array("d")  # when each answer came
        self.took_s = array("d")  # and how long it took
        self.errors = 0
        self.error: str | None = None
        self._driver = driver
        self._turns = turns
        self._slots = [_Slot(self) for _ in range(outstanding)]
        self._ids = itertools.count(1)
        self._resting: deque[_Slot] = deque()
        self._ended = False
        self._idle = 0  # slots that send no more

    def start(self) -> int:
        """Send the first requests; how many."""
        for slot in self._slots:
            self.send(slot)
        return len(self._slots)

    def send(self, slot: _Slot) -> None:
        """The next request."""
        body, frames = next(self._turns)
        slot.sent_at = time.monotonic()
        self._driver.submit(Call(next(self._ids), body, frames, slot.settle, priority=Priority.LOW))

    def settle(self, slot: _Slot, error: BaseException | None) -> None:
        """The answer, which sends the next request."""
        if self._ended:
            self._idle += 1
        elif error is not None:
            self.errors += 1
            self.error = self.error or f"{type(error).__name__}: {error}"
            self._resting.append(slot)
        else:
            now = time.monotonic()
            self.at.append(now)
            self.took_s.append(now - slot.sent_at)
            self.send(slot)

    def try_again(self) -> None:
        """Send anew in the place of what failed."""
        for _ in range(len(self._resting)):
            self.send(self._resting.popleft())

    def last_at(self, otherwise: float) -> float:
        """When the last answer came."""
        return self.at[-1] if self.at else otherwise

    @property
    def is_quiet(self) -> bool:
        """Whether, after `end`, nothing is under way."""
        return self._idle + len(self._resting) >= len(self._slots)

    def end(self) -> None:
        """What is answered from now on counts no more, and sends nothing."""
        self._ended = True


class _Slot:
    """One of the requests that are kept under way."""

    __slots__ = ("_flow", "sent_at")

    def __init__(self, flow: _Flow) -> None:
        self._flow = flow
        self.sent_at = 0.0

    def settle(self, _value: Any, error: BaseException | None) -> None:
        """The answer."""
        self._flow.settle(self, error)
