"""A model whose process ends long after it has hung up, as one does whose driver takes its time."""

from __future__ import annotations

import atexit
import os
import time
from typing import Any

import orch

ENDING_S = 0.8
FIRST_FD = 3


def _linger() -> None:
    os.closerange(FIRST_FD, 1000)
    time.sleep(ENDING_S)


class Reluctant(orch.Model):
    """Every input comes back."""

    def load(self, device: str) -> None:
        atexit.register(_linger)

    def predict(self, inputs: list[Any]) -> list[Any]:
        return inputs
