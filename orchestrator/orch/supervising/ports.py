"""Which port the server of each replica listens on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from orch.errors import AddressInUse
from orch.parsing import PORT_MAX

HOST: Final = "127.0.0.1"  # where servers are looked at, and where proxies of this host reach them


def is_free(port: int) -> bool:
    """Whether nobody listens there, on any address of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has ended is not in the way
        try:
            trial.bind(("", port))
        except OSError:
            return False
    return True


class Ports:
    """Owns the port of each slot: `first` + slot, or the next that is free; a slot that has served keeps its port."""

    def __init__(self, first: int, free: Callable[[int], bool] = is_free) -> None:
        self._first, self._free = first, free
        self._of: dict[int, int] = {}
        self._served: set[int] = set()
        self._last: int | None = None  # the port that was taken last
        self._passed_over: list[int] = []  # on the way there
        self._known: set[int] = set()  # of those that were passed over

    def of(self, slot: int) -> int | None:
        """The slot's port; None: it has not been started yet."""
        return self._of.get(slot)

    def serves(self, slot: int) -> None:
        """Its server answers there: proxies know the port now, and it stays."""
        self._served.add(slot)

    def told(self) -> str:
        """Of the ports that were passed over since the last time, and what was taken instead; or nothing."""
        found, self._passed_over = self._passed_over, []
        if not found:
            return ""
        taken = f"port {found[0]} is" if len(found) == 1 else f"{len(found)} ports from {found[0]} on are"
        return f"listens on port {self._last}: {taken} taken (--first-port chooses)"

    def take(self, slot: int) -> int:
        """The slot's port, now that its server is about to start.

        Raises:
            AddressInUse: there is none left.
        """
        port = self._of.get(slot)
        if slot in self._served and port is not None:
            return port
        others = {each for other, each in self._of.items() if other != slot}
        for port in range(self._first + slot, PORT_MAX + 1):
            if port in others:
                continue
            if self._free(port):
                self._of[slot] = self._last = port
                return port
            if port not in self._known:
                self._known.add(port)
                self._passed_over.append(port)
        raise AddressInUse(f"no port from {self._first + slot} on is free; choose another --first-port")
