# mypy: ignore-errors
# Its libraries live in the environment of the peers, out of the type checker's sight.
"""MOSEC: a Rust front, Python workers behind Unix sockets. Bytes pass as they are."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.peers.servers import work
from benchmarks.peers.workloads import MAX_WAIT_S
from mosec import Server, Worker


class Model(Worker):
    """One worker process."""

    def __init__(self) -> None:
        super().__init__()
        work.here()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Any) -> Any:
        return work.batch(data) if work.BATCHED else work.one(data)


if __name__ == "__main__":
    options = ["--address", "127.0.0.1", "--port", str(work.PORT), "--capacity", "4096", "--timeout", "30000"]
    sys.argv[1:] = [*options, "--log-level", "error"]
    # With 0, MOSEC would wait for its default of 10 ms.
    wait_s = MAX_WAIT_S if work.WORKLOAD == "batch" else 0.001
    server = Server()
    server.append_worker(
        Model,
        num=work.WORKERS,
        max_batch_size=work.MAX_BATCH if work.BATCHED else 1,
        max_wait_time=round(wait_s * 1000),
    )
    server.run()
