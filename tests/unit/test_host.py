"""What control groups leave of a machine, and what a process holds of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orch.planning.host import read_host, resident_bytes
from orch.planning.planner import Host
from orch.planning.sizes import GIB, MIB

MACHINE = Host(64 * GIB, 50 * GIB, 16)


def write(root: Path, files: dict[str, str]) -> None:
    """Files with their texts, under `root`."""
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def host_of(tmp_path: Path, membership: str, groups: dict[str, str]) -> Host:
    """What MACHINE offers to a process in these groups."""
    write(tmp_path, {"proc/self/cgroup": membership})
    (tmp_path / "cgroup").mkdir(exist_ok=True, parents=True)
    write(tmp_path / "cgroup", groups)
    return read_host(cgroup_root=tmp_path / "cgroup", proc=tmp_path / "proc", machine=MACHINE)


def test_without_control_groups_the_whole_machine_is_offered(tmp_path: Path) -> None:
    """Also where /proc does not tell of any."""
    assert read_host(cgroup_root=tmp_path, proc=tmp_path, machine=MACHINE) == MACHINE
    assert host_of(tmp_path, "0::/user.slice\n", {}) == MACHINE


def test_a_group_without_limits_takes_nothing_away(tmp_path: Path) -> None:
    """Version 2 says "max" where there is no limit, version 1 says -1 or a huge number."""
    v2 = {"a/memory.max": "max\n", "a/memory.current": "5\n", "a/cpu.max": "max 100000\n"}
    assert host_of(tmp_path, "0::/a\n", v2) == MACHINE
    v1 = {
        "memory/a/memory.limit_in_bytes": "9223372036854771712\n",
        "cpu/a/cpu.cfs_quota_us": "-1\n",
        "cpu/a/cpu.cfs_period_us": "100000\n",
    }
    assert host_of(tmp_path, "4:memory:/a\n1:cpu:/a\n9:name=systemd:/a\n", v1) == MACHINE


def test_a_container_is_offered_its_own_limits(tmp_path: Path) -> None:
    """Version 2: a container's own group is its root. Page cache that can be dropped is available."""
    files = {
        "memory.max": f"{8 * GIB}\n",
        "memory.current": f"{3 * GIB}\n",
        "memory.stat": f"anon {2 * GIB}\ninactive_file {1 * GIB}\n",
        "cpu.max": "250000 100000\n",
    }
    assert host_of(tmp_path, "0::/\n", files) == Host(8 * GIB, 6 * GIB, 2)


def test_of_nested_groups_each_limit_counts(tmp_path: Path) -> None:
    """A service is bound by its slice too, and memory.high binds like memory.max."""
    files = {
        "work.slice/memory.high": f"{10 * GIB}\n",
        "work.slice/memory.current": f"{9 * GIB}\n",
        "work.slice/cpu.max": "800000 100000\n",
        "work.slice/orch.service/memory.max": f"{20 * GIB}\n",
        "work.slice/orch.service/memory.current": f"{1 * GIB}\n",
        "work.slice/orch.service/cpu.max": "400000 100000\n",
    }
    assert host_of(tmp_path, "0::/work.slice/orch.service\n", files) == Host(10 * GIB, 1 * GIB, 4)


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_limits_of_version_1_are_read_per_controller(tmp_path: Path, mount: str) -> None:
    """Processor time may be mounted under either name."""
    files = {
        "memory/docker/x/memory.limit_in_bytes": f"{4 * GIB}\n",
        "memory/docker/x/memory.usage_in_bytes": f"{1 * GIB}\n",
        "memory/docker/x/memory.stat": f"total_inactive_file {512 * MIB}\n",
        f"{mount}/docker/x/cpu.cfs_quota_us": "150000\n",
        f"{mount}/docker/x/cpu.cfs_period_us": "50000\n",
    }
    assert host_of(tmp_path, "4:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n", files) == Host(4 * GIB, 3584 * MIB, 3)


@pytest.mark.parametrize("path", ["/docker/abc", "/../../elsewhere"])
def test_a_path_that_is_not_mounted_here_leaves_the_root(tmp_path: Path, path: str) -> None:
    """A container may be told its path on the host, or one above its own root."""
    files = {"memory/memory.limit_in_bytes": f"{4 * GIB}\n"}
    assert host_of(tmp_path, f"4:memory:{path}\n", files).memory_total_bytes == 4 * GIB


@pytest.mark.parametrize(
    ("listed", "cores"), [("0-3,8\n", 5), ("7\n", 1), ("0-1,4-5,9-15\n", 11), ("\n", 16), ("0-63\n", 16)]
)
def test_cores_that_a_group_may_not_use_are_not_offered(tmp_path: Path, listed: str, cores: int) -> None:
    """A container with `--cpuset-cpus`; the file is empty where the controller has nothing to say."""
    assert host_of(tmp_path / "2", "0::/\n", {"cpuset.cpus.effective": listed}).cores == cores
    v1 = {"cpuset/docker/x/cpuset.effective_cpus": listed}
    assert host_of(tmp_path / "1", "5:cpuset:/docker/x\n", v1).cores == cores


