"""Which configuration is kept, which are on the front, and in what words and settings that is told."""

from __future__ import annotations

import dataclasses
import tomllib

from orch.config import resolve
from orch.errors import Exit
from orch.tuning import choice, words
from orch.tuning.grid import Cell, Outcome, Row
from orch.tuning.summary import Summary


def row(replicas: int, size: int, rate: float, p99_s: float, *, mps: bool = False) -> Row:
    """A measured configuration."""
    return Row(Cell(replicas, size, mps), Outcome.MEASURED, answers_per_s=rate, p99_s=p99_s, alone_s=0.01)


NO_ROOM = Row(Cell(8, 8, mps=False), Outcome.DOES_NOT_FIT, "8 replicas do not fit, 4 would: 24 / 7 = 3.42")


def summary(rows: list[Row], *, left: int = 0, max_latency_s: float | None = None, has_gpu: bool = True) -> Summary:
    """At the end of a run."""
    return Summary(rows, left, has_gpu, max_latency_s, "t.json", "t.html")


# --- the best


def test_the_highest_throughput_is_kept() -> None:
    """Whatever the latency, if nobody asked."""
    rows = [row(1, 1, 100, 0.01), row(4, 8, 900, 0.5), NO_ROOM, row(2, 8, 500, 0.2)]
    assert choice.best(rows) is rows[1]


def test_of_equals_the_one_that_takes_least() -> None:
    """Within 2 %: fewest replicas, then the smallest batch, then without MPS."""
    rows = [
        row(8, 8, 1000, 0.5, mps=True),
        row(4, 16, 990, 0.5, mps=True),
        row(4, 8, 985, 0.5, mps=True),
        row(4, 8, 981, 0.5),
        row(2, 64, 979, 0.1),
    ]
    assert choice.best(rows) is rows[3]
    assert choice.best(rows[:3]) is rows[2]
    assert choice.best(rows[:2]) is rows[1]


def test_a_latency_limit_comes_first() -> None:
    """The best of those within it; the limit itself is within."""
    rows = [row(1, 1, 100, 0.01), row(4, 8, 900, 0.5), row(2, 8, 500, 0.2)]
    assert choice.best(rows, 0.2) is rows[2]
    assert choice.best(rows, 0.199) is rows[0]
    assert choice.best(rows, 0.001) is None


def test_nothing_measured_is_nothing_kept() -> None:
    """What did not fit is no choice."""
    assert choice.best([]) is None
    assert choice.best([NO_ROOM]) is None


# --- the front


def test_the_front_has_what_nothing_beats_in_both() -> None:
    """By rising latency, and so by rising throughput."""
    beaten, fast, strong, middle = row(1, 1, 90, 0.02), row(1, 1, 100, 0.01), row(4, 8, 900, 0.5), row(2, 8, 500, 0.2)
    assert choice.front([strong, NO_ROOM, beaten, middle, fast]) == [fast, middle, strong]


def test_of_the_same_latency_only_the_faster_is_on_the_front() -> None:
    """And of the same throughput only the one with less latency."""
    slow, fast, late = row(1, 1, 100, 0.1), row(2, 1, 200, 0.1), row(4, 1, 200, 0.2)
    assert choice.front([slow, late, fast]) == [fast]


# --- words


def test_figures_have_three_digits_that_matter() -> None:
    """In units that people read."""
    assert [words.rate(figure) for figure in (0.5, 5.294, 52.94, 529.4, 12345.6)] == [
        "0.50", "5.29", "52.9", "529", "12,346",
    ]  # fmt: skip
    assert [words.latency(figure) for figure in (0.00084, 0.0312, 0.312, 1.314, 75)] == [
        "0.84 ms", "31.2 ms", "312 ms", "1.31 s", "75.0 s",
    ]  # fmt: skip


def test_a_sum_is_told_by_its_first_sentence() -> None:
    """The whole of it is in the report."""
    assert words.figures(NO_ROOM) == "does not fit: 8 replicas do not fit, 4 would"
    assert words.figures(Row(Cell(1, 1, mps=False), Outcome.OUT_OF_MEMORY, "r0: CUDA: none")) == (
        "out of memory: r0: CUDA: none"
    )


