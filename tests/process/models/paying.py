"""A model of which more replicas help only up to a point, wherever the test runs."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from typing import Any

from orch import Model

BATCH_S = 0.05
MOMENT = struct.Struct("d")


class Apart(Model):
    """A batch takes 50 ms, and begins `apart` seconds after the one before it, whichever replica that is in.

    What is shared is the file `clock`, which holds the earliest moment of the next.
    """

    max_batch_size = 4

    def __init__(self, clock: str, apart: float) -> None:
        self._clock = os.open(clock, os.O_RDWR | os.O_CREAT, 0o600)
        self._apart = apart

    def warmup(self) -> list[Any]:
        return ["one", "another"]

    def predict(self, inputs: list[Any]) -> list[Any]:
        time.sleep(max(0.0, self._begin() + BATCH_S - time.monotonic()))
        return inputs

    def _begin(self) -> float:
        fcntl.flock(self._clock, fcntl.LOCK_EX)
        try:
            found = os.pread(self._clock, MOMENT.size, 0)
            begin = max(time.monotonic(), *MOMENT.unpack(found)) if found else time.monotonic()
            os.pwrite(self._clock, MOMENT.pack(begin + self._apart), 0)
            return begin
        finally:
            fcntl.flock(self._clock, fcntl.LOCK_UN)


class Alone(Apart):
    """Loads in one process at a time: there is no second replica to be had."""

    def __init__(self, clock: str, apart: float) -> None:
        super().__init__(clock, apart)
        self._alone = os.open(f"{clock}.alone", os.O_RDWR | os.O_CREAT, 0o600)

    def load(self, device: str) -> None:
        try:
            fcntl.flock(self._alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError("another replica is loaded") from None