# What /proc/self/cgroup and the mounts look like in places where orch is found.
DOCKER_V2 = {
    "cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma\n",
    "cpu.max": "400000 100000\n",
    "cpuset.cpus.effective": "0-7\n",
    "memory.current": f"{2 * GIB}\n",
    "memory.high": "max\n",
    "memory.max": f"{32 * GIB}\n",
    "memory.stat": f"anon {GIB}\nfile {GIB}\ninactive_anon 0\ninactive_file {GIB // 2}\nactive_file 4096\n",
}
POD = "/kubepods/burstable/pod5f1c/9ad0"
KUBERNETES_V1 = {
    f"memory{POD}/memory.limit_in_bytes": f"{16 * GIB}\n",
    f"memory{POD}/memory.usage_in_bytes": f"{4 * GIB}\n",
    f"memory{POD}/memory.stat": f"cache {GIB}\ntotal_inactive_file {GIB}\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",
    f"cpu,cpuacct{POD}/cpu.cfs_quota_us": "600000\n",
    f"cpu,cpuacct{POD}/cpu.cfs_period_us": "100000\n",
    f"cpuset{POD}/cpuset.effective_cpus": "2-5,10\n",
}
KUBERNETES_V1_PROC = f"""\
12:devices:{POD}
11:cpuset:{POD}
10:memory:{POD}
6:cpu,cpuacct:{POD}
1:name=systemd:{POD}
0::/system.slice/containerd.service
"""
SERVICE = {
    "user.slice/memory.max": "max\n",
    "orch.slice/memory.max": f"{24 * GIB}\n",
    "orch.slice/memory.current": f"{3 * GIB}\n",
    "orch.slice/cpu.max": "max 100000\n",
    "orch.slice/cpuset.cpus.effective": "0-15\n",
    "orch.slice/orch@default.service/memory.max": "max\n",
    "orch.slice/orch@default.service/memory.current": f"{3 * GIB}\n",
    "orch.slice/orch@default.service/cpu.max": "1200000 100000\n",
    "orch.slice/orch@default.service/cpuset.cpus.effective": "0-15\n",
}


@pytest.mark.parametrize(
    ("membership", "groups", "expected"),
    [
        ("0::/\n", DOCKER_V2, Host(32 * GIB, 30 * GIB + GIB // 2, 4)),
        (KUBERNETES_V1_PROC, KUBERNETES_V1, Host(16 * GIB, 13 * GIB, 5)),
        ("0::/orch.slice/orch@default.service\n", SERVICE, Host(24 * GIB, 21 * GIB, 12)),
    ],
    ids=["docker, version 2", "kubernetes, version 1", "systemd, version 2"],
)
def test_the_tree_of_a_whole_place_is_read(
    tmp_path: Path, membership: str, groups: dict[str, str], expected: Host
) -> None:
    """Memory, quota and cores at once, with what else is there."""
    assert host_of(tmp_path, membership, groups) == expected


def test_a_limit_that_is_already_used_up_leaves_nothing(tmp_path: Path) -> None:
    """Available memory is never negative, and there is always one core."""
    files = {"memory.max": f"{GIB}\n", "memory.current": f"{2 * GIB}\n", "cpu.max": "20000 100000\n"}
    assert host_of(tmp_path, "0::/\n", files) == Host(GIB, 0, 1)


def test_this_machine_offers_something() -> None:
    """The real files of whatever runs this test can be read."""
    host = read_host()
    assert 0 < host.memory_available_bytes <= host.memory_total_bytes
    assert 1 <= host.cores <= len(os.sched_getaffinity(0))


def test_a_process_costs_its_proportional_share(tmp_path: Path) -> None:
    """Shared pages count once over all replicas."""
    write(tmp_path, {"77/smaps_rollup": "00400000-7fff rollup\nRss:   2048 kB\nPss:   1024 kB\nPss_Anon: 9 kB\n"})
    assert resident_bytes(77, proc=tmp_path) == MIB


def test_without_the_share_a_process_costs_its_resident_set(tmp_path: Path) -> None:
    """This process, with nothing in /proc to read."""
    resident = resident_bytes(os.getpid(), proc=tmp_path)
    assert resident is not None
    assert resident > MIB


def test_a_process_that_is_gone_costs_nothing_known(tmp_path: Path) -> None:
    """No process has a number beyond the kernel's largest."""
    assert resident_bytes(2**22 + 1, proc=tmp_path) is None
