"""Tensors over HTTP that are read straight into shared memory: right answers whoever dies, stalls or leaves."""

from __future__ import annotations

import socket
import threading
from http.client import HTTPResponse

import numpy as np

from tests.process.harness import FACTOR, Instance, Place, elapse, eventually
from tests.process.models.pictures import SIZE
from tests.process.web import Web

PATH = "/v2/models/Pictures/infer"
NUM_BYTES = 4 * SIZE
MIB = 1 << 20


def body(value: float) -> bytes:
    """A tensor like no other."""
    return np.full(SIZE, value, "<f4").tobytes()


def begun(web: Web, value: float, num_bytes: int) -> socket.socket:
    """A connection on which the beginning of a request was sent."""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\nContent-Length: {NUM_BYTES}\r\n\r\n"
    )
    return web.raw(head.encode() + body(value)[:num_bytes])


def finished(connection: socket.socket, value: float, num_bytes: int) -> list[float]:
    """What is answered once the rest was sent."""
    connection.sendall(body(value)[num_bytes:])
    answer = HTTPResponse(connection)
    answer.begin()
    assert answer.status == 200, answer.read()
    return range_in(answer.read(), answer.headers["inference-header-content-length"])


def range_in(answer: bytes, header_length: str) -> list[float]:
    """The numbers behind the JSON."""
    return list(np.frombuffer(answer[int(header_length) :], "<f4"))


class Load:
    """Threads that ask one after the other; every answer is compared."""

    def __init__(self, instance: Instance, connections: int) -> None:
        self._url, self._stop = instance.url, threading.Event()
        self.answered = 0
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(1000.0 * i,)) for i in range(connections)]
        for thread in self._threads:
            thread.start()

    def _ask(self, value: float) -> None:
        with Web(self._url) as web:
            while not self._stop.is_set():
                value += 1
                answer = web.post(PATH, body(value), inference_header_content_length="0")
                length = answer.headers.get("inference-header-content-length", "0")
                if answer.status != 200 or range_in(answer.body, length) != [value, value]:
                    self.wrong.append(f"{value}: {answer.status} {answer.body[:200]!r}")
                self.answered += 1

    def await_more(self, count: int = 40) -> None:
        """Until so many more were answered."""
        seen = self.answered
        eventually(lambda: self.answered > seen + count or self.wrong, within=10.0)

    def finish(self) -> None:
        """No more; all were right."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10 * FACTOR)
        assert not self.wrong, self.wrong[:5]


def leased_bytes(instance: Instance) -> int:
    """Of the arena."""
    found: int = instance.status()["arena"]["leased_bytes"]
    return found


def requests(instance: Instance) -> int:
    """That came through the arena, in the balancer's life."""
    found: int = instance.status()["arena"]["requests"]
    return found


def test_no_tensor_is_another_after_the_balancers_death(place: Place) -> None:
    """Not those that were running, queued or arriving, nor those that a model keeps."""
    instance = place.up("pictures.py:Pictures", "--set=seconds=0.005", "--set=keeps=3", replicas=2, http=True)
    load = Load(instance, connections=6)
    with Web(instance.url) as web:
        try:
            for turn in range(3):
                load.await_more()
                arriving = [begun(web, turn + i / 8, 100_000 * i) for i in range(1, 6)]
                old = instance.kill("balancer")
                instance.await_successor("balancer", old)
                for i, connection in enumerate(arriving, 1):
                    value = turn + i / 8
                    assert finished(connection, value, 100_000 * i) == [value, value]
            load.await_more()
            assert requests(instance) > 0
        finally:
            load.finish()


def test_slow_clients_leave_the_memory_to_others(place: Place) -> None:
    """200 that stop within their bodies: the others' requests still go through it; then nothing of it is taken."""
    instance = place.up("pictures.py:Pictures", "--shared-memory=16MiB", http=True)
    load = Load(instance, connections=4)
    with Web(instance.url) as web:
        try:
            load.await_more()
            slow = [begun(web, i, 100_000) for i in range(200)]
            seen = requests(instance)
            load.await_more()
            assert requests(instance) > seen
            assert leased_bytes(instance) <= 8 * MIB, "the part of the arena that one client may have"
            elapse(2.5)
            seen = requests(instance)
            load.await_more()
            assert requests(instance) > seen
        finally:
            load.finish()
        eventually(lambda: leased_bytes(instance) == 0)
        assert finished(slow[7], 7, 100_000) == [7, 7]


def test_a_client_that_leaves_amid_its_body_leaves_nothing(place: Place) -> None:
    """Nor does one whose request is refused, nor one that leaves before the answer, or with it."""
    instance = place.up("pictures.py:Pictures", "--set=seconds=0.02", http=True)
    with Web(instance.url) as web:
        for value in range(8):
            connections = [begun(web, value, 50_000 * i) for i in range(1, 9)]
            connections.append(begun(web, value, NUM_BYTES))
            assert web.post(PATH, body(value)[8:], inference_header_content_length="0").status == 400
            assert web.post(PATH, body(value), inference_header_content_length="0").status == 200
            assert web.post(PATH, body(value), inference_header_content_length="0", connection="close").status == 200
            assert web.post(PATH, body(-1), inference_header_content_length="0").status == 500
            for each in connections:
                each.close()
        eventually(lambda: leased_bytes(instance) == 0)
        assert finished(begun(web, 9, 9), 9, 9) == [9, 9]
