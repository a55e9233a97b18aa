"""What `orch tune` says at the end: the configuration to keep as lines of orch.toml, or why there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from orch.errors import Exit, StartFailed
from orch.tuning import choice, words
from orch.tuning.grid import Outcome, Row

EXIT_OF: Final = {Outcome.DOES_NOT_FIT: Exit.DOES_NOT_FIT, Outcome.OUT_OF_MEMORY: Exit.OUT_OF_MEMORY}


@dataclass(frozen=True, slots=True)
class Summary:
    """The state of a grid.

    rows: of what was asked for; others: what the result file has besides. left: configurations to measure, about.
    result_file, report_file: where to look. target: for the settings to keep; None leaves it out.
    """

    rows: Sequence[Row]
    left: int
    has_gpu: bool
    max_latency_s: float | None
    result_file: str
    report_file: str
    target: str | None = None
    others: Sequence[Row] = ()

    @property
    def best(self) -> Row | None:
        return choice.best(self.rows, self.max_latency_s)

    @property
    def is_empty(self) -> bool:
        return not any(row.is_measured for row in self.rows)

    def text(self) -> str:
        """For people and for orch.toml at once: what is no setting is a comment."""
        best = self.best
        if best is None:
            lines = [f"# {self._why_none()}\n"]
        else:
            one = choice.baseline(self.rows, best)
            said = words.verdict(best, one, self.rows, self.max_latency_s, has_gpu=self.has_gpu)
            lines = [f"# {said}\n", self._settings(best)]
        if not self.is_empty:
            lines.append(f"# results: {self.result_file}\n# report: {self.report_file}\n")
        return "".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        best = self.best
        keep = None if best is None else self._settings(best)
        return {
            "best": None if best is None else as_json(best),
            "orch.toml": keep,
            "rows": [as_json(row) for row in self.rows],
            "other_rows": [as_json(row) for row in self.others],
            "front": [dataclasses.asdict(row.cell) for row in choice.front(self.rows)],
            "left": self.left,
            "result_file": self.result_file,
            "report_file": self.report_file,
        }

    def what_is_left(self) -> str:
        """After an end before the end."""
        if self.is_empty:
            return f"nothing is measured yet, about {self.left} left: the same command begins again"
        kept = f"{words.configurations(len(self.rows))} kept in {self.result_file}"
        return f"{kept}, about {self.left} left: the same command goes on with them"

    def failure(self) -> StartFailed:
        """When all is done and nothing was measured; for the reason of the first configuration."""
        first = self.rows[0]
        said = f"{words.cell(first.cell, has_gpu=self.has_gpu)}: {words.figures(first)}"
        return StartFailed(
            f"not one configuration could be measured: {said}",
            EXIT_OF.get(first.outcome, Exit.MODEL_LOAD),
        )

    def _settings(self, row: Row) -> str:
        return choice.settings_to_keep(row.cell, has_gpu=self.has_gpu, target=self.target)

    def _why_none(self) -> str:
        measured = [row for row in self.rows if row.is_measured]
        if not measured or self.max_latency_s is None:
            return "nothing is measured yet"
        lowest = min(measured, key=lambda row: row.p99_s)
        said = f"{words.cell(lowest.cell, has_gpu=self.has_gpu)}: {words.figures(lowest)}"
        return f"no configuration has its p99 within {words.latency(self.max_latency_s)}; the lowest is {said}"


def as_json(row: Row) -> dict[str, Any]:
    """One flat object, as in the result file."""
    flat = dataclasses.asdict(row)
    return {**flat.pop("cell"), **flat}
