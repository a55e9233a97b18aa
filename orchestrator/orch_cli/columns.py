"""Rows in columns, in groups under a line of their own, with as many columns and facts as the width allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

GAP: Final = "  "
INDENT: Final = "  "  # of rows under a heading


@dataclass(frozen=True, slots=True)
class Column:
    """One column. spare: where not all fit, the one that can be spared most goes first; 0: none goes without it."""

    name: str
    align: Literal["left", "right"] = "right"
    spare: int = 0


@dataclass(frozen=True, slots=True)
class Section:
    """Rows that belong together: of each a cell for every column.

    heading: the facts in the line above them, the most important first; the last go first where they do not fit.
    """

    rows: Sequence[Sequence[Text]]
    heading: Sequence[Text] = ()


@dataclass(frozen=True, slots=True)
class Columns:
    """What rich prints: the names once, then each section; columns are as wide as the widest cell of all sections."""

    columns: Sequence[Column]
    sections: Sequence[Section]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Every line as a text that is cut rather than wrapped."""
        indent = INDENT if any(section.heading for section in self.sections) else ""
        widths = [
            max(len(column.name), *(row[place].cell_len for section in self.sections for row in section.rows), 0)
            for place, column in enumerate(self.columns)
        ]
        shown = fitting(self.columns, widths, options.max_width - len(indent))

        def line(cells: Sequence[Text]) -> Text:
            aligned = [cells[place].copy() for place in shown]
            for cell, place in zip(aligned, shown, strict=True):
                cell.align(self.columns[place].align, widths[place])
            return Text(indent) + Text(GAP).join(aligned)

        lines = [line([Text(column.name, "bold") for column in self.columns])]
        for section in self.sections:
            if section.heading:
                lines.append(heading(section.heading, options.max_width))
            lines += [line(row) for row in section.rows]
        for each in lines:
            each.no_wrap, each.overflow = True, "ellipsis"
            yield each


def fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    """The places of the columns to show."""
    shown = list(range(len(columns)))
    while sum(widths[place] + len(GAP) for place in shown) - len(GAP) > width:
        most = max(shown, key=lambda place: columns[place].spare)
        if not columns[most].spare:
            break
        shown.remove(most)
    return shown


def heading(facts: Sequence[Text], width: int) -> Text:
    """As many of the facts, from the first, as fit into one line."""
    shown = list(facts)
    while len(shown) > 1 and sum(fact.cell_len + len(GAP) for fact in shown) - len(GAP) > width:
        shown.pop()
    return Text(GAP).join(shown)
