"""`orch status` where replicas are on GPUs: which is where, and how that looks on terminals of any width."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from orch_cli.columns import Column, fitting, heading
from orch_cli.show import status_view

GIB = 2**30


def a_gpu(index: int, **facts: Any) -> dict[str, Any]:
    """As a supervisor describes one of its GPUs."""
    return {
        "uuid": f"GPU-{index}", "name": "NVIDIA H200", "index": index, "device": f"cuda:{index}",
        "total_bytes": int(139.8 * GIB), "used_bytes": int(28.4 * GIB), "reserved_bytes": GIB // 2,
        "planned_bytes": 29 * GIB, "mps": True, "weight": 1.0, "planned": 2, "ready": 2,
    } | facts  # fmt: skip


def a_replica(number: int, gpu: str | None, **facts: Any) -> dict[str, Any]:
    """A row of the status."""
    return {
        "id": f"r{number}", "pid": 28_864 + number, "state": "READY", "device": "cuda:0", "gpu": gpu, "outstanding": 1,
        "answered": 129, "restarts": 0, "footprint_bytes": 7 * GIB, "weight": 1.0, "fence_bytes": 8 * GIB,
        "cores": [4 * number, 4 * number + 1], "reason": "",
    } | facts  # fmt: skip


STATUS = {
    "name": "prod", "state": "READY", "endpoint": "unix:///run/orch/prod/front.sock", "model": "Decoder", "pid": 7,
    "uptime_s": 192.4, "plan": {"total": 3, "limit": "memory", "because": []}, "mps": {"state": "on", "reason": None},
    "gpus": [a_gpu(0), a_gpu(1, name="NVIDIA L4", weight=0.534, mps=False, planned=2, ready=1)],
    "replicas": [a_replica(0, "GPU-0"), a_replica(1, "GPU-1"), a_replica(2, "GPU-0")],
    "queue": {"queued": 5, "outstanding": 1, "answered": 12345, "rejected": 0, "retried": 2},
}  # fmt: skip


def shown(width: int = 160, **changes: Any) -> list[str]:
    """The lines of the status with some of its facts changed."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(status_view({**STATUS, **changes}))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_replicas_stand_below_the_line_of_their_gpu() -> None:
    """In the order of the GPUs, whatever their own numbers are."""
    lines = shown()
    gpu_0, gpu_1 = (next(i for i, line in enumerate(lines) if line.startswith(f"gpu {index}")) for index in (0, 1))
    assert lines[gpu_0] == (
        "gpu 0  NVIDIA H200  28.4 of 139.8 GiB used  MPS on  weight 1.0  2 of 2 ready  29.0 GiB planned"
    )
    assert [line.split()[0] for line in lines[gpu_0 + 1 : gpu_1]] == ["r0", "r2"]
    assert "MPS off  weight 0.53  1 of 2 ready" in lines[gpu_1]
    assert lines[gpu_1 + 1].split()[0] == "r1"
    assert lines[gpu_0 - 1].split() == [
        "replica", "state", "pid", "outstanding", "answered", "restarts", "footprint", "fence", "cores",
    ]  # fmt: skip
    assert lines[gpu_0 + 1].split() == ["r0", "READY", "28864", "1", "129", "0", "7.0", "GiB", "8.0", "GiB", "0-1"]


def test_figures_of_different_gpus_stand_below_each_other() -> None:
    """One table, not one for each GPU."""
    lines = shown(replicas=[a_replica(0, "GPU-0"), a_replica(1, "GPU-1", answered=1_234_567, state="LOADING")])
    ends = {line.index(figure) + len(figure) for line, figure in zip(
        (line for line in lines if line.startswith(("  replica", "  r0", "  r1"))),
        ("answered", "129", "1,234,567"), strict=True,
    )}  # fmt: skip
    assert len(ends) == 1


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wrapped_or_cut_on_any_usual_terminal(width: int) -> None:
    """Columns and facts that can be spared go instead."""
    lines = shown(width, replicas=[a_replica(0, "GPU-0"), a_replica(1, "GPU-1", state="QUARANTINED", answered=10**7)])
    table = [line for line in lines if line.startswith(("gpu", "  "))]
    assert len(table) == 5
    assert max(map(len, table)) <= width
    assert not any("…" in line for line in table)
    assert all(word in table[0] for word in ("replica", "state", "outstanding", "answered", "footprint"))
    assert ("cores" in table[0]) == (width >= 100)


