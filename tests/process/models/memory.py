"""Models whose loading says something about memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from orch import Model


def replica() -> str:
    """Which one this process is: "r0"."""
    return os.environ["ORCH_WORKER_ID"].split(".")[1]


class RunsOut(Model):
    """There is memory for `fits` replicas only; a file says how often each one was loaded."""

    def __init__(self, fits: int, notes: str, mends: bool = False) -> None:
        self._fits, self._notes, self._mends = fits, Path(notes), mends

    def load(self, device: str) -> None:
        """Raise what an allocator raises."""
        number = int(replica().removeprefix("r"))
        note = self._notes / replica()
        tries = len(note.read_text()) if note.exists() else 0
        note.write_text("x" * (tries + 1))
        if number >= self._fits and not (self._mends and tries):
            raise MemoryError("no room for the weights")

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Who answers."""
        return [replica()] * len(inputs)


class SlowToLoad(Model):
    """Takes a while; a file for each replica that is loading shows who else is."""

    def __init__(self, notes: str, seconds: float = 0.6) -> None:
        self._notes, self._seconds = Path(notes), seconds

    def load(self, device: str) -> None:
        """Note how many load at this moment."""
        mine = self._notes / f"loading.{os.getpid()}"
        mine.write_text("")
        time.sleep(self._seconds)
        together = len(list(self._notes.glob("loading.*")))
        with (self._notes / "together").open("a") as file:
            file.write(f"{together}\n")
        mine.unlink()

    def predict(self, inputs: list[Any]) -> list[Any]:
        """Echo."""
        return inputs
