"""What every server's worker does, the same for all, and what the driver tells a server.

It needs the standard library, and numpy where tensors are meant.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers.workloads import MAX_BATCH, SLOW_S, WORKERS, batch_s

WORKLOAD = os.environ.get("BENCH_WORKLOAD", "echo")
PORT = int(os.environ.get("BENCH_PORT", "0"))
FOLDER = Path(os.environ.get("BENCH_FOLDER", "."))
FRONT = os.environ.get("BENCH_FRONT", "")  # where the bare ZeroMQ servers listen
BATCHED = bool(os.environ.get("BENCH_BATCHED"))

__all__ = ["BATCHED", "FOLDER", "FRONT", "MAX_BATCH", "PORT", "WORKERS", "WORKLOAD", "batch", "here", "one"]


def here() -> None:
    """A worker says that it is one: the driver counts them, and kills one of them."""
    workers = FOLDER / "workers"
    workers.mkdir(exist_ok=True)
    (workers / str(os.getpid())).touch()


def batch(inputs: list[Any]) -> list[Any]:
    """Many requests. Of the batch workload: the simulated GPU, which takes its time while the processor is free."""
    if WORKLOAD != "batch":
        return [one(each) for each in inputs]
    time.sleep(batch_s(len(inputs)))
    return inputs


def _echo(body: Any) -> Any:
    return body


def _tensor(body: Any) -> Any:
    import numpy as np

    return np.frombuffer(body, np.float32).mean().tobytes()


def _slow(body: Any) -> Any:
    time.sleep(SLOW_S)
    return body


_WORK: dict[str, Callable[[Any], Any]] = {"echo": _echo, "tensor": _tensor, "kill": _slow}
# One request, for servers that run them one by one. Bytes in, bytes out.
one = _WORK.get(WORKLOAD, _echo)
