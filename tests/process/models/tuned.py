"""Models to tune: how fast they are follows from the size of a batch and the number of replicas alone."""

from __future__ import annotations

import time
from typing import Any

from orch import Model


class Slow(Model):
    """A batch takes 20 ms and 2 ms for each input: larger ones pay, and so do more replicas."""

    max_batch_size = 4

    def __init__(self, load_s: float = 0.0) -> None:
        self._load_s = load_s

    def load(self, device: str) -> None:
        time.sleep(self._load_s)

    def warmup(self) -> list[Any]:
        return ["one", "another"]

    def predict(self, inputs: list[Any]) -> list[Any]:
        time.sleep(0.02 + 0.002 * len(inputs))
        return inputs


class Hungry(Slow):
    """Has memory for batches of two."""

    def predict(self, inputs: list[Any]) -> list[Any]:
        if len(inputs) > 2:
            raise MemoryError("no room for so many")
        return super().predict(inputs)
