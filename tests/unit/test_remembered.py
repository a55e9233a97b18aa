"""Footprints kept in a file between runs."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from orch.planning.footprint import Footprint, How, Parts, declared, resident
from orch.planning.remembered import MAX_ENTRIES, MAX_FILE_BYTES, agrees, key_of, recall, remember
from orch.planning.sizes import GIB, MIB

MEASURED = Footprint(1398 * MIB, 900 * MIB, How.PROCESS, Parts(612 * MIB, 86 * MIB, 700 * MIB, 0))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A file that is not there yet, in a folder that is not there yet."""
    return tmp_path / "state" / "footprints.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's file."""
    path = tmp_path / "shout.py"
    path.write_text("class Shout: ...\n")
    return path


def key(target: str, **changed: Any) -> str | None:
    """The key of a target on one machine, but for what is changed."""
    usual: dict[str, Any] = {
        "settings": MappingProxyType({"dtype": "float16"}),
        "environ": {},
        "max_batch_size": None,
        "gpu_name": "NVIDIA H200",
        "driver": "580.159.03",
        "versions": {"orch": "1", "torch": "2"},
    }
    return key_of(target, **{**usual, **changed})


# --- keeping


@pytest.mark.parametrize("footprint", [MEASURED, resident(300 * MIB), Footprint(GIB, None, How.TORCH), declared(GIB)])
def test_what_is_remembered_is_recalled(store: Path, footprint: Footprint) -> None:
    """All of it, parts included, and nothing under another key."""
    remember(store, "a", footprint)
    assert recall(store, "a") == footprint
    assert recall(store, "b") is None


def test_a_newer_measurement_takes_the_place_of_the_older(store: Path) -> None:
    """One per key, with its date."""
    remember(store, "a", MEASURED)
    remember(store, "b", MEASURED)
    remember(store, "a", resident(GIB))
    assert recall(store, "a") == resident(GIB)
    entries = json.loads(store.read_text())["footprints"]
    assert list(entries) == ["b", "a"]
    assert entries["a"]["measured_at"].endswith("+00:00")


def test_the_oldest_are_dropped_when_there_are_too_many(store: Path) -> None:
    """The file does not grow for ever."""
    for number in range(MAX_ENTRIES + 2):
        remember(store, f"k{number}", MEASURED)
    kept = [number for number in range(MAX_ENTRIES + 2) if recall(store, f"k{number}")]
    assert kept == list(range(2, MAX_ENTRIES + 2))
    assert store.stat().st_size < MAX_FILE_BYTES / 2


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    "\x00\x01",
    "[" * 100_000,
    '{"format": 1}',
    '{"format": 1, "footprints": []}',
    '{"format": 2, "footprints": {"a": {"device_bytes": 1, "host_bytes": null, "how": "PROCESS", "parts": null}}}',
    " " * (MAX_FILE_BYTES + 1),
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_remembers_nothing_and_is_replaced(store: Path, text: str) -> None:
    """It is a memory; measuring again mends it."""
    store.parent.mkdir()
    store.write_text(text)
    assert recall(store, "a") is None
    remember(store, "a", MEASURED)
    assert recall(store, "a") == MEASURED


GOOD = {"device_bytes": 3, "host_bytes": None, "how": "PROCESS", "parts": None}
PARTS = {"context_bytes": 1, "weights_bytes": 1, "activation_bytes": 1, "other_bytes": 0}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {},
        {**GOOD, "device_bytes": -1},
        {**GOOD, "device_bytes": 1.5},
        {**GOOD, "device_bytes": True},
        {**GOOD, "host_bytes": "3"},
        {**GOOD, "how": "GUESSED"},
        {**GOOD, "how": []},
        {**GOOD, "parts": 1},
        {**GOOD, "parts": {}},
        {**GOOD, "parts": {**PARTS, "graphs_bytes": 1}},
        {**GOOD, "parts": {**PARTS, "other_bytes": 1}},
    ],
)
def test_a_damaged_entry_is_not_recalled_and_its_neighbours_are(store: Path, entry: Any) -> None:
    """Numbers that are none, sources that are none, parts that do not add up."""
    store.parent.mkdir()
    good = {**GOOD, "parts": PARTS}
    store.write_text(json.dumps({"format": 1, "footprints": {"bad": entry, "good": good}}))
    assert recall(store, "bad") is None
    assert recall(store, "good") == Footprint(3, None, How.PROCESS, Parts(1, 1, 1, 0))


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Planning goes on without a memory."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    remember(in_the_way / "footprints.json", "a", MEASURED)
    assert "is not remembered" in caplog.text
    assert recall(in_the_way / "footprints.json", "a") is None


