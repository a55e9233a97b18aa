"""`orch tune`: a grid measured to its end, interrupted, killed and gone on with; and nothing left behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from orch.config import resolve
from orch.errors import Exit
from tests.process.harness import FACTOR, MODELS, Place, Process, eventually

SLOW = f"{MODELS}/tuned.py:Slow"
# Four cells of two instances; a measurement takes 2 to 3 s on a quiet machine, and at most 8 s on one that is not.
WORDS = ("--device=cpu", "--replicas=1,2", "--max-batch-size=1,4", "--seconds=0.5")
GRID_S = 90.0
RESULTS, REPORT = "orch-tune-tuned-Slow.json", "orch-tune-tuned-Slow.html"
pytestmark = pytest.mark.timeout(240)


def start(place: Place, *words: str, target: str = SLOW) -> Process:
    """`orch tune` in a place, not waited for."""
    return place.start("-m", "orch_cli", "tune", target, *(words or WORDS))


def rows(place: Place) -> list[dict[str, Any]]:
    """What the result file has."""
    path = next(place.base.glob("orch-tune-*.json"), None)
    found: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path else []
    return found


def logs(place: Place) -> list[str]:
    """Of the instances of tune, the directories with logs."""
    return [each.name for each in place.state.glob("tune-*")]


def cells(place: Place) -> set[tuple[int, int]]:
    """Replicas and batch sizes that were measured."""
    return {(row["replicas"], row["max_batch_size"]) for row in rows(place) if row["outcome"] == "measured"}


def workers(place: Place) -> list[int]:
    """Processes that load or serve the model."""

    def is_worker(pid: int) -> bool:
        try:
            return b"orch_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    return [pid for pid in place.processes() if is_worker(pid)]


def await_rows(place: Place, process: Process, count: int) -> None:
    """Until so many configurations are known."""

    def known() -> bool:
        assert process.poll() is None, process.communicate()
        return len(rows(place)) >= count

    eventually(known, within=GRID_S)


def end(process: Process, number: signal.Signals, within: float = 15.0) -> tuple[int, str, str]:
    """Send a signal; the exit code, the last line on standard error, and standard output."""
    process.send_signal(number)
    out, err = process.communicate(timeout=within * FACTOR)
    return process.returncode, (err.splitlines() or [""])[-1], out


def test_a_grid_is_measured_to_its_end(place: Place) -> None:
    """Each configuration has its row; the best is told in settings that orch reads, and in a report."""
    finished = place.orch("tune", SLOW, *WORDS, within=GRID_S)
    assert finished.code == Exit.OK, finished
    assert cells(place) == {(1, 1), (2, 1), (1, 4), (2, 4)}
    rate = {(row["replicas"], row["max_batch_size"]): row["answers_per_s"] for row in rows(place)}
    assert 25 < rate[1, 1] < 1 / 0.022
    assert 70 < rate[1, 4] < 4 / 0.028
    assert rate[2, 4] > 1.3 * rate[1, 4] > 1.3 * rate[1, 1]
    for row in rows(place):
        assert 0.02 < row["alone_s"] < row["p50_s"] <= row["p99_s"]
        assert row["footprint_bytes"] > 0
    settings = resolve(file=tomllib.loads(finished.out)).config
    assert (settings.target, settings.replicas, settings.max_batch_size) == (SLOW, 2, 4)
    assert "best: 2 replicas, batches of 4" in finished.out
    report = (place.base / REPORT).read_text()
    assert report.startswith("<!DOCTYPE html>")
    assert "2 replicas, batches of 4" in report
    assert len(re.findall(r"orch: \d/4 ", finished.err)) == 4, finished.err
    assert not place.processes()


def test_ctrl_c_keeps_what_is_known_and_the_same_command_goes_on(place: Place) -> None:
    """The best so far is told, nothing runs any more, and nothing that was measured is measured again."""
    with start(place) as process:
        await_rows(place, process, 1)
        eventually(lambda: workers(place))
        code, said, out = end(process, signal.SIGINT)
    assert code == 130
    assert tomllib.loads(out)["max_batch_size"] == 4
    assert logs(place) == []
    assert re.fullmatch(rf"orch: interrupted by SIGINT; \d configurations? kept in {RESULTS}, about \d left: .*", said)
    assert not place.processes()
    before = rows(place)
    assert 1 <= len(before) < 4

    finished = place.orch("tune", SLOW, *WORDS, "--json", within=GRID_S)
    assert finished.code == Exit.OK, finished
    assert rows(place)[: len(before)] == before
    assert cells(place) == {(1, 1), (2, 1), (1, 4), (2, 4)}
    assert f"{len(before)} configuration" in finished.err.splitlines()[0]
    assert json.loads(finished.out)["best"]["max_batch_size"] == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_it_ends_while_a_replica_loads(place: Place, number: signal.Signals) -> None:
    """A load of an hour is not waited for."""
    with start(place, *WORDS, "--set=load_s=3600") as process:
        eventually(lambda: workers(place), within=20.0)
        code, said, out = end(process, number)
    assert code == 128 + number
    assert said.startswith(f"orch: interrupted by {number.name}; nothing is measured yet")
    assert (out, rows(place), logs(place)) == ("", [], [])
    assert not place.processes()


@pytest.mark.parametrize("load_s", [0.0, 3600.0])
def test_a_sigkill_of_tune_leaves_nothing_either(place: Place, load_s: float) -> None:
    """The instance is told by the kernel, while it serves as while it loads."""
    with start(place, *WORDS, f"--set=load_s={load_s}") as process:
        if load_s:
            eventually(lambda: workers(place), within=20.0)
        else:
            await_rows(place, process, 1)
        process.kill()
        process.communicate()
    eventually(lambda: not place.processes(), within=10.0)
    assert not list(place.runtime.iterdir())


def test_a_supervisor_that_is_killed_under_it_is_a_failed_configuration(place: Place) -> None:
    """The others are measured, and the next run tries it again."""
    with start(place) as process:
        await_rows(place, process, 1)
        status = place.orch("status", "--json", f"--name=tune-{process.pid}")
        os.kill(json.loads(status.out)["pid"], signal.SIGKILL)
        _, err = process.communicate(timeout=GRID_S * FACTOR)
    assert process.returncode == Exit.OK, err
    outcomes = {(row["replicas"], row["max_batch_size"]): row["outcome"] for row in rows(place)}
    assert outcomes[1, 4] == "measured"
    assert outcomes[2, 4] == "failed"
    assert {(1, 1), (2, 1)} <= cells(place)


def test_what_has_no_memory_is_a_row_and_not_the_end(place: Place) -> None:
    """A batch of four is too large for this model; batches of one are measured."""
    finished = place.orch("tune", f"{MODELS}/tuned.py:Hungry", *WORDS, "--replicas=1", within=GRID_S)
    assert finished.code == Exit.OK, finished
    assert [(row["max_batch_size"], row["outcome"]) for row in rows(place)] == [(4, "out of memory"), (1, "measured")]
    assert "no room for so many" in rows(place)[0]["reason"]
    assert "out of memory" in (place.base / "orch-tune-tuned-Hungry.html").read_text()
    assert f"(log: {place.state}/{logs(place)[0]}/r0.log)" in rows(place)[0]["reason"]


def test_a_count_that_does_not_fit_is_a_row_and_not_the_end(place: Place) -> None:
    """With the sum; nothing above it is tried."""
    words = ("--device=cpu", "--replicas=1,4000,4096", "--max-batch-size=4", "--seconds=0.5")
    finished = place.orch("tune", SLOW, *words, within=GRID_S)
    assert finished.code == Exit.OK, finished
    assert [(row["replicas"], row["outcome"]) for row in rows(place)] == [(1, "measured"), (4000, "does not fit")]
    assert "4000 replicas do not fit" in rows(place)[1]["reason"]
    assert tomllib.loads(finished.out) == {"target": SLOW, "replicas": 1, "max_batch_size": 4}


def test_without_lists_the_model_and_the_machine_say_what_to_try(place: Place) -> None:
    """Batches of 1 and of the model's own 4; counts are doubled while that pays and fits."""
    words = ("--device=cpu", "--seconds=0.5", "--min-gain=1")
    finished = place.orch("tune", SLOW, *words, within=GRID_S)
    assert finished.code == Exit.OK, finished
    assert {(1, 1), (1, 4)} <= cells(place)
    assert {size for _, size in cells(place)} == {1, 4}
    assert json.loads((place.base / RESULTS).read_text())["own_batch_size"] == 4


