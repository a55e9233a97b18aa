"""A model that takes its time."""

from __future__ import annotations

import time
from collections.abc import Iterator

from orch import Model


class Patient(Model):
    """Answers a number of seconds after so many; as a stream, with so many numbers, 20 ms apart."""

    def predict(self, inputs: list[float]) -> list[float]:
        time.sleep(max(inputs))
        return inputs

    def predict_stream(self, input: float) -> Iterator[int]:  # noqa: A002  the contract's word
        for number in range(int(input)):
            time.sleep(0.02)
            yield number
