"""Models that do what they should."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from orch import Model


class Echo(Model):
    """Every input comes back."""

    max_batch_size = 64

    def predict(self, inputs: list[Any]) -> list[Any]:
        return inputs


class Steady(Model):
    """Five milliseconds a batch; [who, n] is answered with ["answer", who, n]."""

    max_batch_size = 8

    def __init__(self, seconds: float = 0.005) -> None:
        self._seconds = seconds

    def predict(self, inputs: list[Any]) -> list[Any]:
        time.sleep(self._seconds)
        return [["answer", *each] for each in inputs]


class Sleeper(Model):
    """Sleeps for as many seconds as it is asked to, and says so."""

    def predict(self, inputs: list[float]) -> list[float]:
        time.sleep(max(inputs))
        return inputs


class Counter(Model):
    """Streams the numbers below n, with `pause` seconds between them."""

    def __init__(self, pause: float = 0.0) -> None:
        self._pause = pause

    def predict_stream(self, input: int) -> Iterator[int]:  # noqa: A002  the contract's word
        for number in range(input):
            time.sleep(self._pause)
            yield number


def double(inputs: list[int]) -> list[int]:
    """Model by function."""
    return [2 * each for each in inputs]
