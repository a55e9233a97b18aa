"""Sending: one packed message per peer and pass, and an end for peers that do not read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from orch import payload, wire
from orch.wire import AnyRecord, Packed, Piece, as_piece
from orch_balancer.entry import Entry
from orch_balancer.peers import Peer

# What may wait for one peer, beyond what the transport takes. One that lets more pile up does not read: it is dropped.
MAX_OUTBOX_BYTES = 64 * 1024 * 1024


class Route(Protocol):
    """Where a peer is reached: a connection of one transport or the other."""

    @property
    def peer(self) -> Peer | None:
        """Which process it is; None: of another host."""

    @property
    def unsent_bytes(self) -> int:
        """What waits for the peer to read."""

    def send(self, message: Sequence[Any]) -> bool | None:
        """Send; False: as far as there is room, and the rest later; None: nobody is there any more."""

    def close(self) -> None:
        """End the connection."""


class Outlet:
    """Owns what was put for peers and is not handed to their routes yet."""

    def __init__(self) -> None:
        self.pending: dict[Route, list[Piece]] = {}
        self._blocked: set[Route] = set()
        self._allowed: dict[Route, int] = {}  # where it is not MAX_OUTBOX_BYTES

    def allow(self, route: Route, num_bytes: int) -> None:
        """Let so much wait for a peer, until it is dropped."""
        self._allowed[route] = num_bytes

    def put(self, route: Route, record: AnyRecord) -> None:
        """Send with the next `flush`."""
        self.put_all(route, [as_piece(record)])

    def put_all(self, route: Route, pieces: list[Piece]) -> None:
        """Send these, in order, with the next `flush`; the list is the outlet's from now on."""
        pending = self.pending.get(route)
        if pending is None:
            self.pending[route] = pieces
        else:
            pending += pieces

    def put_answers(self, answers: Iterable[tuple[Entry, Packed]]) -> None:
        """Send each to the client of its entry: the request id is the client's own."""
        every = self.pending
        for entry, record in answers:
            route = entry.session.route
            pending = every.get(route)
            if pending is None:
                pending = every[route] = []
            pending.append(record[9:])  # what as_piece says of it

    def flush(self) -> list[Route]:
        """Send what was put. Returns the routes to give up: gone, or not reading."""
        failed: list[Route] = []
        pending = self.pending
        while pending:
            route, pieces = pending.popitem()
            if not self._send(route, pieces):
                failed.append(route)
                self.drop(route)
        return failed

    @property
    def blocked(self) -> bool:
        """Whether something waits for its peer to read."""
        if self._blocked:
            self._blocked = {route for route in self._blocked if route.unsent_bytes}
        return bool(self._blocked)

    def drop(self, route: Route) -> None:
        """Forget what was meant for a peer."""
        self.pending.pop(route, None)
        self._allowed.pop(route, None)
        self._blocked.discard(route)

    def _send(self, route: Route, pieces: Sequence[Piece]) -> bool:
        for message in wire.pack(pieces):
            if route in self._blocked:
                held = route.unsent_bytes
                if held and held + payload.nbytes(message[0], message[1:]) > self._allowed.get(route, MAX_OUTBOX_BYTES):
                    return False
            sent = route.send(message)
            if sent is None:
                return False
            if not sent:
                self._blocked.add(route)
        return True
