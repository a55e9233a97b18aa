"""What `orch up` shows of a starting and running instance: plain lines, or a progress bar on a terminal.

Everything goes to standard error: standard output stays free for programs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, ClassVar, Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from orch.config import Config
from orch.supervising.events import Event
from orch_cli import journal
from orch_cli.show import size


class Lines:
    """One line for each event: for files, pipes and journals, and for what scrolls past above the bar."""

    def __init__(self, config: Config, *, show_output: bool = True) -> None:
        self._name = config.name
        self._show_output = show_output

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def report(self, event: Event) -> None:
        try:
            for line in self.lines_of(event):
                self.write(line, event.kind)
        except OSError:  # the terminal was closed, or nobody reads the pipe: the log files go on
            self.write = _nowhere  # type: ignore[method-assign]

    def write(self, line: str, kind: str) -> None:
        click.echo(line, err=True)

    def lines_of(self, event: Event) -> list[str]:
        match event.kind:
            case "log":
                return [f"{event.replica or 'orch'} | {event.text}"] if self._show_output else []
            case "plan":
                return [f"orch: {event.text}", *(f"orch:   {reason}" for reason in event.data.get("because", ()))]
            case "replica" if event.data.get("state") == "READY":
                return [f"orch: {_ready_line(event)}"]
            case "warning":
                return [f"orch: warning: {event.text}"]
            case "ready":
                if servers := event.data.get("servers"):
                    return [f"orch: {event.text}", f"orch: {_command_hint(servers)}"]
                http = [f"orch: {_http_hint(event.data)}"] if event.data.get("http") else []
                return [f"orch: {event.text}", f"orch: {self._hint()}", *http]
            case _:
                return [f"orch: {event.text}"]

    def _hint(self) -> str:
        if self._name == "default":
            return 'try: orch request "…"   in Python: orch.Client().request(…)'
        return f'try: orch request --name {self._name} "…"   in Python: orch.Client(name="{self._name}").request(…)'


def _http_hint(data: Mapping[str, Any]) -> str:
    """The page's address, and a line that works: what a model that declares tensors takes is for it to tell."""
    url = data["http"]
    asks = f"{url}/v2/models/{data.get('model')}" if data.get("declares") else f"{url}/predict -d '\"hello\"'"
    return f"status page: {url}/   try: curl {asks}"


def _command_hint(servers: Sequence[str]) -> str:
    """One server can be asked; one address for all of them is a proxy's."""
    return f"try: curl {servers[0]}   one address for all of them: orch deploy nginx"


def _nowhere(line: str, kind: str) -> None:
    """What is shown when there is nobody to show it to."""


class Bar(Lines):
    """A terminal's view: the same lines, above a bar that counts replicas until the instance is ready."""

    STYLES: ClassVar = {"ready": "bold green", "warning": "yellow", "log": "dim", "stopped": "bold"}

    def __init__(self, config: Config, *, show_output: bool = True) -> None:
        super().__init__(config, show_output=show_output)
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("ready"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._bar = self._progress.add_task("loading replicas", total=None)
        self._ready: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, event: Event) -> None:
        if event.kind in ("ready", "drain", "stopped"):
            self._progress.stop()
        super().report(event)
        if event.kind == "plan" and isinstance(total := event.data.get("total"), int):
            self._progress.update(self._bar, total=total)
        if event.kind == "replica" and event.replica is not None:
            change = self._ready.add if event.data.get("state") == "READY" else self._ready.discard
            change(event.replica)
            self._progress.update(self._bar, completed=len(self._ready))

    def write(self, line: str, kind: str) -> None:
        self._console.print(Text(line, style=self.STYLES.get(kind, "")), soft_wrap=True)


class Journal(Lines):
    """The journal's view: the same lines, each with its priority in front."""

    _priority = journal.INFO

    def report(self, event: Event) -> None:
        self._priority = journal.priority_of(event)
        super().report(event)

    def write(self, line: str, kind: str) -> None:
        click.echo(f"<{self._priority}>{click.unstyle(line)}", err=True)


def _ready_line(event: Event) -> str:
    facts = [f"on {event.data['device']}"] if event.data.get("device") else []
    if event.data.get("footprint_bytes"):
        facts.append(size(event.data["footprint_bytes"]))
    if isinstance(load_s := event.data.get("load_s"), int | float):
        facts.append(f"loaded in {load_s:.1f} s")
    if event.data.get("restarts"):
        facts.append(f"restarts: {event.data['restarts']}")
    return f"{event.replica} ready" + (" " + ", ".join(facts) if facts else "")


def display_for(config: Config, *, show_output: bool = True) -> Lines:
    """A bar where a person looks on, else lines."""
    if journal.prefix(journal.INFO):
        return Journal(config, show_output=show_output)
    return (Bar if sys.stderr.isatty() else Lines)(config, show_output=show_output)