def test_the_verdict_names_the_gain_over_one_replica() -> None:
    """Of the same batch size, without MPS where that is known."""
    rows = [row(1, 8, 100, 0.1), row(1, 8, 90, 0.1, mps=True), row(1, 1, 10, 0.1), row(4, 8, 376, 0.2, mps=True)]
    one = choice.baseline(rows, rows[3])
    assert one is rows[0]
    times = "\N{MULTIPLICATION SIGN}"
    assert words.verdict(rows[3], one, rows, None, has_gpu=True) == (
        f"best: 4 replicas, batches of 8, MPS on: 376 answers/s ({times}3.76 of one replica) at p99 200 ms, "
        "of 4 measured"
    )
    assert words.verdict(rows[0], rows[0], rows[:1], 0.2, has_gpu=False) == (
        "best with p99 within 200 ms: 1 replica, batches of 8: 100 answers/s at p99 100 ms, the only one measured"
    )


# --- what is printed at the end


def test_what_is_printed_is_a_settings_file() -> None:
    """Orch reads it as it is, and finds the chosen configuration."""
    text = summary([row(1, 8, 100, 0.1), row(4, 8, 376, 0.2, mps=True)]).text()
    config = resolve(file=tomllib.loads(text)).config
    assert (config.replicas, config.max_batch_size, config.mps) == (4, 8, "on")
    assert "t.json" in text
    assert "t.html" in text


def test_a_target_is_printed_so_that_the_file_is_enough() -> None:
    """Whatever its path has in it."""
    target = 'models/a "b" \\ é.py:M'
    text = dataclasses.replace(summary([row(1, 8, 100, 0.1)]), target=target).text()
    assert resolve(file=tomllib.loads(text)).config.target == target


def test_without_a_gpu_mps_is_not_mentioned() -> None:
    """The lines may go to a machine that has one."""
    assert tomllib.loads(summary([row(1, 8, 100, 0.1)], has_gpu=False).text()) == {"replicas": 1, "max_batch_size": 8}


def test_a_latency_that_nothing_keeps_is_told_with_the_lowest_there_is() -> None:
    """And no settings: none is right."""
    text = summary([row(1, 1, 100, 0.012), row(4, 8, 900, 0.5)], max_latency_s=0.005).text()
    assert tomllib.loads(text) == {}
    assert "within 5.00 ms; the lowest is 1 replica, batches of 1, MPS off: 100 answers/s, p99 12.0 ms" in text


def test_programs_get_the_same() -> None:
    """The best, the front and all rows."""
    rows = [row(1, 1, 100, 0.01), NO_ROOM]
    found = summary(rows, left=3).as_json()
    assert found["best"]["answers_per_s"] == 100
    assert found["front"] == [{"replicas": 1, "max_batch_size": 1, "mps": False}]
    assert [each["outcome"] for each in found["rows"]] == ["measured", "does not fit"]
    assert found["left"] == 3
    assert summary([NO_ROOM]).as_json()["best"] is None


def test_an_end_before_the_end_says_how_to_go_on() -> None:
    """What is kept, what is left, and what to do."""
    assert summary([row(1, 1, 100, 0.01)], left=5).what_is_left() == (
        "1 configuration kept in t.json, about 5 left: the same command goes on with them"
    )


def test_nothing_measured_names_no_file() -> None:
    """There is none."""
    assert summary([NO_ROOM], left=2).what_is_left().startswith("nothing is measured yet, about 2 left")
    assert "t.json" not in summary([NO_ROOM]).text()


def test_a_grid_of_which_nothing_could_be_had_fails_as_its_first_cell_did() -> None:
    """Scripts see the same exit code as of `orch up`."""
    no_memory = Row(Cell(1, 8, mps=False), Outcome.OUT_OF_MEMORY, "r0: none")
    assert summary([no_memory, NO_ROOM]).is_empty
    assert summary([NO_ROOM, no_memory]).failure().exit_code == Exit.DOES_NOT_FIT
    failure = summary([no_memory]).failure()
    assert failure.exit_code == Exit.OUT_OF_MEMORY
    assert "1 replica, batches of 8, MPS off: out of memory: r0: none" in str(failure)
