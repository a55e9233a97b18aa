"""Which configurations a grid has, and which are left, from what is known."""

from __future__ import annotations

import pytest

from orch.errors import ConfigError
from orch.tuning import grid
from orch.tuning.grid import Cell, Grid, Outcome, Row, Series


def row(replicas: int, rate: float = 0.0, *, size: int = 8, fits: int = 100, mps: bool = False) -> Row:
    """A measured configuration."""
    return Row(Cell(replicas, size, mps), Outcome.MEASURED, answers_per_s=rate, p99_s=0.1, fits=fits)


def refused(replicas: int, outcome: Outcome = Outcome.DOES_NOT_FIT, *, size: int = 8) -> Row:
    """One that could not be had."""
    return Row(Cell(replicas, size, mps=False), outcome, "no room")


LISTED = Grid((1, 2, 4), (1, 8), (False,), 0.05)
AUTO = Grid(None, None, (False, True), 0.05)


def climb(found: Grid, rates: dict[int, float], fits: int = 100) -> list[int]:
    """The counts that a series measures, when so many replicas answer so fast."""
    rows: list[Row] = []
    while (count := found.next_count(rows)) is not None:
        rows.append(row(count, rates[count], fits=fits))
    return [each.cell.replicas for each in rows]


# --- counts of replicas


def test_listed_counts_are_measured_in_rising_order() -> None:
    """All of them, whatever they bring: that is what a list is for."""
    assert climb(LISTED, {1: 10.0, 2: 1.0, 4: 0.1}) == [1, 2, 4]


def test_what_is_known_is_not_measured_again() -> None:
    """A run that was interrupted goes on with the rest."""
    assert LISTED.next_count([row(2, 20.0)]) == 1
    assert LISTED.next_count([row(1, 10.0), row(2, 20.0)]) == 4
    assert LISTED.next_count([row(1, 10.0), row(2, 20.0), row(4, 40.0)]) is None


@pytest.mark.parametrize("outcome", [Outcome.DOES_NOT_FIT, Outcome.OUT_OF_MEMORY, Outcome.FAILED])
def test_nothing_above_a_refused_count_is_tried(outcome: Outcome) -> None:
    """What two replicas have no room for, four have not either; one may still be missing."""
    assert LISTED.next_count([row(1, 10.0), refused(2, outcome)]) is None
    assert LISTED.next_count([refused(2, outcome)]) == 1


def test_auto_doubles_while_that_pays() -> None:
    """The step that brought less than min_gain is the last."""
    assert climb(AUTO, {1: 100.0, 2: 190.0, 4: 350.0, 8: 360.0, 16: 999.0}) == [1, 2, 4, 8]


def test_auto_compares_with_the_best_so_far() -> None:
    """A step back is not taken for a gain over what was worse."""
    assert climb(AUTO, {1: 100.0, 2: 90.0, 4: 120.0}) == [1, 2]


def test_auto_measures_what_fits_itself() -> None:
    """The most that fit is where the best often lies, and is rarely a power of two."""
    rates = dict(zip([1, 2, 4, 6], [100.0, 200.0, 400.0, 600.0], strict=True))
    assert climb(AUTO, rates, fits=6) == [1, 2, 4, 6]


def test_auto_with_room_for_one() -> None:
    """There is nothing to climb."""
    assert climb(AUTO, {1: 100.0}, fits=1) == [1]


def test_auto_ends_at_a_refusal() -> None:
    """The next step up would be refused as well."""
    assert AUTO.next_count([row(1, 10.0), refused(2)]) is None


# --- batch sizes and series


def test_batch_sizes_go_up_to_the_models_own() -> None:
    """Powers of four, and the model's own whatever that is."""
    assert grid.batch_sizes(1) == [1]
    assert grid.batch_sizes(2) == [1, 2]
    assert grid.batch_sizes(4) == [1, 4]
    assert grid.batch_sizes(48) == [1, 4, 16, 48]
    assert grid.batch_sizes(1024) == [1, 4, 16, 64, 256, 1024]