def test_writers_at_the_same_moment_leave_a_whole_file(store: Path) -> None:
    """A reader between them finds one too, and nothing is left beside it."""
    remember(store, "first", MEASURED)

    def write(number: int) -> int:
        remember(store, f"k{number}", MEASURED)
        return len(json.loads(store.read_text())["footprints"])

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(write, range(64))) >= 1
    assert recall(store, "first") == MEASURED
    assert list(store.parent.iterdir()) == [store]


# --- the key


def test_the_same_circumstances_have_the_same_key(model: Path) -> None:
    """However the mapping is made."""
    assert key(f"{model}:Shout") == key(f"{model}:Shout", settings={"dtype": "float16"})


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"dtype": "float32"}},
        {"environ": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}},
        {"max_batch_size": 8},
        {"gpu_name": "NVIDIA GeForce RTX 4090"},
        {"gpu_name": None},
        {"driver": "570.1"},
        {"driver": None},
        {"versions": {"orch": "1", "torch": None}},
        {"versions": {"orch": "2", "torch": "2"}},
    ],
)
def test_other_circumstances_have_another_key(model: Path, changed: dict[str, Any]) -> None:
    """Each of them may change what a replica costs."""
    assert key(f"{model}:Shout", **changed) != key(f"{model}:Shout")


def test_another_model_has_another_key(model: Path) -> None:
    """Another name in the file, or another file under its name."""
    before = key(f"{model}:Shout")
    assert key(f"{model}:Whisper") != before
    model.write_text("class Shout:\n    max_batch_size = 8\n")
    assert key(f"{model}:Shout") != before


def test_the_installed_versions_are_part_of_the_key(model: Path) -> None:
    """Read from the environment where none are given."""
    assert key(f"{model}:Shout", versions=None) not in (None, key(f"{model}:Shout"))


def test_a_target_in_a_module_is_known_by_the_modules_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found without running it, or the packages it is in."""
    inner = tmp_path / "loudpackage" / "plain" / "shout.py"
    inner.parent.mkdir(parents=True)
    (tmp_path / "loudpackage" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    inner.write_text("class Shout: ...\n")
    monkeypatch.chdir(tmp_path)
    before = key("loudpackage.plain.shout:Shout")
    assert before is not None
    assert key("loudpackage:Shout") not in (None, before)
    inner.write_text("raise RuntimeError('imported')\n")
    assert key("loudpackage.plain.shout:Shout") not in (None, before)
    assert "loudpackage" not in sys.modules


@pytest.mark.parametrize(
    "target",
    [
        "missing.py:Shout",
        "./missing:Shout",
        "no_such_module:Shout",
        "json.no_such:Shout",
        "sys:Shout",
        ":Shout",
        "Shout",
    ],
)
def test_a_target_without_a_readable_file_has_no_key(target: str) -> None:
    """Nothing is remembered of it."""
    assert key(target) is None


# --- the comparison


@pytest.mark.parametrize(
    ("remembered", "measured", "agree"),
    [
        (Footprint(10 * GIB, None, How.PROCESS), Footprint(10 * GIB + 512 * MIB, None, How.DEVICE), True),
        (Footprint(10 * GIB, None, How.PROCESS), Footprint(10 * GIB + 513 * MIB, None, How.PROCESS), False),
        (Footprint(10 * GIB, None, How.PROCESS), Footprint(9 * GIB, None, How.PROCESS), False),
        (Footprint(GIB, None, How.PROCESS), Footprint(GIB - 64 * MIB, None, How.PROCESS), True),
        (Footprint(GIB, None, How.PROCESS), Footprint(GIB + 65 * MIB, None, How.PROCESS), False),
        (Footprint(GIB, GIB, How.PROCESS), Footprint(GIB, 9 * GIB, How.PROCESS), True),
        (Footprint(GIB, GIB, How.PROCESS), resident(GIB), False),
        (resident(2 * GIB), resident(2 * GIB + 100 * MIB), True),
        (resident(2 * GIB), resident(3 * GIB), False),
    ],
)
def test_a_memory_agrees_within_five_percent_or_64_mib(remembered: Footprint, measured: Footprint, agree: bool) -> None:
    """Of the memory that a replica is on: the device's, or the host's."""
    assert agrees(remembered, measured) is agree
