"""A replica's process: what it is started with, and what is known of it while it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch.config import Config
from orch.page import StatusPage
from orch.planning.footprint import Footprint
from orch.supervising import measure
from orch.supervising.mps import Mps
from orch.supervising.output import Lines
from orch.supervising.process import INSTANCE_VARIABLE, WORKER_VARIABLE, Child
from orch.supervising.replica import Replica

# Libraries with a thread pool of their own, each of which would take every core.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
# A fence beyond what was measured: allocators round up, and kernels are loaded late.
FENCE_FACTOR, FENCE_MARGIN_BYTES = 1.05, 256 * 2**20


def fence_of(cost: Footprint | None) -> int | None:
    """Device bytes that MPS lets a replica have: what it is planned to cost, and a margin. None: unmeasured."""
    return None if cost is None else int(cost.device_bytes * FENCE_FACTOR) + FENCE_MARGIN_BYTES


def pin(pid: int, cores: Sequence[int]) -> None:
    """Keep a process, all its threads, on these cores; one that is gone is none of ours any more."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)


@dataclass(slots=True)
class Running:
    """One worker process, and what is known of it.

    alone: no other replica loads, or ends, on its device while it loads. batch_s: what its last full batch of warm-up
    took. held_bytes: device memory that it held when it failed.
    """

    child: Child
    page: StatusPage
    lines: Lines
    started_at: float
    before: measure.Before | None
    fence_bytes: int | None
    alone: bool = True
    footprint: Footprint | None = None
    max_batch_size: int = 1
    batch_s: float | None = None
    timeout_s: float = 0.0
    message: str = ""
    held_bytes: int | None = None
    hung: bool = False
    elsewhere: str = ""
    load_s: float = 0.0


class Launcher:
    """Owns what every worker is started with; `threads` and `cores` (by replica) follow the plan."""

    def __init__(
        self, config: Config, worker_spec: Mapping[str, Any], pages_fd: int, environ: Mapping[str, str]
    ) -> None:
        self._config, self._worker_spec = config, worker_spec
        self._pages_fd, self._environ = pages_fd, environ
        self.threads = 1
        self.cores: Mapping[str, tuple[int, ...]] = {}

    def page(self, replica: Replica) -> StatusPage:
        """A clean status page."""
        page = StatusPage(self._pages_fd, replica.slot)
        page.clear()
        return page

    def start(self, replica: Replica, mps: Mps | None, fence_bytes: int | None) -> Child:
        """Start its process.

        Raises:
            OSError: no descriptor, process or memory to be had.
        """
        cores = self.cores.get(replica.id, ())
        on_gpu = replica.device != measure.CPU
        environ = {
            **self._environ,
            **dict.fromkeys(THREAD_VARIABLES, str(len(cores) or self.threads)),
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": replica.device if on_gpu else "",
            **(mps.environ(fence_bytes, self._config.mps_thread_percentage) if mps and on_gpu else {}),
            **self._config.env,
            WORKER_VARIABLE: self.mark(replica),
        }
        child = Child("orch_worker", [self._pages_fd], environ)
        if cores:
            pin(child.pid, cores)
        child.link.send(
            spec={
                **self._worker_spec,
                "replica": replica.id,
                "generation": replica.generation,
                "slot": replica.slot,
                "device": "cuda:0" if on_gpu else "cpu",
            }
        )
        return child

    def mark(self, replica: Replica) -> str:
        """What all processes of this life of the replica carry in their environment."""
        return f"{self._environ[INSTANCE_VARIABLE]}.{replica.id}.{replica.generation}"
