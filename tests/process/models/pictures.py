"""A model that sees whether the memory of its inputs changes: while it runs, and as long as it keeps some of them."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from orch import Model, Tensor

SIZE = 150_000


class Pictures(Model):
    """Answers each tensor, whose elements are all the same, with the smallest and the largest; takes none below 0."""

    max_batch_size = 4
    inputs = (Tensor("x", "FP32", (SIZE,)),)
    outputs = (Tensor("range", "FP32", (2,)),)

    def __init__(self, seconds: float = 0.0, keeps: int = 0) -> None:
        self.seconds = seconds
        self.kept: deque[tuple[Any, float]] = deque(maxlen=keeps)

    def predict(self, inputs: list[Any]) -> list[Any]:
        before = [each["x"].copy() for each in inputs]
        if any(each[0] < 0 for each in before):
            raise ValueError("below 0")
        time.sleep(self.seconds)
        for array, seen in zip(inputs, before, strict=True):
            assert np.array_equal(array["x"], seen), "a request has changed while it ran"
            self.kept.append((array["x"], float(seen[0])))
        assert all((array == value).all() for array, value in self.kept), "a request has changed that was kept"
        return [{"range": np.array([each.min(), each.max()], np.float32)} for each in before]
