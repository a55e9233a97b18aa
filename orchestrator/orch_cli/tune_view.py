"""What `orch tune` shows while it runs: a table that grows above a progress bar, or plain lines.

Everything goes to standard error: standard output is for the configuration to keep.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orch.tuning import choice, words
from orch.tuning.grid import Outcome, Row

# Of the terminal's lines, what is kept for the table's head, the bar and the line below it.
OTHER_LINES: Final = 8
MIN_ROWS: Final = 3
STYLES: Final = {Outcome.DOES_NOT_FIT: "dim", Outcome.OUT_OF_MEMORY: "yellow", Outcome.FAILED: "red"}


class Lines:
    """One line for each configuration: for files, pipes and journals."""

    def __init__(self, rows: Sequence[Row], left: int, *, has_gpu: bool) -> None:
        self._rows, self._left, self._has_gpu = list(rows), left, has_gpu
        self._max_latency_s: float | None = None

    def __enter__(self) -> Self:
        known = f"; {words.configurations(len(self._rows))} known from before" if self._rows else ""
        todo = f"about {words.configurations(self._left)} to measure" if self._left else "nothing left to measure"
        self.show(f"orch: {todo}{known}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def doing(self, text: str) -> None:
        """Nothing for a file: each configuration gets its line."""

    def measured(self, row: Row, left: int) -> None:
        """A configuration is done; about so many are left."""
        self._rows = [each for each in self._rows if each.cell != row.cell] + [row]
        self._left = left
        done = len(self._rows)
        cell = words.cell(row.cell, has_gpu=self._has_gpu)
        self.show(f"orch: {done}/{done + left} {cell}: {words.figures(row)}")

    def show(self, line: str) -> None:
        try:
            click.echo(line, err=True)
        except OSError:  # the terminal was closed, or nobody reads the pipe: the result file goes on
            self.show = _nowhere  # type: ignore[method-assign]


def _nowhere(line: str) -> None:
    """What is shown when there is nobody to show it to."""


class Board(Lines):
    """A terminal's view."""

    def __init__(self, rows: Sequence[Row], left: int, *, has_gpu: bool) -> None:
        super().__init__(rows, left, has_gpu=has_gpu)
        self._console = Console(stderr=True, highlight=False)
        self._spinner = Spinner("dots", Text("starting", "dim"))
        self._bar = Progress(
            BarColumn(), MofNCompleteColumn(), TextColumn("configurations"), TimeElapsedColumn(), console=self._console
        )
        self._task = self._bar.add_task("", total=len(rows) + left, completed=len(rows))
        self._live = Live(console=self._console, get_renderable=self._view, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()
        if self._rows:  # all of them, to scroll back to
            self._console.print(self._table(self._rows))
            for line in self._reasons(self._rows):
                self._console.print(Text(line, "dim"))

    def doing(self, text: str) -> None:
        """What goes on now."""
        self._spinner.update(text=Text(text, "dim"))

    def show(self, line: str) -> None:
        """The table has it."""
        self._bar.update(self._task, completed=len(self._rows), total=len(self._rows) + self._left)

    def _view(self) -> RenderableType:
        room = max(MIN_ROWS, self._console.height - OTHER_LINES)
        shown = self._rows[-room:]
        above = [Text(f"… {len(self._rows) - len(shown)} more above", "dim")] if len(shown) < len(self._rows) else []
        table = [self._table(shown)] if shown else []
        last = [Text(line, "dim", no_wrap=True, overflow="ellipsis") for line in self._reasons(shown)[-1:]]
        return Group(*above, *table, *last, Text(), self._bar, self._spinner)

    def _reasons(self, shown: Sequence[Row]) -> list[str]:
        """Below the table, which has no room for them."""
        rows = [row for row in shown if not row.is_measured]
        return [f"{words.cell(row.cell, has_gpu=self._has_gpu)}: {words.figures(row)}" for row in rows]

    def _table(self, shown: Sequence[Row]) -> Table:
        best = choice.best(self._rows)
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("")
        for column in ("replicas", "batch", *(["MPS"] if self._has_gpu else []), "answers/s", "p50", "p99", "alone"):
            table.add_column(column, justify="right")
        table.add_column("", no_wrap=True)
        for row in shown:
            names = [str(row.cell.replicas), str(row.cell.max_batch_size)]
            if self._has_gpu:
                names.append("on" if row.cell.mps else "off")
            if row.is_measured:
                about = "" if row.steady else "~"
                figures = [
                    f"{about}{words.rate(row.answers_per_s)}",
                    *map(words.latency, (row.p50_s, row.p99_s, row.alone_s)),
                    "",
                ]
            else:
                figures = ["", "", "", "", str(row.outcome)]
            mark, style = ("★", "bold green") if row is best else ("", STYLES.get(row.outcome, ""))
            table.add_row(mark, *names, *(Text(figure) for figure in figures), style=style)
        return table


def view_for(rows: Sequence[Row], left: int, *, has_gpu: bool) -> Lines:
    """A table where a person looks on, else lines."""
    return (Board if sys.stderr.isatty() else Lines)(rows, left, has_gpu=has_gpu)
