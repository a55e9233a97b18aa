"""`orch logs`: what the instance's processes wrote, from files that rotate while they are read."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click

from orch import runtime
from orch.errors import ConfigError, NotRunning, OrchError
from orch_cli.options import instance_name, name_option

POLL_S: Final = 0.2
BLOCK_BYTES: Final = 1 << 20
LINE_MAX_BYTES: Final = 1 << 20  # a line without an end is shown in pieces of this size
LINES_MAX: Final = 1_000_000


@click.command()
@click.argument("replica", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on showing lines as they are written.")
@click.option("-n", "--lines", default="50", metavar="LINES", help="How many of the last lines.  [default: 50]")
@name_option
def logs(replica: str | None, follow: bool, lines: str, name: str | None) -> None:
    """Show what the processes wrote.

    REPLICA is r0, r1, …, balancer or supervisor, or up for what `orch up --detach` wrote; without it, all of them.
    """
    if not lines.isdecimal() or int(lines) > LINES_MAX:
        raise ConfigError(f"lines = {lines} (from --lines): use a whole number from 0 to {LINES_MAX}")
    instance = instance_name(name)
    directory = log_directory(instance)
    sources = sources_in(directory)
    if not sources and not follow:
        raise NotRunning(f"{instance} has left no logs in {directory}; did it ever run? see orch up")
    if replica is not None and replica not in sources and not follow:
        raise ConfigError(f"there are no logs of {replica} in {directory}; there are: {', '.join(sources)}")
    with contextlib.closing(Follower(directory, replica)) as follower:
        for source in sources if replica is None else (replica,):
            # Up to where the follower begins: a line that is written meanwhile is shown once.
            for line in last_lines(directory / f"{source}.log", int(lines), follower.begins.get(source)):
                _show(source, line)
        if follow:
            with contextlib.suppress(KeyboardInterrupt):
                for source, line in follower.lines():
                    _show(source, line)


def log_directory(instance: str) -> Path:
    """Where a running instance says its logs are, else where one of that name would put them."""
    from orch.supervising import control

    try:
        return Path(control.call(instance, "status", timeout=2.0)["logs"])
    except (OrchError, KeyError):
        return runtime.log_dir(instance)


def sources_in(directory: Path) -> list[str]:
    """Replicas by number, then the others by name."""

    def order(stem: str) -> tuple[bool, int, str]:
        numbered = re.fullmatch(r"r(\d+)", stem)
        return not numbered, int(numbered[1]) if numbered else 0, stem

    return sorted((path.stem for path in directory.glob("*.log")), key=order)


def rotated(path: Path) -> list[Path]:
    """The older files of `path`, newest (r0.log.1) first."""
    older = [entry for entry in path.parent.glob(path.name + ".*") if entry.suffix[1:].isdecimal()]
    return sorted(older, key=lambda entry: int(entry.suffix[1:]))


def last_lines(path: Path, num_lines: int, end: int | None = None) -> list[bytes]:
    """The last lines of a log, from as many of its rotated files as that takes. end: bytes of the newest that count."""
    lines: list[bytes] = []
    for entry in (path, *rotated(path)):
        if len(lines) >= num_lines:
            break
        try:
            with entry.open("rb") as file:
                whole = file if end is None or entry != path else _up_to(file, end)
                lines[:0] = deque((line.rstrip(b"\r\n") for line in whole), maxlen=num_lines - len(lines))
        except FileNotFoundError:
            continue  # rotated away meanwhile
    return lines


def _up_to(file: BinaryIO, end: int) -> Iterator[bytes]:
    """The lines that end within the first `end` bytes."""
    for line in file:
        end -= len(line)
        if end < 0:
            return
        yield line


class Follower:
    """Reads what is appended to the logs of one source or of all. Owns one open file for each.

    A rotation renames the file that is open here, so what was still written to it is read before its successor.
    """

    def __init__(self, directory: Path, source: str | None = None) -> None:
        self._directory = directory
        self._source = source
        self._open: dict[str, BinaryIO] = {}
        self._partial: dict[str, bytes] = {}
        self.begins: dict[str, int] = {}  # where it started in the files that were there
        for source_found in self._sources():
            self._reopen(source_found, at_end=True)

    def close(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1].close()

    def lines(self) -> Iterator[tuple[str, bytes]]:
        while True:
            yield from self.poll()
            time.sleep(POLL_S)

    def poll(self) -> Iterator[tuple[str, bytes]]:
        """The lines written since the last time."""
        for source in self._sources():
            if source not in self._open:
                self._reopen(source, at_end=False)
        for source in list(self._open):
            yield from self._read(source)
            if self._was_rotated(source):
                yield from self._read(source)
                self._reopen(source, at_end=False)
                yield from self._read(source)

    def _sources(self) -> list[str]:
        return [source for source in sources_in(self._directory) if self._source in (None, source)]

    def _reopen(self, source: str, *, at_end: bool) -> None:
        if source in self._open:
            self._open.pop(source).close()
        try:
            file = (self._directory / f"{source}.log").open("rb")
        except FileNotFoundError:
            return  # between two files; the next poll finds the new one
        if at_end:
            self.begins[source] = file.seek(0, 2)
        self._open[source] = file

    def _was_rotated(self, source: str) -> bool:
        file = self._open[source]
        try:
            now = (self._directory / f"{source}.log").stat()
        except FileNotFoundError:
            return False
        return not _same_file(file, now.st_dev, now.st_ino) or now.st_size < file.tell()

    def _read(self, source: str) -> Iterator[tuple[str, bytes]]:
        while block := self._open[source].read(BLOCK_BYTES):
            *whole, rest = (self._partial.pop(source, b"") + block).split(b"\n")
            for line in whole:
                yield source, line.rstrip(b"\r")
            if len(rest) > LINE_MAX_BYTES:
                yield source, rest
            elif rest:
                self._partial[source] = rest


def _same_file(file: BinaryIO, device: int, inode: int) -> bool:
    opened = os.fstat(file.fileno())
    return (opened.st_dev, opened.st_ino) == (device, inode)


def _show(source: str, line: bytes) -> None:
    click.echo(f"{source} | {line.decode(errors='replace')}")
