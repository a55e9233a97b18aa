"""Models for the page's tests."""

from __future__ import annotations

import time
from typing import Any

from orch import Model

# Longer than the page's look a second, so that a replica that starts again is seen to do so.
LOAD_S = 2.5


class Slow(Model):
    """Takes its time to load; every input comes back."""

    max_batch_size = 8

    def load(self, device: str) -> None:
        time.sleep(LOAD_S)

    def predict(self, inputs: list[Any]) -> list[Any]:
        return inputs
