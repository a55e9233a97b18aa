"""What may go wrong with memory that is shared."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from orch import Model


class Keeping(Model):
    """[WHAT, array, ...]: sends it back, keeps it, tells what it has kept, or takes its time over it."""

    max_batch_size = 4

    def load(self, device: str) -> None:
        self.kept: list[Any] = []

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [getattr(self, f"_{what}")(*rest) for what, *rest in inputs]

    def _echo(self, array: Any) -> Any:
        return array

    def _double(self, array: Any) -> Any:
        return array * 2

    def _sum(self, array: Any) -> int:
        return int(array.sum())

    def _keep(self, array: Any) -> int:
        self.kept.append(array)
        return len(self.kept)

    def _kept(self) -> list[int]:
        return [int(array.sum()) for array in self.kept]

    def _let_go(self) -> int:
        self.kept.clear()
        return 0

    def _slow(self, array: Any, seconds: float) -> Any:
        before = array.copy()
        time.sleep(seconds)
        assert np.array_equal(before, array)
        return array * 2
