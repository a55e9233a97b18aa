"""orch itself: `orch up`, as anybody would run it; without gateways where its own SDK is the client."""

from __future__ import annotations

import os
import sys

from benchmarks.peers.servers import work

GATEWAYS = int(os.environ.get("BENCH_GATEWAYS", "0"))
MODELS = {"echo": "Echo", "tensor": "Mean", "batch": "SimulatedGpu", "kill": "Slow"}

if __name__ == "__main__":
    name = "HttpMean" if GATEWAYS and work.WORKLOAD == "tensor" else MODELS[work.WORKLOAD]
    target = f"benchmarks.peers.servers.orch_models:{name}"
    options = ["--replicas", str(work.WORKERS), "--device", "cpu", "--http"]
    options += [f"127.0.0.1:{work.PORT}", "--gateways", str(GATEWAYS)] if GATEWAYS else ["off"]
    os.execv(sys.executable, [sys.executable, "-m", "orch_cli", "up", target, *options])  # noqa: S606
