"""The result file: what it keeps, what it refuses, and what a run goes on with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from orch.config import resolve
from orch.errors import ConfigError
from orch.tuning.facts import differences, facts_of
from orch.tuning.grid import Cell, Outcome, Row
from orch.tuning.results import Results

FACTS: dict[str, Any] = {"target": "m.py:M", "settings": {"size": 3}, "seconds": 2.0, "gpus": ["NVIDIA H200"]}
MEASURED = Row(
    Cell(4, 8, mps=True), Outcome.MEASURED, "", 528.9, 0.03, 0.0371, 0.012, 2115, 64, 4.0, False, 7 * 2**30, 18
)
NO_ROOM = Row(Cell(19, 8, mps=True), Outcome.DOES_NOT_FIT, "the sum", fits=None)
FAILED = Row(Cell(8, 8, mps=True), Outcome.FAILED, "a replica died")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is to be."""
    return tmp_path / "t.json"


def results_at(path: Path, *rows: Row, facts: dict[str, Any] = FACTS) -> Results:
    """A file with these rows."""
    results = Results.open(path, facts, fresh=True)
    for row in rows:
        results.add(row)
    return results


def test_what_was_kept_is_there_again(path: Path) -> None:
    """Every figure as it was."""
    results_at(path, MEASURED, NO_ROOM).note_own_batch_size(64)
    again = Results.open(path, FACTS, fresh=False)
    assert again.rows == [MEASURED, NO_ROOM]
    assert again.own_batch_size == 64


def test_failures_are_tried_again(path: Path) -> None:
    """What did not fit is a fact; what failed may have been bad luck."""
    results_at(path, MEASURED, FAILED, NO_ROOM)
    assert Results.open(path, FACTS, fresh=False).rows == [MEASURED, NO_ROOM]


def test_a_second_row_of_a_configuration_replaces_the_first(path: Path) -> None:
    """Each is there once."""
    results = results_at(path, FAILED, NO_ROOM)
    results.add(Row(FAILED.cell, Outcome.MEASURED, answers_per_s=1.0))
    assert [row.outcome for row in results.rows] == [Outcome.DOES_NOT_FIT, Outcome.MEASURED]


def test_fresh_begins_anew(path: Path) -> None:
    """What is there stays until there is something to put in its place."""
    results_at(path, MEASURED)
    fresh = Results.open(path, FACTS, fresh=True)
    assert fresh.rows == []
    fresh.add(NO_ROOM)
    assert len(json.loads(path.read_text())["rows"]) == 1
    fresh.add(MEASURED)
    assert len(json.loads(path.read_text())["rows"]) == 2


def test_nothing_measured_leaves_no_file(path: Path) -> None:
    """Nothing would be in its way, and nothing would be in it."""
    results_at(path, NO_ROOM, FAILED)
    assert list(path.parent.iterdir()) == []


def test_a_file_of_something_else_without_a_measured_row_is_in_nobodys_way(path: Path) -> None:
    """There is nothing to lose."""
    path.write_text(json.dumps({"format": 1, "facts": {"target": "x"}, "own_batch_size": 3, "rows": []}))
    results = Results.open(path, FACTS, fresh=False)
    assert (results.rows, results.own_batch_size) == ([], None)


def test_nothing_else_is_left_beside_it(path: Path) -> None:
    """A file that is written in one step leaves no other behind."""
    results_at(path, MEASURED, NO_ROOM)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_rows_of_other_facts_are_never_mixed(path: Path) -> None:
    """The line names what differs, and the ways out."""
    results_at(path, MEASURED)
    with pytest.raises(ConfigError) as refusal:
        Results.open(path, {**FACTS, "cores": 4, "gpus": ["NVIDIA A100"]}, fresh=False)
    said = str(refusal.value)
    assert "gpus is ['NVIDIA H200'] there and ['NVIDIA A100'] now; cores is not set there and 4 now" in said
    assert "--fresh" in said
    assert json.loads(path.read_text())["rows"] != []


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '{"format": 1}', '{"format": 1, "facts": {}, "own_batch_size": null}',
        '{"format": "1", "facts": {}, "own_batch_size": 8, "rows": []}', "[" * 100_000, "\xff",
    ],
)  # fmt: skip
@pytest.mark.parametrize("fresh", [False, True])
def test_a_file_that_is_not_ours_is_refused_and_stays(path: Path, text: str, fresh: bool) -> None:
    """In one line, with the way out; nothing of somebody else is ever overwritten."""
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="is no result file of orch tune; it is left as it is, --out names"):
        Results.open(path, FACTS, fresh=fresh)
    assert path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("replicas", True), ("replicas", -1), ("mps", "on"), ("outcome", "fine"), ("answers_per_s", "fast"),
        ("p99_s", -0.1), ("p99_s", 1e999), ("fits", 1.5), ("steady", None),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_is_refused(path: Path, key: str, value: object) -> None:
    """Nobody chooses by figures that somebody has edited to nonsense."""
    results_at(path, MEASURED)
    content = json.loads(path.read_text())
    content["rows"][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="is damaged; --fresh starts anew"):
        Results.open(path, FACTS, fresh=False)


def test_another_format_is_named(path: Path) -> None:
    """A newer orch has written it."""
    results_at(path, MEASURED)
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ConfigError, match="has format 2, and this version of orch reads 1"):
        Results.open(path, FACTS, fresh=False)


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    """Before anything is measured."""
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory; choose another place"):
        Results.open(tmp_path / "nowhere" / "t.json", FACTS, fresh=False)


def test_a_value_of_the_environment_is_noticed_and_not_told(tmp_path: Path) -> None:
    """It may be a secret; another value makes other figures all the same."""
    (tmp_path / "m.py").write_text("")

    def facts(token: str) -> dict[str, Any]:
        flags = {"target": f"{tmp_path}/m.py:M", "device": "cpu", "env": [f"TOKEN={token}"]}
        return facts_of(resolve(flags).config, 2.0)

    one, other = facts("hunter2"), facts("hunter3")
    assert "hunter" not in json.dumps(one)
    assert differences(one, other) == ["--env TOKEN has other values"]
    assert differences(one, facts("hunter2")) == []


def test_a_changed_model_is_another_one(tmp_path: Path) -> None:
    """Its file's digest is a fact, wherever the file lies."""
    config = resolve({"target": f"{tmp_path}/m.py:M", "device": "cpu"}).config
    (tmp_path / "m.py").write_text("one")
    before = facts_of(config, 2.0)
    (tmp_path / "m.py").write_text("two")
    (said,) = differences(before, facts_of(config, 5.0))
    digests = [hashlib.sha256(text).hexdigest()[:12] for text in (b"one", b"two")]
    assert said == f"the model's file is {digests[0]} there and {digests[1]} now (SHA-256)"
    elsewhere = {**facts_of(config, 2.0), "target": "other.py:M"}
    assert len(differences(before, elsewhere)) == 1  # of two files it goes without saying
