"""orch itself: `orch up`, as anybody would run it."""

from __future__ import annotations

import os
import sys

from benchmarks.peers.servers import work

MODELS = {"echo": "Echo", "tensor": "Mean", "batch": "SimulatedGpu", "kill": "Slow"}

if __name__ == "__main__":
    target = f"benchmarks.peers.servers.orch_models:{MODELS[work.WORKLOAD]}"
    options = ["--replicas", str(work.WORKERS), "--device", "cpu"]
    os.execv(sys.executable, [sys.executable, "-m", "orch_cli", "up", target, *options])  # noqa: S606
