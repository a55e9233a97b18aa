"""What this machine, or the container or service that orch runs in, offers: memory and cores; and what a process holds.

Control groups are followed from the process's own up to the root, each limit counts: systemd nests slices, and a
container sees its own group as the root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from orch.planning.planner import Host
from orch.planning.sizes import KIB

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Files:
    """The names of the same facts in one version of control groups."""

    limits: tuple[str, ...]
    used: str
    cache: str  # the row of memory.stat that the kernel takes back before it kills anyone
    cpus: str  # which cores, as "0-3,8"; what is left of them by the groups above


V2 = Files(("memory.max", "memory.high"), "memory.current", "inactive_file", "cpuset.cpus.effective")
V1 = Files(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file", "cpuset.effective_cpus")


def read_host(*, cgroup_root: Path = CGROUP_ROOT, proc: Path = PROC, machine: Host | None = None) -> Host:
    """Memory and cores that this process may use: the machine's, less what control groups and affinity take away.

    `machine` stands in for what the machine has without control groups. A part of a core counts as none, except that
    there is always one.
    """
    whole = machine or _machine()
    total, available, cores = whole.memory_total_bytes, whole.memory_available_bytes, float(whole.cores)
    for controllers, group in _groups(cgroup_root, proc):
        names = V1 if controllers else V2
        if "memory" in controllers or not controllers:
            for limit in filter(None, (_number(group / name) for name in names.limits)):
                total = min(total, limit)
                held = (_number(group / names.used) or 0) - _stat(group / "memory.stat", names.cache)
                available = min(available, limit - held)
        if "cpu" in controllers or not controllers:
            cores = min(cores, _quota(group))
        if "cpuset" in controllers or not controllers:
            cores = min(cores, _num_cpus(group / names.cpus) or cores)
    return Host(total, max(0, min(available, total)), max(1, int(cores)))


def resident_bytes(pid: int, *, proc: Path = PROC) -> int | None:
    """Bytes of the host's memory that a process costs, or None if it is gone.

    Its proportional share (PSS) where the kernel tells it, so that a page shared by two replicas counts once; else
    its resident set.
    """
    try:
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * KIB
    except (OSError, ValueError, IndexError):
        pass  # another user's process, or a kernel older than 4.14
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _machine() -> Host:
    memory = psutil.virtual_memory()
    return Host(memory.total, memory.available, len(os.sched_getaffinity(0)))


def _groups(cgroup_root: Path, proc: Path) -> Iterator[tuple[list[str], Path]]:
    """Each directory that limits this process, with version 1's controllers it is for; none: version 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _hierarchy, controllers, path = line.split(":", 2)
        names = [name for name in controllers.split(",") if name]
        if names and names[0].startswith("name="):
            continue
        # Version 1 mounts "cpu,cpuacct" under that name, under "cpu", or both; its own name is tried first.
        roots = [cgroup_root] if not names else [cgroup_root / controllers, *(cgroup_root / name for name in names)]
        root = next((root for root in roots if root.is_dir()), None)
        if root is None:
            continue
        steps = PurePosixPath(path).relative_to("/").parts
        if ".." in steps:  # this group lies outside what is mounted here
            steps = ()
        # Where the path is the host's and the mount is the container's, only the root exists; the rest read as empty.
        for depth in range(len(steps), -1, -1):
            yield names, root.joinpath(*steps[:depth])


def _quota(group: Path) -> float:
    """Cores that a group's quota allows, without limit if it has none."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        quota, period = str(_number(group / "cpu.cfs_quota_us")), str(_number(group / "cpu.cfs_period_us"))
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return float("inf")
    return int(quota) / int(period)


def _num_cpus(file: Path) -> int:
    """How many cores a list such as "0-3,8" names (cpuset(7)); 0 if there is no file, or nothing in it."""
    try:
        spans = [span.partition("-") for span in file.read_text().strip().split(",") if span]
        return sum(int(last or first) - int(first) + 1 for first, _, last in spans)
    except (OSError, ValueError):
        return 0


def _number(file: Path) -> int | None:
    """The whole number in a file; None if there is no file or it says "max" or -1."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _stat(file: Path, row: str) -> int:
    """One row of a memory.stat file, 0 if it is not there."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{row} ")), 0)
