"""`orch gpus`: what is known of the GPUs, of the processes on them, and how people see it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console, RenderableType

from orch.errors import NotRunning
from orch.planning.cards import Gpu, GpuProcess
from orch.planning.gpu import GpuReading
from orch.planning.sizes import GIB, MIB
from orch_cli.gpus import ANSWER_S, HISTORY, SILENCE_S, Instances, Memory, Report, command_of, facts, follow, gpus
from orch_cli.show import gpus_view, ranges

TOTAL, RESERVED = 143_771 * MIB, 615 * MIB
UUID = "GPU-" + "01234567-89ab-cdef-0123-456789abcdef"


def a_reading(
    *processes: GpuProcess, uuid: str = "GPU-a", used: int = 0, busy: int | None = 43, name: str = "NVIDIA H200"
) -> GpuReading:
    """An H200 at work."""
    gpu = Gpu(
        index=0,
        uuid=uuid,
        name=name,
        bus_id="00000000:19:00.0",
        total_bytes=TOTAL,
        free_bytes=TOTAL - RESERVED - used,
        reserved_bytes=RESERVED,
        used_bytes=used,
        processes=processes,
        compute_mode="DEFAULT",
        compute_capability=(9, 0),
        cpu_affinity=(0, 1, 2, 3, 8),
    )
    return GpuReading(gpu, busy, 41, 312.4, 700.0, 1980, 3201)


def a_status(*replicas: tuple[str, int | None, str]) -> dict[str, Any]:
    """What an instance says of itself: the id, pid and GPU of each replica."""
    return {
        "replicas": [
            {"id": replica, "pid": pid, "gpu": gpu, "state": "READY", "footprint_bytes": 7 * GIB}
            for replica, pid, gpu in replicas
        ]
    }


def a_report(*devices: Report) -> Report:
    """What `report` returns for these."""
    return {"driver_version": "580.159.03", "why_none": None, "gpus": list(devices)}


def seen(view: RenderableType, width: int = 80) -> list[str]:
    """The lines of a view on a terminal without colours."""
    out = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    out.print(view)
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def commands(known: Mapping[int, str]) -> Callable[[int], str | None]:
    """The command lines of these processes; there are no others."""
    return known.get


# --- what is known


def test_a_device_is_told_whole_and_can_be_printed_as_json() -> None:
    """Everything that is read, in one object."""
    told = facts(a_reading(), {})

    assert json.loads(json.dumps(told)) == {
        "index": 0,
        "uuid": "GPU-a",
        "name": "NVIDIA H200",
        "bus_id": "00000000:19:00.0",
        "total_bytes": TOTAL,
        "free_bytes": TOTAL - RESERVED,
        "reserved_bytes": RESERVED,
        "used_bytes": 0,
        "numa_node": None,
        "mig": False,
        "processes": [],
        "compute_mode": "DEFAULT",
        "compute_capability": [9, 0],
        "cpu_affinity": [0, 1, 2, 3, 8],
        "utilization_percent": 43,
        "temperature_c": 41,
        "power_w": 312.4,
        "power_limit_w": 700.0,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "planned_share": 0.92,
    }


def test_a_process_is_told_with_the_replica_that_it_is() -> None:
    """By its number and its GPU; one that is nobody's replica has its command line."""
    reading = a_reading(GpuProcess(10, 7 * GIB), GpuProcess(20, 40 * GIB))
    statuses = {"images": a_status(("r0", 10, "GPU-a"), ("r1", 20, "GPU-b"), ("r2", None, "GPU-a"))}

    first, second = facts(reading, statuses, commands({10: "python worker", 20: "train.py --big"}))["processes"]

    assert first == {
        "pid": 10,
        "used_bytes": 7 * GIB,
        "command": "python worker",
        "instance": "images",
        "replica": "r0",
        "state": "READY",
        "footprint_bytes": 7 * GIB,
    }
    assert (second["replica"], second["instance"], second["command"]) == (None, None, "train.py --big")


def test_replicas_that_the_driver_lists_by_other_numbers_are_told_all_the_same() -> None:
    """A container sees the host's numbers: what bears them here is somebody else, and is not named."""
    reading = a_reading(GpuProcess(90_001, None), GpuProcess(77, None), used=7 * GIB)

    rows = facts(reading, {"default": a_status(("r0", 12, "GPU-a"))}, commands({77: "sshd"}))["processes"]

    assert [(row["pid"], row["command"], row["replica"]) for row in rows] == [
        (90_001, None, None),
        (77, None, None),
        (12, None, "r0"),
    ]
    assert (rows[2]["used_bytes"], rows[2]["footprint_bytes"]) == (None, 7 * GIB)


def test_a_card_with_the_hosts_memory_has_no_planned_share() -> None:
    """There is nothing to take a share of."""
    gpu = Gpu(0, "GPU-spark", "NVIDIA GB10", "", None, 0, 0, 0)

    assert facts(GpuReading(gpu), {})["planned_share"] is None


def test_the_command_line_of_a_process_begins_with_its_program() -> None:
    """Without the path to it; a process that is gone has none."""
    assert (command_of(os.getpid()) or "").startswith("py")
    assert command_of(2**22 + 1) is None


