"""Simulated clients: a few at a time keep requests outstanding while the others are connected and idle."""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from benchmarks.scale.parts import hello
from benchmarks.scale.peer import ID_AT, Peers, checked, serve

from orch import wire
from orch.channel import Channel
from orch.link import Link, Message
from orch.wire import FINAL, MAX_RECORDS, SESSION_BYTES, TICKET, Flag, Kind, Record

RESULT, ERROR = int(Kind.RESULT), int(Kind.ERROR)
READ, BOTH = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Batch:
    """Records of one message, packed once; `numbered` gives them other request ids."""

    def __init__(self, record: Record, num: int) -> None:
        self._packed = bytearray(wire.pack_head([record] * num))
        size = len(self._packed) // num
        self._ids = np.ndarray((num,), "<u8", self._packed, ID_AT, (size,))
        self._steps = np.arange(num, dtype="<u8")

    def numbered(self, first: int, step: int = 1) -> bytes:
        """The head of a message with ids from `first`."""
        self._ids[:] = self._steps * step + first
        return bytes(self._packed)

    def many(self, num: int, first: int, step: int = 1) -> Iterator[bytes]:
        """So many messages, each made when it is sent."""
        for i in range(num):
            yield self.numbered(first + i * len(self._ids) * step, step)


class Slot:
    """One of those that are active at a time: clients that take turns in keeping requests outstanding."""

    def __init__(self, clients: list[Client], outstanding: int, turn: int) -> None:
        self.clients = clients
        self.index = 0
        self.credit = outstanding  # records that may be sent
        self.turn = self.left = turn  # messages of one client in a row
        self.probe: tuple[Client, bytes, float] | None = None  # a request that is timed

    def next(self) -> Client:
        """Who sends the next message."""
        if not self.left:
            self.left = self.turn
            self.index = (self.index + 1) % len(self.clients)
        self.left -= 1
        return self.clients[self.index]


