"""What the card and the processes do while something is measured."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import psutil

from orch.planning import gpu

SAMPLE_S = 0.1


class Watch:
    """Samples the first GPU in a thread, and counts the CPU time of processes, while its block runs.

    pids: processes by the name under which their time is summed up.
    """

    def __init__(self, pids: Mapping[str, Iterable[int]]) -> None:
        self._pids = {name: list(each) for name, each in pids.items()}
        self._samples: list[gpu.GpuReading] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._before = self._cpu()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        after = self._cpu()
        self.cpu_s = {name: after[name] - self._before[name] for name in after}

    @property
    def facts(self) -> dict[str, Any]:
        """Medians of what the card said: busy in percent of the time, watts, and the clock in MHz; None: not told."""
        found: dict[str, Any] = {}
        for name in ("utilization_percent", "power_w", "sm_clock_mhz"):
            told = [value for each in self._samples if (value := getattr(each, name)) is not None]
            found[name] = statistics.median(told) if told else None
        return found

    def _run(self) -> None:
        with gpu.session():
            while not self._over.wait(SAMPLE_S):
                self._samples += gpu.read_live()[:1]

    def _cpu(self) -> dict[str, float]:
        return {name: sum(cpu_s(pid) for pid in pids) for name, pids in self._pids.items()}


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used; 0 where there is none."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system
    return 0.0


def parts(supervisor: int) -> dict[str, list[int]]:
    """The processes of an instance, by part: balancer, worker, and everything else."""
    found: dict[str, list[int]] = {"balancer": [], "worker": [], "other": [supervisor]}
    for each in psutil.Process(supervisor).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = each.cmdline()
            name = next(
                (word.removeprefix("orch_") for word in words if word in ("orch_balancer", "orch_worker")), "other"
            )
            found[name].append(each.pid)
    return found
