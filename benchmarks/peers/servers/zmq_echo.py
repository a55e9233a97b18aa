"""A floor: one Python process with one ROUTER socket that answers by itself. No balancer, no second worker."""

from __future__ import annotations

import zmq
from benchmarks.peers.servers import work, zmq_worker

if __name__ == "__main__":
    socket = zmq.Context().socket(zmq.ROUTER)  # which sees the frames that a worker behind a broker sees
    socket.set_hwm(0)
    socket.bind(work.FRONT)
    work.here()
    zmq_worker.serve(socket)
