# mypy: ignore-errors
# Its libraries live in the environment of the peers, out of the type checker's sight.
"""Ray Serve: its HTTP proxy and two replicas, with its flags for throughput, without dashboard and access log."""

from __future__ import annotations

import os
import signal

from benchmarks.peers.servers import work
from benchmarks.peers.workloads import MAX_WAIT_S

# Its documented choices for throughput. A batch sleeps, so there the user's code keeps a thread of its own.
os.environ["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] = "1" if work.BATCHED else "0"
os.environ["RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"] = "0"
os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import asyncio

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=work.WORKERS,
    max_ongoing_requests=512,
    ray_actor_options={"num_cpus": 0.1},
    logging_config={"enable_access_log": False, "log_level": "ERROR"},
)
class Model:
    """One replica."""

    def __init__(self) -> None:
        work.here()

    @serve.batch(max_batch_size=work.MAX_BATCH, batch_wait_timeout_s=MAX_WAIT_S)
    async def batched(self, bodies: list[bytes]) -> list[bytes]:
        return await asyncio.to_thread(work.batch, bodies)

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        output = await self.batched(body) if work.BATCHED else work.one(body)
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    handed_on = {name: value for name, value in os.environ.items() if name.startswith(("BENCH_", "RAY_SERVE_"))}
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="error",
        object_store_memory=200 * 1024 * 1024,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(work.FOLDER / "ray"),
        runtime_env={"env_vars": {**handed_on, "PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": work.PORT, "access_log": False})
    serve.run(Model.bind(), route_prefix="/", name="bench")
    signal.pause()
