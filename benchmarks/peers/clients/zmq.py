"""A client of the bare ZeroMQ servers: one DEALER, frames [request id, body] both ways."""

from __future__ import annotations

import os
import time
from typing import Any

import zmq
from benchmarks.peers.clients import common
from benchmarks.peers.clients.common import Seen, is_right

# How often a client that waits looks whether its patience is over; and how long it waits for the last answers.
LOOK_MS = 100
LAST_S = 2.0


class Target:
    """One DEALER socket."""

    def __init__(self) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, LOOK_MS)
        self._socket.connect(os.environ["BENCH_FRONT"])
        # A large body is sent from where it lies.
        self._body: Any = zmq.Frame(common.BODY) if common.IS_TENSOR else common.BODY
        self._count = 0

    def _send(self) -> bytes:
        self._count += 1
        request = self._count.to_bytes(8, "big")
        self._socket.send(request, zmq.SNDMORE)
        self._socket.send(self._body, copy=not common.IS_TENSOR)
        return request

    def ask(self, timeout_s: float) -> Any:
        request = self._send()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._socket.poll(LOOK_MS):
                found, answer = self._socket.recv_multipart()
                if found == request:
                    return answer
        raise TimeoutError(f"{timeout_s:g} s")

    def load(self, outstanding: int, seconds: float, patience_s: float | None) -> Seen:
        clock, receive = time.monotonic, self._socket.recv
        begin = now = clock()
        look_s = LOOK_MS / 1000
        end, look_at = begin + seconds, begin + look_s
        seen = Seen(began_at=begin)
        latencies, answered_at = seen.latencies_s, seen.answered_at
        under_way: dict[bytes, float] = {}
        for _ in range(outstanding):
            under_way[self._send()] = clock()
        while now < end:
            try:
                request, answer = receive(), receive()
            except zmq.Again:
                now = clock()
            else:
                now = clock()
                sent = under_way.pop(request, None)
                if sent is not None:
                    latencies.append(now - sent)
                    answered_at.append(now - begin)
                    if not is_right(answer):
                        seen.errors.append("wrong answer")
                    under_way[self._send()] = clock()
            if patience_s is not None and now > look_at:
                look_at = now + look_s
                for request in [request for request, sent in under_way.items() if now - sent > patience_s]:
                    del under_way[request]
                    seen.errors.append("no answer")
                    under_way[self._send()] = clock()
        seen.took_s = now - begin
        self._take_rest(under_way)
        return seen

    def _take_rest(self, under_way: dict[bytes, float]) -> None:
        """So that the next run does not begin with the answers of this one."""
        until = time.monotonic() + LAST_S
        while under_way and time.monotonic() < until:
            if self._socket.poll(LOOK_MS):
                under_way.pop(self._socket.recv_multipart()[0], None)


if __name__ == "__main__":
    common.serve(Target)
