"""A replica's process: what it is started with, and what is known of it while it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch import runtime
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


def spec_of(config: Config, directory: Path, samples: str | None) -> dict[str, Any]:
    """What every worker of an instance is told. samples: the file that the warm-up's are to be written to."""
    return {
        "path": runtime.back_path(directory),
        "target": config.target,
        "model": config.title,
        "max_batch_size": config.max_batch_size,
        "max_batch_wait_s": config.max_batch_wait_s,
        "settings": dict(config.set),
        "samples": samples,
    }


def pin(pid: int, cores: Sequence[int]) -> None:
    """Keep a process, all its threads, on these cores; one that is gone is none of ours any more."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)


@dataclass(slots=True)
class Running:
    """One worker process, and what is known of it.

    alone: no other replica loads, or ends, on its device while it loads. batch_s: what its last full batch of warm-up
    took. server_pid: of the server that a runner is in charge of. note: what that has last done while it loads.
    held_bytes: device memory that it held when it failed.
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
    server_pid: int | None = None
    note: str = ""
    message: str = ""
    held_bytes: int | None = None
    hung: bool = False
    elsewhere: str = ""
    load_s: float = 0.0


class Launcher:
    """Owns what every worker is started with; `threads` and `cores` (by replica) follow the plan."""

    runs_command = False  # somebody else's server, in the charge of a runner

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
        on_gpu = not self.is_on_cpu(replica)
        environ = {
            **self._environ,
            **dict.fromkeys(THREAD_VARIABLES, str(len(cores) or self.threads)),
            "PYTHONUNBUFFERED": "1",
            "CUDA_VISIBLE_DEVICES": replica.device if on_gpu else "",
            **(mps.environ(fence_bytes, self._config.mps_thread_percentage) if mps and on_gpu else {}),
            **self._config.env,
            WORKER_VARIABLE: self.mark(replica),
        }
        child = self.start_child(replica, environ)
        if cores:
            pin(child.pid, cores)
        return child

    def start_child(self, replica: Replica, environ: Mapping[str, str]) -> Child:
        """Start its process and tell it what to do."""
        child = Child("orch_worker", [self._pages_fd], environ)
        child.link.send(
            spec={
                **self._worker_spec,
                "replica": replica.id,
                "generation": replica.generation,
                "slot": replica.slot,
                "device": self.device_seen(replica),
            }
        )
        return child

    def is_on_cpu(self, replica: Replica) -> bool:
        """Whether it is to see no GPU."""
        return replica.device == measure.CPU

    def device_seen(self, replica: Replica) -> str:
        """Its device as it sees it: its GPU is the only one."""
        return "cpu" if self.is_on_cpu(replica) else "cuda:0"

    # What differs where a replica is a server with a runner.

    def address(self, replica: Replica) -> str | None:
        """Where its server is reached; None: it has none."""
        return None

    def family(self, replica: Replica, running: Running, *, anew: bool = False) -> frozenset[int]:
        """The processes whose memory counts as the replica's. anew: now, not a second ago."""
        return frozenset({running.child.pid})

    def is_ready(self, replica: Replica) -> None:
        """Its server answers."""

    def leaves(self, child: Child) -> None:
        """It is about to be stopped, and gets no more work."""

    def told(self) -> str:
        """What deserves a word of the start before, with the replica as its subject; or nothing."""
        return ""

    def mark(self, replica: Replica) -> str:
        """What all processes of this life of the replica carry in their environment."""
        return f"{self._environ[INSTANCE_VARIABLE]}.{replica.id}.{replica.generation}"
