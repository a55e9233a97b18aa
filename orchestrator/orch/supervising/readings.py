"""What GPUs, the host and processes are doing now, read at most once a second however many ask."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import psutil

from orch.planning import gpu
from orch.planning.gpu import GpuReading
from orch.planning.host import read_host, resident_bytes
from orch.planning.planner import Host

T = TypeVar("T")

READ_S: Final = 1.0
# To find out which pages a process shares with how many others, the kernel walks all it has: 3 ms for each GiB. So not
# all processes are asked each second: as many as fit into this, and at least one.
WALKS_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """resident_bytes: of the host's memory, shared pages included. cpu_s: seconds of a core since its start."""

    resident_bytes: int
    cpu_s: float


class Readings:
    """Owns the readings of the current second, and the last share of each process; read only when somebody asks."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._taken: dict[Any, Any] = {}
        self._taken_at = 0.0
        self._shares: dict[int, int | None] = {}  # by process id, the latest last

    def gpu(self, uuid: str) -> GpuReading | None:
        """None: the device is gone, or cannot be read."""
        return self._once(("gpu", uuid), lambda: gpu.read_gpu_live(uuid))

    def host(self) -> Host:
        """Memory and cores that this instance may use."""
        return self._once("host", read_host)

    def process(self, pid: int) -> ProcessReading | None:
        """None: it is gone."""
        return self._once(("process", pid), lambda: _read_process(pid))

    def shares(self, pids: Collection[int]) -> dict[int, int]:
        """Bytes of the host's memory that each process costs, as its footprint was measured; some seconds old.

        Those that have not had their turn yet are left out.
        """
        self._once("shares", lambda: self._walk(pids))
        return {pid: share for pid in pids if (share := self._shares.get(pid)) is not None}

    def _walk(self, pids: Collection[int]) -> None:
        known = [pid for pid in self._shares if pid in pids]
        self._shares = {pid: self._shares[pid] for pid in known}
        until = self._clock() + WALKS_S
        for pid in [*(pid for pid in pids if pid not in self._shares), *known]:
            self._shares.pop(pid, None)
            self._shares[pid] = resident_bytes(pid)
            if self._clock() >= until:
                return

    def _once(self, key: Any, read: Callable[[], T]) -> T:
        now = self._clock()
        if now - self._taken_at >= READ_S:
            self._taken.clear()
            self._taken_at = now
        if key not in self._taken:
            self._taken[key] = read()
        found: T = self._taken[key]
        return found


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used since its start; 0 once it is gone."""
    found = _read_process(pid)
    return found.cpu_s if found is not None else 0.0


def _read_process(pid: int) -> ProcessReading | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return ProcessReading(process.memory_info().rss, times.user + times.system)
    except psutil.Error:
        return None
