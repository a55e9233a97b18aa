"""What every process that the supervisor starts does first."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

from orch.errors import Exit

PR_SET_PDEATHSIG = 1  # prctl(2)


def become_child() -> None:
    """Die with the supervisor, ignore Ctrl-C (which reaches the whole foreground group), log to standard error."""
    parent = int(os.environ.get("ORCH_SUPERVISOR_PID", "0"))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:  # it died before the line above
        os._exit(Exit.ORPHANED)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