def test_when_the_time_is_up_the_best_so_far_is_told(place: Place) -> None:
    """With exit code 0, and a line about what is left."""
    words = ("--device=cpu", "--replicas=1,2,3", "--max-batch-size=1,2,3,4", "--seconds=0.5", "--time-limit=12s")
    finished = place.orch("tune", SLOW, *words, within=GRID_S)
    assert finished.code == Exit.OK, finished
    assert "the time limit has passed; " in finished.error_line()
    assert tomllib.loads(finished.out)["target"] == SLOW
    assert not place.processes()


def test_a_time_too_short_to_measure_anything_is_told(place: Place) -> None:
    """With exit code 3, as of any setting that cannot work."""
    finished = place.orch("tune", SLOW, *WORDS, "--time-limit=1s", "--set=load_s=3600")
    assert finished.code == Exit.BAD_CONFIG, finished
    assert "time_limit = 1s (from --time-limit): it has passed before anything" in finished.error_line()
    assert (finished.out, rows(place), logs(place)) == ("", [], [])
    assert not place.processes()


@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        (f"{MODELS}/tuned.py:Nobody", Exit.BAD_CONFIG, "has no 'Nobody'; it defines "),
        (f"{MODELS}/plain.py:Echo", Exit.BAD_CONFIG, "warmup() returns no samples"),
        (f"{MODELS}/naughty.py:CannotLoad", Exit.MODEL_LOAD, "not one configuration could be measured: "),
    ],
)
def test_a_model_that_cannot_be_measured_is_told_in_a_line(place: Place, target: str, code: int, said: str) -> None:
    """With the exit code that `orch up` would have."""
    words = ("--device=cpu", "--replicas=1", "--max-batch-size=1", "--seconds=0.5")
    extra = ("--set=how=raise",) if "naughty" in target else ()
    finished = place.orch("tune", target, *words, *extra)
    assert finished.code == code, finished
    assert said in finished.error_line()
    assert (finished.out, rows(place)) == ("", [])
    assert len(logs(place)) == 1


def test_a_terminal_shows_a_table(place: Place) -> None:
    """The rows as they come, the best marked, and all of them at the end."""
    primary, secondary = pty.openpty()
    words = ("--device=cpu", "--replicas=1", "--max-batch-size=4", "--seconds=0.5")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "orch_cli", "tune", SLOW, *words],
        env=place.environ({"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}), cwd=place.base,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=secondary,
    ) as process:  # fmt: skip
        os.close(secondary)
        seen = b""
        try:
            while piece := os.read(primary, 65536):
                seen += piece
        except OSError:  # nobody has the other end any more
            pass
        os.close(primary)
        assert process.stdout is not None
        assert tomllib.loads(process.stdout.read().decode())["replicas"] == 1
    assert process.returncode == Exit.OK
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert "batches of 4: measuring 1 replica" in text
    assert "1/1 configurations" in text
    assert re.search(r"★\s+1\s+4\s+\d", text.rpartition("replicas  batch  answers/s")[2])
