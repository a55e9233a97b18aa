"""How replicas come up: in their turn, or together, and what is made of those that find no memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orch.errors import Exit
from tests.process.harness import Instance, Place, eventually


def most_together(folder: Path) -> int:
    """Replicas that were seen loading at the same time."""
    return max(int(line) for line in (folder / "together").read_text().split())


def settled(instance: Instance) -> bool:
    """Nothing is coming or going."""
    return bool(instance.status().get("settled"))


def test_replicas_load_one_after_another(place: Place, tmp_path: Path) -> None:
    """Unless more is asked for."""
    place.up("memory.py:SlowToLoad", f"--set=notes={tmp_path}", replicas=3)
    assert most_together(tmp_path) == 1


def test_replicas_load_together_where_asked_for(place: Place, tmp_path: Path) -> None:
    """All but replica 0, which is measured alone."""
    place.up("memory.py:SlowToLoad", f"--set=notes={tmp_path}", "--load-parallelism=3", replicas=4)
    assert most_together(tmp_path) == 3


def test_a_replica_that_finds_no_memory_makes_a_smaller_plan(place: Place, tmp_path: Path) -> None:
    """It is tried twice; then the plan is what runs, which goes on as before."""
    instance = place.up("memory.py:RunsOut", "--set=fits=2", f"--set=notes={tmp_path}", replicas=3, wait=False)
    eventually(lambda: settled(instance), within=30)
    status = instance.status()
    assert [each["id"] for each in status["replicas"]] == ["r0", "r1"]
    assert (status["state"], status["plan"]["total"], status["plan"]["limit"]) == ("READY", 2, "memory")
    assert "r2 ran out of memory while loading, again: 2 of 3 are kept" in status["plan"]["because"]
    assert {each.name: len(each.read_text()) for each in tmp_path.iterdir()} == {"r0": 1, "r1": 1, "r2": 2}
    assert set(instance.client().map(["?"] * 20)) == {"r0", "r1"}
    assert "warning: r2 ran out of memory while loading, again: of 3 replicas 2 are kept" in instance.output()


def test_a_replica_that_finds_memory_the_second_time_stays(place: Place, tmp_path: Path) -> None:
    """What a dead process held may be freed late."""
    options = ("--set=fits=2", f"--set=notes={tmp_path}", "--set=mends=true")
    instance = place.up("memory.py:RunsOut", *options, replicas=3, wait=False)
    eventually(lambda: settled(instance), within=30)
    assert [each["id"] for each in instance.status()["replicas"]] == ["r0", "r1", "r2"]


def test_scaling_up_into_full_memory_keeps_what_runs(place: Place, tmp_path: Path) -> None:
    """The plan falls back to the replicas there are."""
    instance = place.up("memory.py:RunsOut", "--set=fits=1", f"--set=notes={tmp_path}", replicas=1)
    pid = instance.pid_of("r0")
    place.orch("scale", "2")
    eventually(lambda: len(list(tmp_path.iterdir())) == 2 and settled(instance), within=30)
    assert instance.status()["plan"]["total"] == 1
    assert instance.pid_of("r0") == pid


def test_a_model_that_finds_no_memory_at_all_is_an_error(place: Place, tmp_path: Path) -> None:
    """With the exit code for it, and its own words."""
    found = place.orch(
        "up", "memory.py:RunsOut", "--set=fits=0", f"--set=notes={tmp_path}", cwd=Path(__file__).parent / "models"
    )
    assert found.code == Exit.OUT_OF_MEMORY
    assert "no room for the weights" in found.error_line()


@pytest.mark.parametrize("given", ["0", "65", "many"])
def test_no_impossible_number_loads_together(place: Place, given: str) -> None:
    """The error names the value and what is allowed."""
    found = place.orch("up", "plain.py:Echo", f"--load-parallelism={given}", cwd=Path(__file__).parent / "models")
    assert found.code == Exit.BAD_CONFIG
    assert f"load_parallelism = {given}" in found.error_line()
    assert "from 1 to 64" in found.error_line()


def test_a_status_says_whether_anything_comes_or_goes(place: Place) -> None:
    """Programs wait for it."""
    instance = place.up("plain.py:Echo", replicas=2)
    assert settled(instance)
    place.orch("scale", "3")
    eventually(lambda: len(instance.ready()) == 3 and settled(instance), within=20)
    assert json.dumps(instance.status()["plan"])
