"""How a grid is run: which instances are started, how they are scaled, and what each cell comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orch import runtime
from orch.config import Config, resolve
from orch.errors import ConfigError, Exit, NotRunning, StartFailed
from orch.load import Rate
from orch.tuning.grid import Cell, Grid, Outcome, Row
from orch.tuning.instance import Refused, outcome_of
from orch.tuning.results import Results
from orch.tuning.runner import Place, TimeUp, Tuner, deadline

SAMPLES = ["a sample"]
LOG = f"(log: {runtime.log_dir('tune')})"
ROOM = 100


@dataclass
class World:
    """Instances that do as they are told here, and a load that measures what is said here.

    story: what happened, in order. settle: called with (batch size, replicas) when that many are to be READY. rate:
    answers per second of so many replicas. restarts: of r0, as the status tells.
    """

    directory: Path
    own_size: int | None = 8
    settle: Callable[[int, int], None] = lambda _size, _count: None
    rate: Callable[[int], float] = lambda count: 100.0 * count
    measure: Callable[[int], None] = lambda _outstanding: None
    story: list[str] = field(default_factory=list)
    restarts: int = 0
    errors: int = 0
    rows: list[Row] = field(default_factory=list)
    running: Instance | None = None

    def start(self, words: Sequence[str]) -> Instance:
        """One at a time."""
        assert self.running is None
        self.running = Instance(self, words)
        return self.running

    def load(
        self,
        endpoint: str,
        samples: Sequence[Any],
        outstanding: int,
        *,
        window_s: float,
        max_s: float,
        on_tick: Callable[[int], None],
    ) -> Rate:
        """Figures that tell where they come from."""
        assert (endpoint, samples) == ("unix:///front", SAMPLES)
        assert window_s < max_s
        assert self.running is not None
        on_tick(0)
        self.measure(outstanding)
        if self.errors:
            return Rate(9.0, 0.1, 0.1, 9, 1.0, outstanding, self.errors, "ModelError: bad")
        if outstanding == 1:
            return Rate(90.0, 0.01, 0.02, 90, 1.0, 1, steady=True)
        rate = self.rate(self.running.count)
        return Rate(rate, outstanding / rate, 2 * outstanding / rate, 1000, 4.0, outstanding, steady=True)

    def doing(self, text: str) -> None:
        """Seen by people only."""

    def measured(self, row: Row, left: int) -> None:
        """A configuration is done."""
        self.rows.append(row)


class Instance:
    """Stands in for `orch up`."""

    def __init__(self, world: World, words: Sequence[str]) -> None:
        options = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
        self.world = world
        self.count = int(options["replicas"])
        self.size = int(options.get("max-batch-size", world.own_size or 0))
        self.samples = "samples" in options
        size = options.get("max-batch-size", "own")
        self.world.story.append(f"start {self.count} x {size}, mps {options['mps']}")
        assert words[0] == "up"
        assert list(words[-2:]) == ["--", "m.py:M"]

    def settle(self, count: int, _load_timeout_s: float, on_ready: Callable[[int], None]) -> dict[str, Any]:
        """As the world says."""
        assert count == self.count
        self.world.settle(self.size, count)
        on_ready(count)
        return self.status()

    def scale(self, count: int) -> None:
        """Upwards only."""
        assert count > self.count
        self.world.story.append(f"scale to {count}")
        self.count = count

    def status(self) -> dict[str, Any]:
        """What the tuner reads of it."""
        facts = {"max_batch_size": self.world.own_size if self.size == self.world.own_size else self.size}
        replicas = [{"id": f"r{i}", "state": "READY", "footprint_bytes": 7, **facts} for i in range(self.count)]
        replicas[0]["restarts"] = self.world.restarts
        return {"endpoint": "unix:///front", "replicas": replicas, "settled": True}

    def stop(self) -> None:
        """It is gone."""
        self.world.story.append("stop")
        self.world.running = None


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One in which everything works."""
    return World(tmp_path)


