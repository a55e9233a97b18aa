"""The arena's file and the socket where processes of the same user fetch its descriptor."""

from __future__ import annotations

import logging
import mmap

from orch import arena
from orch.errors import AddressInUse
from orch_balancer.local import listen
from orch_balancer.peers import Watch

log = logging.getLogger(__name__)

# Connections served in one turn of the loop.
MAX_PASS = 64


class Handout:
    """Owns both, for one epoch. path: "" and num_bytes: 0 where there is none.

    pinned: workers register the memory with their GPUs, which go on using the pages they know: they cannot be released.
    """

    def __init__(self, path: str, num_bytes: int, epoch: int, watch: Watch, *, pinned: bool) -> None:
        self.path, self.num_bytes = "", 0
        self._pinned = pinned
        self._is_used = False
        self._epoch = epoch
        if not num_bytes:
            return
        try:
            self._socket = listen(path)
            self._fd = arena.create(num_bytes)
            self._map = mmap.mmap(self._fd, num_bytes)
        except (OSError, AddressInUse) as err:
            log.warning("no shared memory (%s): large arrays are sent instead", err)
            return
        self.path, self.num_bytes = path, num_bytes
        watch.add(self._socket.fileno(), self._serve)

    def tend(self, num_leased: int) -> None:
        """Give the memory back to the system when nothing of it is leased any more; looked at in each turn."""
        if num_leased:
            self._is_used = True
        elif self._is_used and not self._pinned:
            self._is_used = False
            self._map.madvise(mmap.MADV_REMOVE)

    def _serve(self) -> None:
        for _ in range(MAX_PASS):
            try:
                connection, _ = self._socket.accept()
            except OSError:  # nobody more, or no descriptor to be had
                return
            with connection:
                try:
                    arena.hand_out(connection, self._fd, self._epoch)
                except OSError as err:
                    log.warning("the shared memory could not be handed out: %s", err)
