"""The Python worker of the floors with a broker: frames [client, request id, body], `BACK` is where the broker is."""

from __future__ import annotations

import os
import time
from typing import Any

import zmq
from benchmarks.peers.servers import work
from benchmarks.peers.workloads import MAX_WAIT_S

BACK = f"ipc://{work.FOLDER}/back"


def main() -> None:
    """Say READY with the process id, then serve until killed."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.set_hwm(0)
    socket.connect(BACK)
    work.here()
    if os.environ.get("BENCH_READY"):
        socket.send(str(os.getpid()).encode())
    serve_batches(socket) if work.BATCHED else serve(socket)


def serve(socket: zmq.Socket[bytes]) -> None:
    """One by one. Large bodies are read where libzmq has them."""
    receive, send, one = socket.recv, socket.send_multipart, work.one
    copy = work.WORKLOAD != "tensor"
    while True:
        client, request = receive(), receive()
        body: Any = receive(copy=copy)
        send([client, request, one(body if copy else body.buffer)])


def serve_batches(socket: zmq.Socket[bytes]) -> None:
    """Up to MAX_BATCH, and no longer than MAX_WAIT_S after the first."""
    while True:
        batch = [socket.recv_multipart()]
        until = time.monotonic() + MAX_WAIT_S
        while len(batch) < work.MAX_BATCH:
            left_ms = max(0, round((until - time.monotonic()) * 1000))
            if not socket.poll(left_ms):
                break
            batch.append(socket.recv_multipart())
        for (client, request, _), output in zip(batch, work.batch([body for _, _, body in batch]), strict=True):
            socket.send_multipart([client, request, output])


if __name__ == "__main__":
    main()
