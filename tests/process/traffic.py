"""Clients of an HTTP address that never stop asking while something is done to its servers."""

from __future__ import annotations

import http.client
import os
import select
import signal
import threading
from dataclasses import dataclass, field
from typing import Self

from tests.process.harness import FACTOR, Instance, eventually

ASK_S = 20.0
# Of one test; the environment may ask for more.
REQUESTS = int(os.environ.get("TEST_PROXY_REQUESTS", "1500"))


@dataclass
class Traffic:
    """`clients` threads that ask one request after the other until `finish`, and remember every answer but 200.

    They take turns in `methods`; a POST has a body of its own, a number. keep: each client keeps its connection, and
    takes another when the server has closed it; otherwise it has one for each request.
    """

    address: tuple[str, int]
    path: str = "/?ms=3"
    clients: int = 8
    keep: bool = False
    methods: tuple[str, ...] = ("GET", "POST")
    failed: list[str] = field(default_factory=list)
    answered: int = 0
    repeated: int = 0  # of a kept connection that was closed as the request came, which clients send again
    _stopping: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Wait for the answers that are still to come."""
        self._stopping = True
        for thread in self._threads:
            thread.join(ASK_S * FACTOR + 5)
            assert not thread.is_alive(), "a client got no answer"

    def reach(self, count: int, within: float = 30.0) -> None:
        """Until so many have been answered."""
        eventually(lambda: self.answered >= count or self.failed, within)

    def _ask(self, number: int) -> None:
        connection = http.client.HTTPConnection(*self.address, timeout=ASK_S * FACTOR)
        count = 0
        while not self._stopping:
            count += 1
            method = self.methods[count % len(self.methods)]
            body = f"{number + 1}{count:06}" if method == "POST" else None
            try:
                status, answer = self._one(connection, body)
            except (OSError, http.client.HTTPException) as err:
                status, answer = 0, repr(err).encode()
                connection.close()
            with self._lock:
                self.answered += 1
                if status != 200:
                    self.failed.append(f"{method} {status}: {answer[:200]!r}")
        connection.close()

    def _one(self, connection: http.client.HTTPConnection, body: str | None) -> tuple[int, bytes]:
        used = connection.sock is not None
        if used and select.select([connection.sock], [], [], 0)[0]:  # closed while it was idle
            connection.close()
            used = False
        try:
            return self._send(connection, body)
        except (ConnectionError, http.client.RemoteDisconnected):
            # RFC 9112, 9.3.1: a kept connection may be closed just as a request comes, which is then sent again.
            if not used:
                raise
            connection.close()
            with self._lock:
                self.repeated += 1
            return self._send(connection, body)

    def _send(self, connection: http.client.HTTPConnection, body: str | None) -> tuple[int, bytes]:
        headers = {} if self.keep else {"Connection": "close"}
        connection.request("POST" if body else "GET", self.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def scale(instance: Instance, traffic: Traffic, count: int, share: float) -> None:
    """Scale, and let traffic go on until that share of the requests is answered and the replicas are there."""
    instance.call("scale", replicas=count)
    instance.await_ready(count)
    traffic.reach(int(REQUESTS * share))


def lose_a_gateway_and_scale(instance: Instance, traffic: Traffic) -> None:
    """Kill the first gateway of a model; then five replicas, then two, until all requests have been answered."""
    traffic.reach(REQUESTS // 5)
    os.kill(instance.status()["gateways"][0]["pid"], signal.SIGKILL)
    traffic.reach(REQUESTS // 2)
    scale(instance, traffic, 5, 0.7)
    scale(instance, traffic, 2, 1.0)
