"""`python -P -m orch_cli.leashed PID up ...`: an `orch` command that is told to stop when its parent, PID, is gone.

For `orch tune`: the kernel's word comes after SIGKILL too, and SIGTERM is what the supervisor stops at in good order.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from orch.child import PR_SET_PDEATHSIG
from orch.errors import Exit


def run(argv: Sequence[str]) -> None:
    """Tie the process to its parent, then be the command. It was started by its parent's main thread: see prctl(2)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(argv[0]):  # it died before the line above
        raise SystemExit(Exit.ORPHANED)
    from orch_cli.main import main

    main(list(argv[1:]), prog_name="orch")


if __name__ == "__main__":
    run(sys.argv[1:])
