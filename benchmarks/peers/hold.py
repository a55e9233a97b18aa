"""`python -m benchmarks.peers.hold COMMAND...`: run a server and keep hold of everything it starts.

Orphans of the server become children of this process (a subreaper, prctl(2)), so its descendants are the server: whose
CPU time counts, and who end with it. It ends with its own parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PATIENCE_S = 5.0


class Asked(Exception):
    """SIGTERM: it is time to end."""


def main() -> int:
    """Until the command ends, or SIGTERM; nothing of it is left afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_CHILD_SUBREAPER, 1), (PR_SET_PDEATHSIG, int(signal.SIGTERM))):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    signal.signal(signal.SIGTERM, _asked)
    server = subprocess.Popen(sys.argv[1:], start_new_session=True)
    try:
        while server.returncode is None:
            _reap(server)
    except Asked:
        server.terminate()
    _end_all()
    return server.returncode or 0


def _asked(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Asked


def _reap(server: subprocess.Popen[bytes]) -> None:
    """Wait for one child: the server, or an orphan of it."""
    pid, status = os.wait()
    if pid == server.pid:
        server.returncode = os.waitstatus_to_exitcode(status)


def _end_all() -> None:
    me = psutil.Process()
    deadline = time.monotonic() + PATIENCE_S
    while left := me.children(recursive=True):
        if time.monotonic() > deadline:
            for process in left:
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    raise SystemExit(main())
