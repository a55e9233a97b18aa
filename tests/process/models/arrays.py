"""Arrays and tensors, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np

from orch import Model


class Describe(Model):
    """Says what arrived, and sends it back."""

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [{"type": type(each).__name__, "dtype": str(each.dtype), "back": each} for each in inputs]


class Large(Model):
    """The sum of a large array, or an array of as many bytes as the number given."""

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [np.ones(each, np.uint8) if isinstance(each, int) else int(each.sum()) for each in inputs]