def test_what_is_likely_to_pay_comes_first() -> None:
    """MPS on, and large batches: a run that is cut short has measured what matters."""
    assert Grid(None, (1, 8), (False, True), 0.05).series(None) == [
        Series(mps=True, max_batch_size=8),
        Series(mps=True, max_batch_size=1),
        Series(mps=False, max_batch_size=8),
        Series(mps=False, max_batch_size=1),
    ]


def test_without_a_list_the_models_own_size_is_found_out_first() -> None:
    """Nobody knows it before the model was loaded."""
    assert AUTO.series(None) == [Series(mps=True, max_batch_size=None), Series(mps=False, max_batch_size=None)]
    assert [each.max_batch_size for each in AUTO.series(4)] == [4, 1, 4, 1]


# --- how many are left


def test_listed_cells_are_counted_exactly() -> None:
    """Three counts, two sizes; what was refused takes the larger ones along."""
    assert LISTED.num_left([], None) == 6
    assert LISTED.num_left([row(1, 10.0)], None) == 5
    assert LISTED.num_left([row(1, 10.0), refused(2)], None) == 3
    done = [row(count, 10.0, size=size) for count in (1, 2, 4) for size in (1, 8)]
    assert LISTED.num_left(done, None) == 0


def test_auto_cells_are_guessed_by_the_series_that_are_done() -> None:
    """Three each before any is; afterwards as many as the longest; never none of a series that is not done."""
    found = Grid(None, (1, 8), (False,), 0.05)
    assert found.num_left([], None) == 6
    done = [row(1, 10.0), row(2, 20.0), row(4, 40.0), row(8, 41.0)]
    assert found.num_left(done, None) == 4
    assert found.num_left([*done, *(row(n, 10.0 * n, size=1) for n in (1, 2, 4, 8, 16))], None) == 1
    assert AUTO.num_left([], None) == 6


def test_rows_of_another_grid_count_for_nothing() -> None:
    """The result file may hold more than what is asked for this time."""
    assert LISTED.num_left([row(16, 10.0), row(1, 10.0, size=64)], None) == 6


def test_only_what_was_asked_for_is_chosen_from() -> None:
    """A list excludes the rest; what is not listed excludes nothing."""
    rows = [row(1, 10.0), row(16, 10.0), row(1, 10.0, size=64)]
    assert LISTED.asked(rows) == (rows[:1], rows[1:])
    assert Grid(None, None, (False, True), 0.05).asked(rows) == (rows, [])
    assert not Grid(None, None, (True,), 0.05).has(Cell(1, 8, mps=False))


# --- what the command line says


def test_lists_are_read_in_any_order() -> None:
    """Sorted, each once."""
    assert grid.read_counts("4, 1,2,2", "--replicas") == (1, 2, 4)
    assert grid.read_sizes("32,1", "--max-batch-size") == (1, 32)
    assert grid.read_mps("on,OFF", "--mps") == (False, True)
    assert grid.read_mps("on", "--mps") == (True,)


def test_auto_and_nothing_are_the_same() -> None:
    """In any spelling."""
    for read in (grid.read_counts, grid.read_sizes, grid.read_mps):
        assert read(None, "-") is None
        assert read(" Auto ", "-") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "1,,2",
            "replicas = 1,,2 (from --replicas): an empty entry cannot be tried; use auto alone, or a list such as",
        ),
        ("", "an empty entry cannot be tried"),
        ("1,auto", "auto cannot be tried"),
        ("best", "best cannot be tried"),
        ("0", "replicas = 0 (from --replicas): 0 is not a whole number from 1 to 4096; use auto, or a list such as"),
        ("1;2", "replicas = 1;2 (from --replicas)"),
        ("9999", "replicas = 9999 (from --replicas)"),
    ],
)
def test_a_bad_list_is_named_with_what_is_allowed(text: str, said: str) -> None:
    """Value, source and the way out."""
    with pytest.raises(ConfigError) as refusal:
        grid.read_counts(text, "--replicas")
    assert said in str(refusal.value)


def test_mps_is_on_or_off() -> None:
    """And nothing else."""
    with pytest.raises(ConfigError, match="use auto, on or off"):
        grid.read_mps("on,sometimes", "--mps")
