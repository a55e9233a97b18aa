"""Runs what is left of a grid: starts instances, scales them up, measures, and keeps each row when it is known."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from orch import load, runtime
from orch.config import Config
from orch.errors import Exit, NotRunning, OrchError, StartFailed
from orch.planning.paying import load_for
from orch.tuning import words
from orch.tuning.grid import Cell, Grid, Outcome, Row, Series, by_series
from orch.tuning.instance import Refused
from orch.tuning.results import Results
from orch.tuning.room import room_for

# A measurement ends when two windows agree, and at the latest after so many; slow models may take longer (load_for).
MAX_WINDOWS: Final = 15
# One request at a time: its median is found in a part of the time that a rate takes.
ALONE_SHARE: Final = 0.25
ALONE_WINDOWS: Final = 4
INSTEAD: Final = "orch tune has no other load"


class TimeUp(Exception):
    """The time limit has passed."""


class View(Protocol):
    """Who looks on."""

    def doing(self, text: str) -> None:
        """What goes on now."""

    def measured(self, row: Row, left: int) -> None:
        """A configuration is done; about so many are left."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance of ours lives: its name, and a private directory for what it prints and its samples."""

    name: str
    directory: Path

    @property
    def output(self) -> Path:
        return self.directory / "output"

    @property
    def logs(self) -> Path:
        return runtime.log_dir(self.name)

    @property
    def samples(self) -> Path:
        return self.directory / "samples"


class Running(Protocol):
    """What the tuner needs of an `Instance`."""

    def settle(self, count: int, load_timeout_s: float, on_ready: Callable[[int], None]) -> dict[str, Any]:
        """Wait until so many replicas are READY; the status then."""

    def scale(self, count: int) -> None:
        """Ask for so many replicas."""

    def status(self) -> dict[str, Any]:
        """What `orch status --json` shows."""

    def stop(self) -> None:
        """End it."""


class Measure(Protocol):
    """What the tuner needs of `orch.load.measure`."""

    def __call__(
        self,
        endpoint: str,
        samples: Sequence[Any],
        outstanding: int,
        *,
        window_s: float,
        max_s: float,
        on_tick: Callable[[int], None],
    ) -> load.Rate:
        """Keep so many requests under way until the rate has settled."""


Start = Callable[[Sequence[str]], Running]


