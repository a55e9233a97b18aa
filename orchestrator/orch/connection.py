"""A client's connection to a balancer, whatever carries it."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from typing import Protocol

from orch import wire
from orch.errors import ConfigError
from orch.local import LocalConnection
from orch.remote import RemoteConnection
from orch.version import __version__
from orch.wire import Kind, Record

SOCKET_PATH_MAX = 107  # sun_path holds 108 bytes with its end
PORT_MAX = 65_535


class Connection(Protocol):
    """For one thread at a time. It opens with HELLO, and does so again after each loss."""

    endpoint: str
    is_local: bool  # the balancer shares our clock and our memory

    @property
    def is_stuck(self) -> bool:
        """Whether something given to `send` may not be on its way yet: it is time to `flush`."""

    def reopen(self) -> None:
        """A new connection for the same session: what the old one still holds, either way, is void."""

    def send(self, records: Sequence[Record]) -> None:
        """Pack and send; what is not taken now goes with the next `send` or `flush`."""

    def flush(self) -> bool:
        """Whether everything given to `send` is on its way."""

    def wait(self, timeout_s: float | None) -> bool:
        """Sleep until a message, a wake-up or the time; False: the connection was lost."""

    def receive(self) -> list[Record]:
        """The records of one message; none: nothing is there. Behind a `wait`.

        Raises:
            RemoteProtocolError: the balancer broke the rules.
        """

    def close(self, farewell: Record) -> None:
        """Say so and close."""

    def abandon(self) -> None:
        """In a forked child: let go, without a word, of what is the parent's."""


def connect(endpoint: str, wake_fd: int, window: int) -> Connection:
    """A connection that looks for the balancer until it is closed.

    wake_fd: an eventfd that interrupts `wait`; it is its owner's, who closes it after this. window: requests that it
    would have under way at one time; 0: as many as the balancer gives everyone. Raises OSError.
    """
    body = wire.write_map(session=secrets.token_bytes(wire.SESSION_BYTES), sdk=__version__, window=window)
    hello = Record(Kind.HELLO, body=body)
    if endpoint.startswith("unix://"):
        return LocalConnection(endpoint, wake_fd, hello)
    return RemoteConnection(endpoint, wake_fd, hello)


def check_endpoint(endpoint: str) -> str:
    """An endpoint that a client can connect to; unlike a balancer, it may go to any host.

    Raises:
        ConfigError: it is none.
    """
    path = endpoint.removeprefix("unix://").removeprefix("ipc://")
    num_bytes = len(os.fsencode(path))
    tcp = re.fullmatch(r"tcp://(?:[\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", endpoint, re.ASCII)
    if path != endpoint and path.startswith("/") and "\0" not in path:
        if num_bytes <= SOCKET_PATH_MAX:
            return endpoint
        problem = f"its path has {num_bytes} bytes and a socket's may have {SOCKET_PATH_MAX}"
    elif tcp and 1 <= int(tcp[1]) <= PORT_MAX:
        return endpoint
    else:
        problem = "it is not an endpoint"
    raise ConfigError(
        f"endpoint = {endpoint!r}: {problem}; allowed are unix:///absolute/path, ipc:///absolute/path and "
        "tcp://host:port. `orch status` shows an instance's; without an endpoint, the instance is found by its name"
    )
