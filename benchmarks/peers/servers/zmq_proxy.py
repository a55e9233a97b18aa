"""A floor: libzmq's own proxy, in C, hands requests to two Python workers in turns. Nobody watches them."""

from __future__ import annotations

import subprocess
import sys

import zmq
from benchmarks.peers.servers import work
from benchmarks.peers.servers.zmq_worker import BACK

if __name__ == "__main__":
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    for socket, address in ((front, work.FRONT), (back, BACK)):
        socket.set_hwm(0)
        socket.bind(address)
    for _ in range(work.WORKERS):
        subprocess.Popen([sys.executable, "-m", "benchmarks.peers.servers.zmq_worker"])
    zmq.proxy(front, back)
