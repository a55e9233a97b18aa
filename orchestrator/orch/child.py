"""What every process that the supervisor starts does first."""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import sys

from orch.errors import Exit
from orch.link import Link, Message

PR_SET_PDEATHSIG = 1  # prctl(2)
# The supervisor writes to a child right after it has started it.
FIRST_WORDS_S = 10.0


def become_child() -> None:
    """Die with the supervisor, ignore Ctrl-C (which reaches the whole foreground group), log to standard error."""
    parent = int(os.environ.get("ORCH_SUPERVISOR_PID", "0"))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:  # it died before the line above
        os._exit(Exit.ORPHANED)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")


def first_messages(link: Link) -> list[Message]:
    """What the supervisor says first, and perhaps more behind it; nothing: it is gone."""
    messages: list[Message] = []
    while not messages and not link.closed:
        if not select.select([link], [], [], FIRST_WORDS_S)[0]:
            break
        messages = link.receive()
    return messages
