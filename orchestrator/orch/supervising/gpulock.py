"""One lock per GPU, held while an instance plans and starts: two must not count the same free memory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence

from orch.runtime import meeting_base


class GpuLocks:
    """Locks of this user's instances on these GPUs, taken all or none, in one order. The files stay: they are empty."""

    def __init__(self, uuids: Sequence[str]) -> None:
        self._uuids = sorted(uuids)
        self._held: list[int] = []

    def acquire(self) -> bool:
        """Whether all are ours now; never blocks."""
        if len(self._held) == len(self._uuids):
            return True
        directory = meeting_base()
        directory.mkdir(mode=0o700, exist_ok=True)
        for uuid in self._uuids:
            fd = os.open(directory / f"{uuid.replace('/', '_')}.gpu", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._held.append(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.release()
                return False
        return True

    def release(self) -> None:
        """Let the next instance plan."""
        for fd in self._held:
            os.close(fd)
        self._held.clear()