def test_what_plan_and_mps_decided_is_said_above() -> None:
    """With the reason, where one is given."""
    assert shown()[2:4] == ["plan      3 replicas (limit: memory)", "mps       on"]
    assert "mps       off: one replica needs none" in shown(mps={"state": "off", "reason": "one replica needs none"})


def test_a_search_for_the_count_that_pays_is_one_line() -> None:
    """What it does, and what it has found so far."""
    search = {"state": "measuring", "because": ["1 replica: 105 rows/s", "2 replicas: 190 rows/s"]}
    assert "search    measuring: 1 replica: 105 rows/s; 2 replicas: 190 rows/s" in shown(search=search)
    narrow = [line for line in shown(50, search=search) if "search" in line]
    assert narrow == ["search    measuring: 1 replica: 105 rows/s; 2 rep…"]
    assert "search    measuring" in shown(search={"state": "measuring"})
    assert not any("search" in line for line in shown(search=None))


def test_restarts_that_are_still_to_come_are_one_line() -> None:
    """Asked for while another replica loads: it waits for that."""
    assert "restart   r0, then r2 next, once no replica loads or leaves" in shown(restarts_next=["r0", "r2"])
    assert not any(line.startswith("restart ") for line in shown(restarts_next=[]))


def test_a_column_without_a_figure_is_left_out() -> None:
    """Without MPS there is no fence, and cores are not always shared out."""
    lines = shown(replicas=[a_replica(0, "GPU-0", fence_bytes=None, cores=[])])
    assert next(line for line in lines if line.startswith("  replica")).endswith("footprint")


def test_a_gpu_without_replicas_and_replicas_without_a_gpu_are_shown() -> None:
    """Nobody is forgotten: a GPU that has gone since, or a replica on the CPU."""
    lines = shown(
        replicas=[a_replica(0, "GPU-0"), a_replica(1, "GPU-9", device="cuda:7"), a_replica(2, None, device="cpu")]
    )
    assert [line.split()[0] for line in lines[5:-1]] == ["gpu", "r0", "gpu", "cuda:7", "r1", "cpu", "r2"]


def test_gpus_that_are_alike_need_no_weight() -> None:
    """It says how they differ."""
    assert not any("weight" in line for line in shown(gpus=[a_gpu(0), a_gpu(1)]))


@pytest.mark.parametrize("gpus", [[{}], [{"uuid": "GPU-0"}], [{"uuid": "GPU-0", "used_bytes": 1, "ready": 1}]])
def test_what_a_supervisor_does_not_tell_of_a_gpu_is_not_mentioned(gpus: list[dict[str, Any]]) -> None:
    """It may be older, or the driver may not answer."""
    lines = shown(gpus=gpus, mps=None, replicas=[{"id": "r0", "gpu": "GPU-0"}])
    assert "gpu ?  unknown GPU" in lines
    assert ["r0", "?", "-", "-", "-", "-", "-"] in [line.split() for line in lines]


def test_an_older_supervisor_that_lists_no_gpus_is_shown_as_before() -> None:
    """The device stands in a column, and fences and cores nowhere."""
    lines = shown(gpus=None, mps={"state": "off", "reason": "no GPU"})
    assert lines[3:5] == [
        "replica  state  device    pid  outstanding  answered  restarts  footprint",
        "r0       READY  cuda:0  28864            1       129         0    7.0 GiB",
    ]


def test_columns_are_spared_one_by_one_and_those_that_matter_never() -> None:
    """The most dispensable first."""
    columns = (Column("a"), Column("b", spare=1), Column("c", spare=2))
    assert [fitting(columns, (3, 3, 3), width) for width in (13, 12, 8, 7, 3, 0)] == [
        [0, 1, 2], [0, 1], [0, 1], [0], [0], [0],
    ]  # fmt: skip


def test_a_heading_keeps_its_first_fact() -> None:
    """And of the others those that fit."""
    facts = [Text("aaa"), Text("bbb"), Text("ccc")]
    assert [heading(facts, width).plain for width in (13, 12, 2)] == ["aaa  bbb  ccc", "aaa  bbb", "aaa"]
