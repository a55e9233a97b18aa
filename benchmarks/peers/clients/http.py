"""An HTTP client with kept-alive connections, one request on each: asks once, and drives the kill workload.

wrk drives the other points, because it takes less of the processor than any client in Python.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from typing import Any

from benchmarks.peers.bodies import posted, wrapped
from benchmarks.peers.clients import common
from benchmarks.peers.clients.common import Seen, is_right

HOST = "127.0.0.1"
# A connection that failed is opened again after this long.
REOPEN_S = 0.05
LOOK_S = 0.02
CONNECT_S = 1.0
READ_BYTES = 256 * 1024
OK = 200


class Connection:
    """One socket with at most one request on it."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._socket: socket.socket | None = None
        self._received = bytearray()
        self.sent_at = 0.0

    def send(self) -> None:
        """Raises OSError."""
        if self._socket is None:
            self._socket = socket.create_connection((HOST, common.PORT), timeout=CONNECT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received.clear()
        self.sent_at = time.monotonic()
        self._socket.sendall(self._request)

    def fileno(self) -> int:
        """For a selector."""
        return -1 if self._socket is None else self._socket.fileno()

    def read(self) -> tuple[int, bytes] | None:
        """Status and body of the answer, when it is whole. Raises OSError."""
        assert self._socket is not None
        piece = self._socket.recv(READ_BYTES)
        if not piece:
            raise ConnectionResetError("closed")
        self._received += piece
        head, ended, rest = self._received.partition(b"\r\n\r\n")
        if not ended:
            return None
        fields = dict(line.lower().split(b": ", 1) for line in bytes(head).split(b"\r\n")[1:])
        if b"content-length" not in fields:
            raise OSError("an answer without a Content-Length")
        if len(rest) < int(fields[b"content-length"]):
            return None
        if fields.get(b"connection") == b"close":
            self.close()
        json_bytes = int(fields.get(b"inference-header-content-length", 0))
        return int(head.split(b" ", 2)[1]), bytes(rest[json_bytes:])

    def close(self) -> None:
        """The next `send` opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Target:
    """Connections to one server."""

    def __init__(self) -> None:
        path, form = os.environ["BENCH_PATH"], os.environ["BENCH_FORM"]
        self._request = posted(f"{HOST}:{common.PORT}", path, *wrapped(form, common.BODY))

    def ask(self, timeout_s: float) -> Any:
        connection = Connection(self._request)
        try:
            connection.send()
            with selectors.DefaultSelector() as selector:
                selector.register(connection, selectors.EVENT_READ)
                deadline = time.monotonic() + timeout_s
                while (left_s := deadline - time.monotonic()) > 0:
                    if selector.select(left_s) and (found := connection.read()):
                        status, answer = found
                        if status != OK:
                            raise OSError(f"status {status}: {answer[:200]!r}")
                        return answer
            raise TimeoutError(f"{timeout_s:g} s")
        finally:
            connection.close()

    def load(self, outstanding: int, seconds: float, patience_s: float | None) -> Seen:
        run = Run(patience_s)
        run.serve([Connection(self._request) for _ in range(outstanding)], seconds)
        return run.seen


class Run:
    """Owns the connections of one load."""

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s
        self._selector = selectors.DefaultSelector()
        self._open_at: list[tuple[float, Connection]] = []
        self.seen = Seen(began_at=time.monotonic())

    def serve(self, connections: list[Connection], seconds: float) -> None:
        """Keep all of them busy."""
        for connection in connections:
            self._send(connection)
        end = self.seen.began_at + seconds
        while (now := time.monotonic()) < end:
            for key, _ in self._selector.select(LOOK_S):
                self._read(key.fileobj)
            due = [connection for at, connection in self._open_at if at <= now]
            self._open_at = [(at, connection) for at, connection in self._open_at if at > now]
            for connection in due:
                self._send(connection)
            if self._patience_s is not None:
                for key in list(self._selector.get_map().values()):
                    if now - key.fileobj.sent_at > self._patience_s:  # type: ignore[union-attr]
                        self._failed(key.fileobj, "no answer")
        self.seen.took_s = time.monotonic() - self.seen.began_at
        for connection in connections:
            connection.close()
        self._selector.close()

    def _send(self, connection: Connection) -> None:
        try:
            connection.send()
        except OSError as err:
            self._failed(connection, type(err).__name__)
        else:
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: Any) -> None:
        descriptor = connection.fileno()
        try:
            found = connection.read()
        except OSError as err:
            self._failed(connection, type(err).__name__)
            return
        if found is None:
            return
        now = time.monotonic()
        status, answer = found
        if status == OK and is_right(answer):
            self.seen.latencies_s.append(now - connection.sent_at)
            self.seen.answered_at.append(now - self.seen.began_at)
        else:
            self.seen.errors.append(f"status {status}" if status != OK else "wrong answer")
        self._selector.unregister(descriptor)
        self._send(connection)

    def _failed(self, connection: Any, why: str) -> None:
        self.seen.errors.append(why)
        if connection.fileno() >= 0 and connection.fileno() in self._selector.get_map():
            self._selector.unregister(connection)
        connection.close()
        self._open_at.append((time.monotonic() + REOPEN_S, connection))


if __name__ == "__main__":
    common.serve(Target)