def tuner(world: World, grid: Grid, results: Results | None = None, **options: Any) -> Tuner:
    """A tuner in that world."""
    config: Config = resolve({"target": "m.py:M"}).config
    results = results or Results(world.directory / "t.json", {"gpus": ["a card"]})
    options = {"tick": lambda: None, **options}
    return Tuner(
        config, grid, results, world, Place("tune", world.directory), world.start,
        words=["up"], window_s=2.0, measure=world.load, read_samples=lambda _path: SAMPLES,
        room=lambda _config, _status, _mps: ROOM, **options,
    )  # fmt: skip


def outcomes(world: World) -> dict[tuple[int, int, bool], str]:
    """What became of each cell."""
    return {(row.cell.replicas, row.cell.max_batch_size, row.cell.mps): str(row.outcome) for row in world.rows}


def test_a_series_is_one_instance_that_is_scaled_up(world: World) -> None:
    """No replica loads twice, and nothing runs at the end."""
    tuner(world, Grid((1, 2, 4), (1, 8), (False, True), 0.05)).run()
    up = ["scale to 2", "scale to 4", "stop"]
    assert world.story == [
        "start 1 x 8, mps on", *up, "start 1 x 1, mps on", *up,
        "start 1 x 8, mps off", *up, "start 1 x 1, mps off", *up,
    ]  # fmt: skip
    assert len(world.rows) == 12


def test_a_row_has_what_was_measured(world: World) -> None:
    """Throughput and latency of one load: two batches for each replica, and what is on its way."""
    tuner(world, Grid((2,), (8,), (True,), 0.05)).run()
    (row,) = world.rows
    assert row.cell == Cell(2, 8, mps=True)
    assert row.answers_per_s == 200.0
    assert row.outstanding == 2 * 2 * 8 + 4  # a batch takes 10 ms, the way there and back a fifth of that
    assert row.p99_s == 2 * row.outstanding / 200.0
    assert (row.alone_s, row.footprint_bytes, row.fits) == (0.01, 7, ROOM)


def test_what_is_known_is_not_run_again(world: World) -> None:
    """Not even an instance is started for it; the next begins at the count that is missing."""
    grid = Grid((1, 2), (1, 8), (False,), 0.05)
    results = Results(world.directory / "t.json", {"gpus": []})
    for cell in (Cell(1, 8, mps=False), Cell(2, 8, mps=False), Cell(1, 1, mps=False)):
        results.add(Row(cell, Outcome.MEASURED, answers_per_s=1.0))
    tuner(world, grid, results).run()
    assert world.story == ["start 2 x 1, mps off", "stop"]


def test_the_models_own_batch_size_is_found_out_by_the_first_instance(world: World) -> None:
    """It goes on as the series of that size; the others follow."""
    world.own_size = 16
    run = tuner(world, Grid((1, 2), None, (False,), 0.05))
    run.run()
    assert world.story == [
        "start 1 x own, mps off", "scale to 2", "stop", "start 1 x 4, mps off", "scale to 2", "stop",
        "start 1 x 1, mps off", "scale to 2", "stop",
    ]  # fmt: skip
    assert {row.cell.max_batch_size for row in world.rows} == {1, 4, 16}
    assert run.num_left == 0


def test_without_the_models_own_size_the_way_out_is_told(world: World) -> None:
    """It did not come up, so nobody knows what else to try."""

    def settle(_size: int, _count: int) -> None:
        raise Refused(Outcome.OUT_OF_MEMORY, "r0: no memory")

    world.settle = settle
    with pytest.raises(StartFailed, match="r0: no memory; name smaller ones: --max-batch-size 1,4,16") as failure:
        tuner(world, Grid((1,), None, (False,), 0.05)).run()
    assert failure.value.exit_code == Exit.OUT_OF_MEMORY
    assert world.story[-1] == "stop"


def test_a_broken_model_is_told_in_its_own_words(world: World) -> None:
    """No other batch size would mend it."""

    def settle(_size: int, _count: int) -> None:
        raise Refused(Outcome.FAILED, "loading failed: OSError: no weights (log: /logs)")

    world.settle = settle
    run = tuner(world, Grid((1,), None, (False,), 0.05))
    with pytest.raises(StartFailed, match=r"^loading failed: OSError: no weights \(log: /logs\)$") as failure:
        run.run()
    assert failure.value.exit_code == Exit.MODEL_LOAD
    assert run.has_failed


