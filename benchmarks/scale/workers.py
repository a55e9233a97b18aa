"""Simulated workers: each answers a batch in one message, after a while in which a model would have run it."""

from __future__ import annotations

import heapq
import math
import random
import select
import time

from benchmarks.scale.peer import KIND_AT, Peers, checked, serve

from orch import wire
from orch.channel import Channel
from orch.link import Link, Message
from orch.wire import Kind, Record

REQUEST, RESULT = int(Kind.REQUEST), int(Kind.RESULT)
# Batches do not all take the same time: else a thousand workers would work in step.
SPREAD = (0.5, 1.5)
READ, BOTH = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Worker:
    """One connection. waiting: packed requests, which are not in a batch yet."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.waiting = bytearray()
        self.batch = b""


class Workers(Peers):
    """do="connect" opens them all; "work" says how long a batch takes from now on, for ever if `batch_s` is None."""

    def __init__(self, link: Link, counted: memoryview, settings: Message) -> None:
        super().__init__(link, counted, settings)
        self._workers: dict[int, Worker] = {}
        self._due: list[tuple[float, int]] = []  # when a batch is done, and whose
        self._batch_bytes = self.size
        self._batch_s = 0.0

    def said(self, message: Message) -> None:
        match message["do"]:
            case "connect":
                num_rows = message["max_batch_size"]
                self._batch_bytes = num_rows * self.size
                fields = {"generation": 1, "model": "m", "max_batch_size": num_rows, "kept": []}
                for i in range(message["count"]):
                    ready = Record(Kind.READY, body=wire.write_map(replica=f"r{i}", **fields))
                    made = self.connect([wire.pack_head([ready])])
                    self._workers[made.fileno()] = Worker(made)
            case "work":
                self._batch_s = math.inf if message["batch_s"] is None else message["batch_s"]
                self._due.clear()
                for fd, worker in self._workers.items():
                    worker.waiting[:0] = worker.batch
                    worker.batch = b""
                    self._begin(fd, worker)

    def read(self, fd: int) -> None:
        worker = self._workers[fd]
        for head, frames in worker.channel.receive():
            if self.are_all(REQUEST, head):
                worker.waiting += head
                self.counted[1] += 1
            else:
                assert not any(record.kind == REQUEST for record in checked(head, frames))
        if not worker.batch:
            self._begin(fd, worker)
        if worker.channel.closed:
            self.epoll.unregister(fd)

    def turn(self) -> float | None:
        now = time.monotonic()
        for _ in range(len(self._due)):  # a batch that takes no time is followed in the next turn
            if self._due[0][0] > now:
                break
            self._end(heapq.heappop(self._due)[1])
        return max(0.0, self._due[0][0] - now) if self._due and self._due[0][0] < math.inf else None

    def write(self, fd: int) -> None:
        if self._workers[fd].channel.flush():
            self.epoll.modify(fd, READ)

    def _begin(self, fd: int, worker: Worker) -> None:
        if worker.waiting:
            worker.batch = bytes(worker.waiting[: self._batch_bytes])
            del worker.waiting[: self._batch_bytes]
            heapq.heappush(self._due, (time.monotonic() + self._batch_s * random.uniform(*SPREAD), fd))

    def _end(self, fd: int) -> None:
        worker = self._workers[fd]
        answer, num = bytearray(worker.batch), len(worker.batch) // self.size
        answer[KIND_AT :: self.size] = bytes((RESULT,)) * num
        worker.batch = b""
        self.counted[0] += num
        self.counted[2] += 1
        if not worker.channel.send([answer]):
            self.epoll.modify(fd, BOTH)
        self._begin(fd, worker)


if __name__ == "__main__":
    serve(Workers)
