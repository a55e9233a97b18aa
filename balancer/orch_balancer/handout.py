"""The arena's file and the socket where processes of the same user fetch its descriptor."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from orch import arena
from orch_balancer.peers import Watch

log = logging.getLogger(__name__)

BACKLOG = 128
# Connections served in one turn of the loop.
MAX_PASS = 64


class Handout:
    """Owns both, for one epoch. path: "" and num_bytes: 0 where there is none."""

    def __init__(self, path: str, num_bytes: int, epoch: int, watch: Watch) -> None:
        self.path, self.num_bytes = "", 0
        self._epoch = epoch
        if not num_bytes:
            return
        try:
            Path(path).unlink(missing_ok=True)  # an earlier balancer's
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.bind(path)
            self._socket.listen(BACKLOG)
            self._socket.setblocking(False)
            self._fd = arena.create(num_bytes)
        except OSError as err:
            log.warning("no shared memory (%s): large arrays are sent instead", err)
            return
        self.path, self.num_bytes = path, num_bytes
        watch.add(self._socket.fileno(), self._serve)

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
