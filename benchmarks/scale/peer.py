"""What simulated workers and clients have in common: one process, many connections, one epoll, one link."""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.scale.parts import counters

from orch import channel, wire
from orch.channel import Channel
from orch.child import become_child
from orch.link import Link, Message
from orch.wire import HEADER

KIND_AT, ID_AT = 1, 8
PATIENCE_S = 30.0


class Peers:
    """Owns the loop and the link of a process. Whoever inherits answers `said`, `read`, `write`, perhaps `turn`."""

    def __init__(self, link: Link, counted: memoryview, settings: Message) -> None:
        self.link = link
        self.counted = counted
        self.path: str = settings["path"]
        self.body = b"\xaa" * settings["body_bytes"]
        self.size = HEADER.size + len(self.body)
        self.epoll = select.epoll()
        self.epoll.register(link, select.EPOLLIN)

    def connect(self, first: list[Any]) -> Channel:
        """A connection that has said its first message. One that finds the balancer busy waits."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                made = channel.connect(self.path)
            except BlockingIOError:
                assert time.monotonic() < deadline, "the balancer takes no connection in"
                time.sleep(0.002)
                continue
            made.send(first)
            self.epoll.register(made, select.EPOLLIN)
            return made

    def run(self) -> None:
        """Until the link ends."""
        poll, link_fd = self.epoll.poll, self.link.fileno()
        wait_s: float | None = None
        while not self.link.closed:
            for fd, events in poll(wait_s):
                if fd == link_fd:
                    for message in self.link.receive():
                        self.said(message)
                    continue
                if events & select.EPOLLOUT:
                    self.write(fd)
                if events & ~select.EPOLLOUT:
                    self.read(fd)
            wait_s = self.turn()

    def turn(self) -> float | None:
        """What is left to do when everybody was served. Seconds until the next turn; None: when something comes."""
        return None

    def said(self, message: Message) -> None:
        """By the link."""
        raise NotImplementedError

    def read(self, fd: int) -> None:
        """A connection is readable."""
        raise NotImplementedError

    def write(self, fd: int) -> None:
        """A connection has room, which was asked for."""
        raise NotImplementedError

    def are_all(self, kind: int, head: bytes) -> int:
        """How many records of that kind and of our size the message has; 0: it has others."""
        num, rest = divmod(len(head), self.size)
        return num if not rest and head[KIND_AT :: self.size] == bytes((kind,)) * num else 0


def serve(made: Callable[[Link, memoryview, Message], Peers]) -> None:
    """`LINK_FD COUNTERS_FD`: the process's whole life."""
    link_fd, counters_fd = map(int, sys.argv[1:])
    become_child()
    link = Link(socket.socket(fileno=link_fd))
    while not (first := link.receive()):
        select.select([link], [], [])
    peers = made(link, counters(counters_fd), first[0]["settings"])
    for message in first[1:]:
        peers.said(message)
    peers.run()


def checked(head: bytes, frames: Any) -> list[wire.Record]:
    """The records of a message that is not one of the common ones; a GOODBYE is none."""
    return [record for record in wire.decode(head, frames) if record.kind != wire.Kind.GOODBYE]
