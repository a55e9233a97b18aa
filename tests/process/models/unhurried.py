"""A model whose batches take long enough for the rest of the work to be done beside them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import orch

BATCH_S = 0.008
VALUES = 20_000  # 160 kB


class Unhurried(orch.Model):
    """Answers a number with itself, or with an array full of it, in memory that the next batch uses again."""

    max_batch_size = 4

    def load(self, device: str) -> None:
        self.memory = np.zeros((self.max_batch_size, VALUES))

    def predict(self, inputs: list[Any]) -> list[Any]:
        outputs: list[Any] = []
        for row, (what, number) in zip(self.memory, inputs, strict=False):
            if what == "fail":
                raise ValueError(f"{number} is not liked")
            if what == "array":
                row[:] = number
                outputs.append(row)
            else:
                outputs.append(number)
        time.sleep(BATCH_S)
        return outputs

    def predict_stream(self, input: Any) -> Iterator[Any]:  # noqa: A002  the contract's word
        yield from range(input[1])