# --- running instances


class Machine:
    """Instances that answer as they are told to, on a clock that their answers move. They are asked by name only."""

    def __init__(self, base: Path, *names: str) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.silent: set[str] = set()
        self.ended: set[str] = set()
        self.base = base
        for name in names:
            (base / name).mkdir(parents=True)
            (base / name / "control.sock").touch()

    def ask(self, name: str) -> dict[str, Any]:
        """The status, or what is raised where there is none."""
        self.asked.append(name)
        if name in self.silent:
            self.now += ANSWER_S
        if name in self.silent | self.ended:
            raise NotRunning(name)
        return {"name": name}

    def instances(self, *more: Path) -> Instances:
        """Those of this machine."""
        return Instances(lambda: [self.base, *more], self.ask, lambda: self.now)


def test_every_running_instance_is_asked(tmp_path: Path) -> None:
    """Wherever it keeps its socket; a directory without one is none, and a name counts once."""
    machine = Machine(tmp_path / "a", "images", "texts")
    (tmp_path / "a" / "stopped").mkdir()
    other = Machine(tmp_path / "b", "sounds", "texts").base

    found = machine.instances(other, tmp_path / "absent").statuses()

    assert list(found) == ["images", "texts", "sounds"]
    assert found["sounds"] == {"name": "sounds"}


def test_an_instance_that_does_not_answer_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """Each unanswered call would hold the view up, and fill the socket of a supervisor that is stopped."""
    machine = Machine(tmp_path, "images", "stuck")
    machine.silent = {"stuck"}
    instances = machine.instances()

    assert list(instances.statuses()) == ["images"]
    assert list(instances.statuses()) == ["images"]
    assert machine.asked == ["images", "stuck", "images"]

    machine.now += SILENCE_S
    machine.silent = set()
    assert list(instances.statuses()) == ["images", "stuck"]


def test_an_instance_that_has_ended_is_asked_again_at_once(tmp_path: Path) -> None:
    """That costs nothing, and the next one of that name may be there already."""
    machine = Machine(tmp_path, "images")
    machine.ended = {"images"}
    instances = machine.instances()

    assert instances.statuses() == {}
    machine.ended = set()
    assert list(instances.statuses()) == ["images"]


# --- what people see


def test_the_view_fits_a_terminal_of_80_columns() -> None:
    """Bars, figures and a minute's course side by side, none of them wrapped or cut."""
    rows = [GpuProcess(10, 7 * GIB), GpuProcess(20, 40 * GIB)]
    told = facts(
        a_reading(*rows, uuid=UUID, used=47 * GIB),
        {"default": a_status(("r0", 10, UUID))},
        commands({10: "worker", 20: "train.py"}),
    )

    lines = seen(gpus_view(a_report(told), {UUID: [0, 50, 99, 100, None, *[43] * (HISTORY - 5)]}))

    assert max(map(len, lines)) <= 80
    assert lines == [
        "driver 580.159.03",
        "",
        "gpu 0  NVIDIA H200  41 °C  312 of 700 W  SM 1980 MHz  memory 3201 MHz",
        "  memory  █▓▓▓▓▓▓▓▓▓░░░░░░░░░░░░░░░░░░░░  47.0 GiB of 140.4 GiB, 92.8 GiB free",
        "  busy    █████████████░░░░░░░░░░░░░░░░░  43%  ▁▅██ ▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄",
        f"  {UUID}  00000000:19:00.0  compute 9.0",
        "  mode DEFAULT  planned share 0.92  reserved 615.0 MiB  cores 0-3,8",
        "  pid    memory  who",
        "   10   7.0 GiB  r0 of default  READY",
        "   20  40.0 GiB  train.py",
        "",
        "█ replicas  ▓ others  ░ free  ▒ reserved",
    ]


def test_what_a_card_does_not_tell_is_not_shown() -> None:
    """No unit without a figure."""
    gpu = Gpu(3, "MIG-a", "NVIDIA A100 MIG 1g.5gb", "", 4_864 * MIB, 4_864 * MIB, 0, 0, mig=True)

    lines = seen(gpus_view(a_report(facts(GpuReading(gpu), {}))))

    assert lines[2] == "gpu 3 MIG  NVIDIA A100 MIG 1g.5gb"
    assert lines[4] == "  busy    " + "░" * 30 + "  -"
    assert lines[5:7] == ["  MIG-a", "  planned share 0.85"]


def test_a_long_list_of_near_cores_is_only_counted() -> None:
    """A board that numbers the cores of its sockets in turn has one range for each."""
    gpu = Gpu(0, "GPU-a", "NVIDIA H200", "", TOTAL, TOTAL, 0, 0, cpu_affinity=tuple(range(0, 112, 2)))

    assert "56 near cores" in seen(gpus_view(a_report(facts(GpuReading(gpu), {}))))[6]


def test_a_card_with_the_hosts_memory_says_so() -> None:
    """Instead of zeros."""
    lines = seen(gpus_view(a_report(facts(GpuReading(Gpu(0, "GPU-spark", "NVIDIA GB10", "", None, 0, 0, 0)), {}))))

    assert lines[3].endswith("shares the host's memory")