def test_what_cannot_be_had_is_a_row_and_not_the_end(world: World) -> None:
    """The series ends there, the next one begins."""

    def settle(size: int, count: int) -> None:
        if size == 8 and count == 2:
            raise Refused(Outcome.OUT_OF_MEMORY, "r1: no memory")

    world.settle = settle
    run = tuner(world, Grid((1, 2, 4), (1, 8), (False,), 0.05))
    run.run()
    assert outcomes(world) == {
        (1, 8, False): "measured", (2, 8, False): "out of memory",
        (1, 1, False): "measured", (2, 1, False): "measured", (4, 1, False): "measured",
    }  # fmt: skip
    assert run.has_failed
    assert run.num_left == 0


def test_counts_are_doubled_while_that_pays(world: World) -> None:
    """Four are no faster than two."""
    world.rate = lambda count: 100.0 * min(count, 2)
    tuner(world, Grid(None, (8,), (False,), 0.05)).run()
    assert [row.cell.replicas for row in world.rows] == [1, 2, 4]


def test_a_replica_that_dies_under_the_load_voids_the_figures(world: World) -> None:
    """They would be those of fewer replicas."""

    def measure(outstanding: int) -> None:
        world.restarts += outstanding > 1

    world.measure = measure
    run = tuner(world, Grid((1, 2), (8,), (False,), 0.05))
    run.run()
    assert outcomes(world) == {(1, 8, False): "failed"}
    assert world.rows[0].reason == f"r0 died while it was measured {LOG}"
    assert run.has_failed


def test_requests_that_fail_are_no_throughput(world: World) -> None:
    """The first error is the reason."""
    world.errors = 3
    tuner(world, Grid((1,), (8,), (False,), 0.05)).run()
    assert [row.reason for row in world.rows] == [f"3 requests failed, the first with ModelError: bad {LOG}"]


def test_an_instance_that_ends_under_the_load_is_a_failure(world: World) -> None:
    """Of that configuration."""

    def measure(_outstanding: int) -> None:
        raise NotRunning("gone")

    world.measure = measure
    tuner(world, Grid((1,), (8,), (False,), 0.05)).run()
    assert [row.reason for row in world.rows] == [f"it ended while it was measured: gone {LOG}"]


def test_what_holds_for_every_configuration_ends_the_run(world: World) -> None:
    """A target that cannot be imported; the instance is stopped all the same."""

    def settle(_size: int, _count: int) -> None:
        raise ConfigError("no such file")

    world.settle = settle
    with pytest.raises(ConfigError):
        tuner(world, Grid((1,), (8,), (False,), 0.05)).run()
    assert world.story[-1] == "stop"
    assert world.rows == []


def test_the_time_limit_ends_it_wherever_it_is(world: World) -> None:
    """With what is known kept, and nothing running."""
    now = [0.0]
    in_time = deadline(10.0, lambda: now[0])

    def measure(_outstanding: int) -> None:
        now[0] += 4.0

    world.measure = measure
    run = tuner(world, Grid((1, 2, 4), (8,), (False,), 0.05), tick=in_time)
    with pytest.raises(TimeUp):
        run.run()
    assert [row.cell.replicas for row in world.rows] == [1]
    assert world.story[-1] == "stop"
    assert run.num_left == 2
    assert not run.has_failed


def test_without_a_limit_time_does_not_matter() -> None:
    """A tick is a tick."""
    deadline(None, lambda: 1e9)()


def test_a_death_for_want_of_memory_is_recognised() -> None:
    """By what workers, torch and the supervisor say of it."""
    for said in (
        "loading failed: MemoryError", "loading failed: OutOfMemoryError: CUDA out of memory. Tried to allocate",
        "exited with code 5 (OUT_OF_MEMORY)",
    ):  # fmt: skip
        assert outcome_of(said) is Outcome.OUT_OF_MEMORY
    assert outcome_of("loading failed: OSError: no weights") is Outcome.FAILED