class Tuner:
    """Owns the instance that runs, one at a time.

    words: of the command line of `orch up`, before those that a series adds. tick: called often; it may raise, and
    what it raises passes through `run` when the instance is gone. publish: called when a row was kept.
    """

    def __init__(
        self,
        config: Config,
        grid: Grid,
        results: Results,
        view: View,
        place: Place,
        start: Start,
        *,
        words: Sequence[str],
        window_s: float,
        tick: Callable[[], None],
        publish: Callable[[], None] = lambda: None,
        measure: Measure = load.measure,
        read_samples: Callable[[Path], list[Any]] = lambda path: load.load_samples(path, instead=INSTEAD),
        room: Callable[[Config, Mapping[str, Any], bool], int] = room_for,
    ) -> None:
        self._config, self._grid, self._results, self._view = config, grid, results, view
        self._place, self._start, self._words = place, start, words
        self._window_s, self._tick, self._publish = window_s, tick, publish
        self._measure_load, self._read_samples, self._room = measure, read_samples, room
        self._samples: list[Any] = []
        self.has_failed = False  # in this run: somebody may want to see the logs

    def run(self) -> None:
        """Until nothing is left.

        Raises:
            OrchError: no configuration can be had, or its figures cannot be kept.
        """
        try:
            while (series := self._next_series()) is not None:
                self._measure_series(series)
        except OrchError:
            self.has_failed = True
            raise

    @property
    def num_left(self) -> int:
        """About how many configurations are left."""
        return self._grid.num_left(self._results.rows, self._results.own_batch_size)

    def _named(self, series: Series) -> str:
        return words.series(series, has_gpu=bool(self._results.facts.get("gpus")))

    def _next_series(self) -> Series | None:
        rows = by_series(self._results.rows)
        every = self._grid.series(self._results.own_batch_size)
        return next((each for each in every if self._grid.next_count(rows.get(each, [])) is not None), None)

    def _next_count(self, series: Series) -> int | None:
        return self._grid.next_count(by_series(self._results.rows).get(series, []))

    def _measure_series(self, series: Series) -> None:
        count = self._next_count(series)
        assert count is not None
        with self._started(series, count) as instance:
            running = count
            while count is not None:
                try:
                    if count > running:
                        self._view.doing(f"{self._named(series)}: {words.replicas(count)} loading")
                        instance.scale(count)
                    row = self._row(instance, series, count)
                except Refused as refused:
                    if series.max_batch_size is None:
                        raise self._unknown(refused) from refused
                    row = Row(Cell(count, series.max_batch_size, series.mps), refused.outcome, refused.reason)
                    self.has_failed = self.has_failed or refused.outcome is not Outcome.DOES_NOT_FIT
                self._results.add(row)
                self._publish()
                self._view.measured(row, self.num_left)
                series, running = row.cell.series, count
                count = self._next_count(series) if row.is_measured else None

    @contextmanager
    def _started(self, series: Series, count: int) -> Iterator[Running]:
        self._place.samples.unlink(missing_ok=True)
        options = [f"--name={self._place.name}", f"--replicas={count}", f"--mps={'on' if series.mps else 'off'}"]
        if series.max_batch_size is not None:
            options.append(f"--max-batch-size={series.max_batch_size}")
        if not self._samples:
            options.append(f"--samples={self._place.samples}")
        self._view.doing(f"{self._named(series)}: starting {words.replicas(count)}")
        instance = self._start([*self._words, *options, "--", self._config.target])
        try:
            yield instance
        finally:
            self._view.doing(f"{self._named(series)}: stopping")
            instance.stop()

    def _row(self, instance: Running, series: Series, count: int) -> Row:
        """Wait for so many replicas, and measure them."""

        def on_ready(num_ready: int) -> None:
            self._view.doing(f"{self._named(series)}: {num_ready} of {words.replicas(count)} ready")

        status = instance.settle(count, self._config.load_timeout_s, on_ready)
        if not self._samples:
            self._samples = self._read_samples(self._place.samples)
            self._place.samples.unlink(missing_ok=True)
        cell = Cell(count, series.max_batch_size or self._own_batch_size(status), series.mps)
        self._view.doing(f"{self._named(cell.series)}: measuring {words.replicas(count)}")
        measured = self._measure(status, cell)
        after = instance.status()
        if died := _died(status, after):
            raise Refused(Outcome.FAILED, f"{died} died while it was measured (log: {self._place.logs})")
        memory = max((each.get("footprint_bytes") or 0 for each in status["replicas"]), default=0) or None
        return dataclasses.replace(measured, footprint_bytes=memory, fits=self._room(self._config, after, series.mps))

    def _measure(self, status: dict[str, Any], cell: Cell) -> Row:
        endpoint, window_s = status["endpoint"], self._window_s
        try:
            alone = self._load(endpoint, 1, window_s * ALONE_SHARE, window_s * ALONE_WINDOWS)
            batch_s = max((each.get("batch_s") or 0.0 for each in status["replicas"]), default=0.0) or alone.p50_s
            full = load_for(cell.replicas, cell.max_batch_size, batch_s)
            rate = self._load(endpoint, full.outstanding, window_s, max(full.max_s, window_s * MAX_WINDOWS))
        except NotRunning as err:
            raise Refused(Outcome.FAILED, f"it ended while it was measured: {err} (log: {self._place.logs})") from err
        return Row(
            cell,
            Outcome.MEASURED,
            answers_per_s=rate.answers_per_s,
            p50_s=rate.p50_s,
            p99_s=rate.p99_s,
            alone_s=alone.p50_s,
            answers=rate.answers,
            outstanding=rate.outstanding,
            seconds=rate.seconds,
            steady=rate.steady,
        )

    def _load(self, endpoint: str, outstanding: int, window_s: float, max_s: float) -> load.Rate:
        rate = self._measure_load(
            endpoint,
            self._samples,
            outstanding,
            window_s=window_s,
            max_s=max_s,
            on_tick=lambda _answers: self._tick(),
        )
        if rate.errors:
            raise Refused(
                Outcome.FAILED, f"{rate.errors} requests failed, the first with {rate.error} (log: {self._place.logs})"
            )
        if not rate.answers:
            raise Refused(Outcome.FAILED, f"no answer within {max_s:g} s to {outstanding} requests")
        return rate

    def _own_batch_size(self, status: dict[str, Any]) -> int:
        size = next((each.get("max_batch_size") for each in status["replicas"]), None)
        if not isinstance(size, int):
            raise self._unknown(Refused(Outcome.FAILED, "orch up does not tell it"))
        self._results.note_own_batch_size(size)
        return size

    def _unknown(self, refused: Refused) -> StartFailed:
        """Without its own batch size there is no saying which others to try; smaller ones help want of room alone."""
        code = {Outcome.DOES_NOT_FIT: Exit.DOES_NOT_FIT, Outcome.OUT_OF_MEMORY: Exit.OUT_OF_MEMORY}
        if refused.outcome not in code:
            return StartFailed(refused.reason, Exit.MODEL_LOAD)
        return StartFailed(
            f"the model's own batch size could not be tried out: {refused.outcome}: {refused.reason}; "
            "name smaller ones: --max-batch-size 1,4,16",
            code[refused.outcome],
        )


def _died(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The replicas that were started again, or are gone; nothing if all are as they were."""
    left = {each.get("id"): each.get("restarts") for each in after.get("replicas", ())}
    names = [each.get("id") for each in before["replicas"] if left.get(each.get("id"), -1) != each.get("restarts")]
    return ", ".join(map(str, names))


def deadline(limit_s: float | None, clock: Callable[[], float] = time.monotonic) -> Callable[[], None]:
    """A tick that raises TimeUp after so many seconds."""
    until = None if limit_s is None else clock() + limit_s

    def check() -> None:
        if until is not None and clock() >= until:
            raise TimeUp

    return check
