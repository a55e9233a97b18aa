"""Lines for the journal: which priority an event has, and when standard error is the journal at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orch.supervising.events import Event
from orch.whole import write_whole
from orch_cli.journal import DEBUG, ERR, INFO, WARNING, is_journal, priority_of


@pytest.mark.parametrize(
    ("event", "priority"),
    [
        (Event("replica", "r0 QUARANTINED", "r0", {"state": "QUARANTINED"}), ERR),
        (Event("replica", "r0 BACKOFF", "r0", {"state": "BACKOFF"}), WARNING),
        (Event("warning", "the drain deadline passed"), WARNING),
        (Event("balancer", "the balancer died"), WARNING),
        (Event("replica", "r0 READY", "r0", {"state": "READY"}), INFO),
        (Event("log", "what a model prints", "r0"), INFO),
        (Event("replica", "r0 LOADING", "r0", {"state": "LOADING"}), DEBUG),
    ],
)
def test_an_event_has_the_priority_that_it_deserves(event: Event, priority: int) -> None:
    """Something to do, something to know, something that happens, a step on the way."""
    assert priority_of(event) == priority


def test_the_journal_is_known_by_its_device_and_inode(tmp_path: Path) -> None:
    """The variable is inherited by programs whose output was sent elsewhere: these must not be taken in."""
    with (tmp_path / "a").open("w") as journal, (tmp_path / "b").open("w") as other:
        found = os.fstat(journal.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(environ, journal.fileno())
        assert not is_journal(environ, other.fileno())
        assert not is_journal({}, journal.fileno())
    assert not is_journal(environ, 1_000_000), "no descriptor"


def test_a_file_that_is_replaced_keeps_who_may_read_it(tmp_path: Path) -> None:
    """A new one is its user's alone; keys that a group may read stay so when one is added."""
    path = tmp_path / "keys.json"
    write_whole(path, b"1")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    write_whole(path, b"2")
    assert (path.stat().st_mode & 0o777, path.read_bytes()) == (0o640, b"2")
