"""What children print: lines, and files of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.errors import RuntimeDirError
from orch.supervising.output import BACKUPS, MAX_LINE_BYTES, Lines, LogFiles


class Pipe:
    """A child's pipe from which pieces come; None: nothing has arrived; at the end of all, end of file."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.pieces = list(pieces)
        self.lines: list[str] = []
        self.reader = Lines(self.read, self.lines.append)

    def read(self, _size: int) -> bytes | None:
        return self.pieces.pop(0) if self.pieces else b""

    def pump_all(self) -> list[str]:
        while self.reader.pump():
            pass
        return self.lines


def test_output_is_passed_on_line_by_line() -> None:
    """Without their ends; half a line waits for its other half."""
    pipe = Pipe(b"one\ntw", b"o\n", b"three\n")
    assert pipe.reader.pump()
    assert pipe.lines == ["one"]
    assert pipe.pump_all() == ["one", "two", "three"]


def test_the_last_line_needs_no_end() -> None:
    """A child's last words before its death often have none."""
    assert Pipe(b"one\nlast words").pump_all() == ["one", "last words"]


def test_a_progress_bar_is_passed_on_state_by_state() -> None:
    """It writes over its own line again and again; a carriage return ends one too."""
    assert Pipe(b"10%\r20%\r", b"100%\r\ndone\r\n").pump_all() == ["10%", "20%", "100%", "done"]


def test_empty_lines_are_left_out() -> None:
    """They say nothing, with a name in front."""
    assert Pipe(b"\n\n  \none\n\n").pump_all() == ["  ", "one"]


def test_a_line_that_never_ends_is_cut() -> None:
    """It must not fill memory; nothing of it is lost."""
    pieces = [b"x" * 50_000] * 20
    pipe = Pipe(*pieces)
    for _ in pieces:
        pipe.reader.pump()
        assert sum(map(len, pipe.lines)) >= 50_000 - MAX_LINE_BYTES
    lines = pipe.pump_all()
    assert "".join(lines) == "x" * 1_000_000
    assert max(map(len, lines)) <= MAX_LINE_BYTES


def test_a_line_that_is_too_long_is_cut_also_when_its_end_is_there() -> None:
    """Whoever reads the log gets lines of bounded length."""
    lines = Pipe(b"x" * 60_000 + b"\nshort\n").pump_all()
    assert "".join(lines) == "x" * 60_000 + "short"
    assert max(map(len, lines)) <= MAX_LINE_BYTES


def test_bytes_that_are_no_text_are_shown_escaped() -> None:
    """A model may print anything."""
    assert Pipe(b"caf\xe9 \xff\n", "Zürich 東京\n".encode()).pump_all() == ["caf\\xe9 \\xff", "Zürich 東京"]


def test_nothing_arrived_is_not_the_end() -> None:
    """Unless it is asked for what is there now: then it is enough."""
    pipe = Pipe(b"one\n", None, b"two\n")
    assert pipe.reader.pump()
    assert pipe.reader.pump()
    assert pipe.reader.pump()
    assert not pipe.reader.pump()
    pipe = Pipe(b"one\n", b"two\nhal", None, b"f\n")
    pipe.reader.drain()
    assert pipe.lines == ["one", "two"]
    assert pipe.pump_all() == ["one", "two", "half"]


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20))
def test_no_output_is_lost_or_doubled(pieces: list[bytes]) -> None:
    """However it is cut into pieces."""
    whole = b"".join(pieces)
    expected = [line.decode("utf-8", "backslashreplace") for line in whole.replace(b"\r", b"\n").split(b"\n") if line]
    assert Pipe(*pieces).pump_all() == expected


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Iterator[LogFiles]:
    """Log files of at most a kilobyte each."""
    made = LogFiles(tmp_path / "logs", max_bytes=1000)
    yield made
    made.close()


def test_each_name_has_a_file_of_lines_with_the_time(files: LogFiles) -> None:
    """The supervisor's is there from the start; a line is there as soon as it is written."""
    assert [path.name for path in files.directory.iterdir()] == ["supervisor.log"]
    files.write("r0", "loading 50%s of it")
    files.write("r1", "ü \udcff")
    (line,) = (files.directory / "r0.log").read_text().splitlines()
    assert line.endswith(" loading 50%s of it")
    assert line[:4].isdigit()
    assert (files.directory / "r1.log").read_text("utf-8").endswith("ü \\udcff\n")


def test_files_are_rotated_before_they_grow(files: LogFiles) -> None:
    """A model that prints for ever fills no disk."""
    for number in range(200):
        files.write("r0", f"line {number} {'x' * 80}")
    sizes = [path.stat().st_size for path in files.directory.glob("r0.log*")]
    assert len(sizes) == 1 + BACKUPS
    assert max(sizes) <= 1000
    assert "line 199" in (files.directory / "r0.log").read_text()


def test_the_directory_belongs_to_its_user_alone(files: LogFiles) -> None:
    """Logs may quote inputs."""
    assert files.directory.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_written_is_named_with_what_helps(tmp_path: Path) -> None:
    """Before anything is started."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeDirError, match=r"the log directory .*/file/logs cannot be written .* ORCH_STATE_DIR"):
        LogFiles(tmp_path / "file" / "logs", max_bytes=1000)
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(RuntimeDirError):
            LogFiles(tmp_path / "closed" / "logs", max_bytes=1000)
