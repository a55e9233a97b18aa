"""`python -P -m orch.supervising.loader LINK_FD`: a process that makes a load, started by a search for what pays.

It hears {"do": "begin", "endpoint", "samples"}, then {"do": "measure", "outstanding", "max_s"} any number of times,
and says {"event": "measured", ...the fields of a Rate} or {"event": "failed", "error", "type"}. It is gone soon after
the other end of its link.
"""

from __future__ import annotations

import dataclasses
import select
import signal
import socket
import sys
from collections import deque
from typing import Any

from orch.child import become_child
from orch.errors import Exit, OrchError
from orch.link import Link, Message
from orch.load import load_samples, measure
from orch.supervising.control import message_of


class Loader:
    """Owns its end of the link, and the samples."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._heard: deque[Message] = deque()
        self._endpoint = ""
        self._samples: list[Any] = []

    def run(self) -> int:
        """Do what is asked until the link ends."""
        while not self._link.closed:
            select.select([self._link], [], [])
            self._listen()
            while self._heard:
                self._do(self._heard.popleft())
        return Exit.OK

    def _listen(self, _answers: int = 0) -> None:
        """Also amid a measurement, which ends if nobody waits for it any more."""
        self._heard += self._link.receive()
        if self._link.closed:
            raise SystemExit(Exit.OK)

    def _do(self, message: Message) -> None:
        try:
            if message["do"] == "begin":
                self._endpoint, self._samples = message["endpoint"], load_samples(message["samples"])
            else:
                rate = measure(
                    self._endpoint,
                    self._samples,
                    message["outstanding"],
                    max_s=message["max_s"],
                    on_tick=self._listen,
                )
                self._link.send(event="measured", **dataclasses.asdict(rate))
        except OrchError as err:
            self._link.send(event="failed", **message_of(err))
            if not self._samples:  # and never will be
                raise SystemExit(err.exit_code) from err


def main(argv: list[str]) -> int:
    """Until the link ends."""
    become_child()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return Loader(Link(socket.socket(fileno=int(argv[0])))).run()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
