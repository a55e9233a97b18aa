"""Process 1 of a container: it hands on signals, and reaps what other processes leave behind.

The kernel gives process 1 every process whose parent is gone, and drops signals for which it has no handler. So the
supervisor runs as its only child, and what it does about either is the same inside a container and outside.
"""

from __future__ import annotations

import os
import signal
from typing import Final

# What is meant for orch. The others mean this process itself (a fault, a stop of the terminal), or cannot be caught.
PASSED_ON: Final = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip
EXIT_SIGNALLED: Final = 128  # and the signal's number: what a shell reports


def step_aside() -> None:
    """Go on in a child; this process waits for it, and then exits as it did. To be called before any thread starts."""
    waited = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)  # Ctrl-C reaches it once, through us, and not from the terminal as well
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os._exit(_wait_for(child, waited))


def _wait_for(child: int, waited: set[signal.Signals]) -> int:
    """Reap whatever ends and pass signals on, until the child has ended. Returns its exit code."""
    while True:
        number = signal.sigwait(waited)
        if number != signal.SIGCHLD:
            os.kill(child, number)
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return EXIT_SIGNALLED - code if code < 0 else code
            if pid == 0:
                break