class Client:
    """One connection. todo: heads of messages that are yet to be sent, where it has more than fits."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.next_id = 1
        self.slot: Slot | None = None
        self.todo: deque[Iterator[bytes]] = deque()
        self.is_welcome = False


class Clients(Peers):
    """do="connect", "load" and "stop" of a closed loop; "pour" and "cancel" of what stays queued; "leave"."""

    def __init__(self, link: Link, counted: memoryview, settings: Message) -> None:
        super().__init__(link, counted, settings)
        self._clients: list[Client] = []
        self._of_fd: dict[int, Client] = {}
        self._num_welcome = 0
        self._records = 1
        self._batch = Batch(Record(Kind.REQUEST, body=self.body), 1)
        self._slots: list[Slot] = []
        self._is_loading = False
        self._outstanding = 0
        self._latencies_s: list[float] = []

    def said(self, message: Message) -> None:
        match message["do"]:
            case "connect":
                for _ in range(message["count"]):
                    client = Client(self.connect(hello(os.urandom(SESSION_BYTES))))
                    self._clients.append(client)
                    self._of_fd[client.channel.fileno()] = client
            case "load":
                self._load(message)
            case "stop":
                self._is_loading = False
                self._report_idle()
            case "pour":
                self._pour(message)
            case "cancel":
                self._cancel(message)
            case "leave":
                for client in self._clients:
                    self._push(client, [wire.pack_head([Record(Kind.GOODBYE)])])

    # --- a closed loop

    def _load(self, asked: Message) -> None:
        """Keep `outstanding` records of each of `active` clients under way, in messages of `records`."""
        self._records = asked["records"]
        self._batch = Batch(Record(Kind.REQUEST, body=self.body), self._records)
        active = asked["active"]
        # Not all clients in one order: those whose turns are near each other would be near each other in memory.
        self._slots = [Slot(self._clients[i::active], asked["outstanding"], asked["turn"]) for i in range(active)]
        self._latencies_s = []
        self._is_loading = True
        for slot in self._slots:
            self._send(slot)

    def _send(self, slot: Slot) -> None:
        records = self._records
        while slot.credit >= records and self._is_loading:
            slot.credit -= records
            self._outstanding += records
            client = slot.next()
            client.slot = slot
            first = client.next_id
            client.next_id += records
            if slot.probe is None:
                slot.probe = (client, TICKET.pack(first), time.perf_counter())
            self._push(client, [self._batch.numbered(first)])

    def _answered(self, client: Client, num: int, head: bytes) -> None:
        self._outstanding -= num
        slot = client.slot
        if slot is None:
            return
        slot.credit += num
        probe = slot.probe
        if probe is not None and probe[0] is client and probe[1] in head:
            self._latencies_s.append(time.perf_counter() - probe[2])
            slot.probe = None
        if self._is_loading:
            self._send(slot)
        elif not self._outstanding:
            self._report_idle()

    def _report_idle(self) -> None:
        if not self._outstanding:
            self.link.send(event="idle", latencies_s=self._latencies_s[-5000:])

    # --- a queue

    def _pour(self, asked: Message) -> None:
        """`count` requests of all clients together, with one deadline; 0: without."""
        deadline_ns = time.monotonic_ns() + int(asked["deadline_s"] * 1e9) if asked["deadline_s"] else 0
        flags = Flag.RESEND if deadline_ns else 0  # accepted whatever was learned about the speed
        record = Record(Kind.REQUEST, flags=flags, deadline_ns=deadline_ns, body=self.body)
        batch = Batch(record, MAX_RECORDS)
        for client in self._clients:
            num = asked["count"] // len(self._clients) // MAX_RECORDS
            first, client.next_id = client.next_id, client.next_id + num * MAX_RECORDS
            self._outstanding += num * MAX_RECORDS
            self._push(client, batch.many(num, first))

    def _cancel(self, asked: Message) -> None:
        """`count` requests of all clients together: every fifth of those that they sent last."""
        batch, step = Batch(Record(Kind.CANCEL), MAX_RECORDS), 5
        for client in self._clients:
            num = asked["count"] // len(self._clients) // MAX_RECORDS
            self._push(client, batch.many(num, client.next_id - num * MAX_RECORDS * step, step))

    # --- connections

    def _push(self, client: Client, heads: Iterable[bytes]) -> None:
        client.todo.append(iter(heads))
        if len(client.todo) == 1 and not self._write(client):
            self.epoll.modify(client.channel, BOTH)

    def _write(self, client: Client) -> bool:
        """As far as there is room; whether nothing is left."""
        channel, counted = client.channel, self.counted
        if not channel.flush():
            return False
        while client.todo:
            for head in client.todo[0]:
                counted[2] += 1
                if not channel.send([head]):
                    return False
            client.todo.popleft()
        return True

    def write(self, fd: int) -> None:
        client = self._of_fd[fd]
        if self._write(client):
            self.epoll.modify(fd, READ)

    def read(self, fd: int) -> None:
        client, counted = self._of_fd[fd], self.counted
        for head, frames in client.channel.receive():
            counted[1] += 1
            if num := self.are_all(RESULT, head):
                counted[0] += num
                self._answered(client, num, head)
            else:
                self._read_slowly(client, head, frames)
        if client.channel.closed:
            self.epoll.unregister(fd)

    def _read_slowly(self, client: Client, head: bytes, frames: Any) -> None:
        records = checked(head, frames)
        final = [record for record in records if record.kind in FINAL]
        self.counted[0] += len(final)
        self.counted[3] += sum(record.kind == ERROR for record in final)
        if final:
            self._answered(client, len(final), head)
        if not client.is_welcome and any(record.kind == Kind.WELCOME for record in records):
            client.is_welcome = True
            self._num_welcome += 1
            if self._num_welcome == len(self._clients):
                self.link.send(event="connected")


if __name__ == "__main__":
    serve(Clients)
