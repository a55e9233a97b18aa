"""A plain HTTP client for tests: one connection, no retries, nothing done behind anybody's back."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from tests.process.harness import FACTOR

WAIT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as a value."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error."""
        text: str = self.json["error"]
        assert text
        assert "Traceback" not in text
        return text


class Web:
    """One connection, which opens itself again after it was closed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.address = parts.hostname, parts.port
        self._raw: list[socket.socket] = []
        self._connection = http.client.HTTPConnection(*self.address, timeout=WAIT_S * FACTOR)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        for each in self._raw:
            each.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request and its answer."""
        self._connection.request(method, path, body, dict(headers or {}))
        answer = self._connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def get(self, path: str, **headers: str) -> Answer:
        """GET; headers with underscores for dashes."""
        return self.ask("GET", path, headers=_headers(headers))

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """POST. body: bytes, or a value to be sent as JSON."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask("POST", path, sent, _headers(headers))

    def events(self, path: str, body: Any) -> Iterator[tuple[str, Any]]:
        """Server-sent events as they come: their name ("" for none) and their data."""
        self._connection.request("POST", path, json.dumps(body), {"Accept": "text/event-stream"})
        answer = self._connection.getresponse()
        assert (answer.status, answer.getheader("content-type")) == (200, "text/event-stream"), answer.read()
        name = ""
        while line := answer.readline():
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, json.loads(value)
            else:
                name = ""

    def raw(self, data: bytes) -> socket.socket:
        """A connection of its own on which these bytes were sent, and no more."""
        connection = socket.create_connection(self.address, WAIT_S * FACTOR)
        self._raw.append(connection)
        connection.sendall(data)
        return connection


def free_address() -> str:
    """Of a port of this host that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def listens(address: str) -> bool:
    """Whether somebody does there."""
    host, _, port = address.rpartition(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0


def _headers(given: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in given.items()}


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    found = b""
    with connection:
        while piece := connection.recv(65536):
            found += piece
    return found
