"""Lines for the journal: each with its priority in front, as sd-daemon(3) has it, and nothing else that is no text."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

from orch.supervising.events import PASSING, Event, Severity, severity_of

# Priorities of syslog(3).
ERR, WARNING, INFO, DEBUG = 3, 4, 6, 7
PRIORITIES: Final = {Severity.ERROR: ERR, Severity.WARNING: WARNING, Severity.INFO: INFO}


def priority_of(event: Event) -> int:
    """By how much an event matters; a step on a replica's way is for whoever looks for a fault."""
    return DEBUG if event.data.get("state") in PASSING else PRIORITIES[severity_of(event)]


def is_journal(environ: Mapping[str, str], fd: int) -> bool:
    """Whether a descriptor is the journal's stream: $JOURNAL_STREAM has its device and inode (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def prefix(priority: int) -> str:
    """What a line for standard error begins with: nothing, unless that is the journal."""
    try:
        return f"<{priority}>" if is_journal(os.environ, sys.stderr.fileno()) else ""
    except (OSError, ValueError):  # no real file
        return ""
