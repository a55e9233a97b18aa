"""A floor: the least-outstanding broker of the textbooks, ROUTER to ROUTER in Python, and a new worker for a dead one.

Requests that were with the dead one are lost.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import zmq
from benchmarks.peers.servers import work
from benchmarks.peers.servers.zmq_worker import BACK

WATCH_MS = 100


class Workers:
    """Owns the worker processes, and counts what each has outstanding, by its route."""

    def __init__(self) -> None:
        self.outstanding: dict[bytes, int] = {}
        self._starting: dict[int, subprocess.Popen[bytes]] = {}
        self._open: dict[bytes, subprocess.Popen[bytes]] = {}
        self._watch_at = 0.0

    def watch(self) -> None:
        """Forget the dead and start as many anew; now and then."""
        if time.monotonic() < self._watch_at:
            return
        self._watch_at = time.monotonic() + WATCH_MS / 1000
        for route in [route for route, process in self._open.items() if process.poll() is not None]:
            del self._open[route], self.outstanding[route]
        while len(self._open) + len(self._starting) < work.WORKERS:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.servers.zmq_worker"], env={**os.environ, "BENCH_READY": "1"}
            )
            self._starting[process.pid] = process

    def ready(self, route: bytes, pid: int) -> None:
        """A worker has opened."""
        self._open[route] = self._starting.pop(pid)
        self.outstanding[route] = 0


def main() -> None:
    """Serve until killed."""
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    poller = zmq.Poller()
    for socket, address in ((front, work.FRONT), (back, BACK)):
        socket.set_hwm(0)
        socket.bind(address)
        poller.register(socket, zmq.POLLIN)
    workers = Workers()
    while True:
        workers.watch()
        poller.poll(WATCH_MS)
        answers(back, front, workers)
        requests(front, back, workers.outstanding)


def answers(back: zmq.Socket[bytes], front: zmq.Socket[bytes], workers: Workers) -> None:
    """All that have arrived."""
    while True:
        try:
            route, *frames = back.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if len(frames) == 1:
            workers.ready(route, int(frames[0]))
            continue
        front.send_multipart(frames)
        if route in workers.outstanding:
            workers.outstanding[route] -= 1


def requests(front: zmq.Socket[bytes], back: zmq.Socket[bytes], outstanding: dict[bytes, int]) -> None:
    """All that have arrived, each to the worker with the least outstanding."""
    copy = work.WORKLOAD != "tensor"  # without a copy where it pays
    while outstanding:
        try:
            frames = front.recv_multipart(zmq.NOBLOCK, copy=copy)
        except zmq.Again:
            return
        route = min(outstanding, key=outstanding.__getitem__)
        outstanding[route] += 1
        back.send_multipart([route, *frames], copy=copy)


if __name__ == "__main__":
    main()