def test_replicas_come_before_others_and_others_by_what_they_hold() -> None:
    """r10 comes after r9; a replica whose figure the driver does not tell has what orch measured of it."""
    replicas = [("r10", 10, "GPU-a"), ("r9", 9, "GPU-a")]
    rows = [GpuProcess(1, 2 * MIB), GpuProcess(2, 3 * MIB), GpuProcess(9, None), GpuProcess(10, 7 * GIB)]
    told = facts(a_reading(*rows), {"default": a_status(*replicas)}, commands({1: "a", 2: "b", 9: "r", 10: "r"}))

    lines = seen(gpus_view(a_report(told)))[8:12]

    assert [line.split("  ")[-2 if "READY" in line else -1] for line in lines] == [
        "r9 of default",
        "r10 of default",
        "b",
        "a",
    ]
    assert "about 7.0 GiB" in lines[0]


def test_the_memory_bar_never_claims_more_than_the_card_holds() -> None:
    """What processes share is counted in each of them."""
    rows = [GpuProcess(pid, TOTAL) for pid in (1, 2, 3)]
    told = facts(a_reading(*rows, used=TOTAL - RESERVED), {"x": a_status(("r0", 1, "GPU-a"), ("r1", 2, "GPU-a"))})

    assert seen(gpus_view(a_report(told)))[3].split()[1] == "█" * 30


def test_a_long_command_line_does_not_break_the_table() -> None:
    """Nor do square brackets in it, which rich would read as markup."""
    told = facts(a_reading(GpuProcess(1, GIB)), {}, commands({1: "python [bold]" + "x" * 200}))

    lines = seen(gpus_view(a_report(told)))

    assert max(map(len, lines)) <= 80
    assert any("[bold]" in line for line in lines)


@pytest.mark.parametrize(
    ("numbers", "words"), [((), ""), ((3,), "3"), ((0, 1, 2, 8), "0-2,8"), ((1, 3, 5), "1,3,5"), ((4, 5), "4-5")]
)
def test_runs_of_cores_are_shortened(numbers: Sequence[int], words: str) -> None:
    """A socket of 56 cores is one word."""
    assert ranges(numbers) == words


# --- over time


def test_the_last_readings_are_kept_and_a_card_that_is_gone_is_remembered() -> None:
    """Until it is back."""
    memory = Memory()
    first, second = facts(a_reading(busy=7), {}), facts(a_reading(uuid="GPU-b"), {})

    for _ in range(HISTORY + 5):
        memory.add(a_report(first, second))
    memory.add(a_report(facts(a_reading(busy=9), {})))

    assert list(memory.busy["GPU-a"]) == [7] * (HISTORY - 1) + [9]
    assert [each["uuid"] for each in memory.gone] == ["GPU-b"]
    lines = seen(gpus_view(a_report(first), memory.busy, memory.gone))
    assert "gpu 0  NVIDIA H200 (GPU-b) does not answer any more" in lines
    memory.add(a_report(first, second))
    assert memory.gone == []


def looks(*reports: Report) -> Callable[[], Report]:
    """One after the other, and then Ctrl-C."""
    waiting = iter(reports)

    def look() -> Report:
        for each in waiting:
            return each
        raise KeyboardInterrupt

    return look


def test_a_watched_terminal_is_drawn_anew_for_each_reading() -> None:
    """In place, and the last one stays when it is ended."""
    out = Console(file=io.StringIO(), width=100, force_terminal=True)
    pauses: list[float] = []

    with pytest.raises(KeyboardInterrupt):
        follow(
            looks(*(a_report(facts(a_reading(busy=busy), {})) for busy in (11, 22))),
            as_json=False,
            out=out,
            pause=pauses.append,
        )

    assert isinstance(out.file, io.StringIO)
    drawn = out.file.getvalue()
    assert drawn.index("11%") < drawn.index("22%")
    assert pauses == [1.0, 1.0]


def test_a_watching_program_gets_one_line_for_each_reading(capsys: pytest.CaptureFixture[str]) -> None:
    """Whole objects, so that it need not know where one ends."""
    with pytest.raises(KeyboardInterrupt):
        follow(looks(*[a_report(facts(a_reading(), {}))] * 3), as_json=True, pause=lambda _seconds: None)

    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["gpus"][0]["uuid"] for line in lines] == ["GPU-a"] * 3


def test_where_there_is_no_gpu_watching_says_so_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """None will appear."""
    follow(looks({"driver_version": None, "why_none": "there is no GPU", "gpus": []}), as_json=False)

    assert capsys.readouterr().out == "there is no GPU; replicas run on the CPU\n"


def test_the_command_works_with_and_without_a_gpu() -> None:
    """Whatever this machine has."""
    told = json.loads(CliRunner().invoke(gpus, ["--json"]).stdout)
    shown = CliRunner().invoke(gpus).stdout

    assert set(told) == {"driver_version", "why_none", "gpus"}
    if told["gpus"]:
        assert told["gpus"][0]["uuid"] in shown
    else:
        assert shown == f"{told['why_none']}; replicas run on the CPU\n"
