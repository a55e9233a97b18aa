# mypy: ignore-errors
# Its libraries live in the environment of the peers, out of the type checker's sight.
"""BentoML: two worker processes that share one listening socket.

Its own bodies are JSON, multipart or a temporary file; a descriptor of our own lets raw bytes pass. Its batcher adapts
by itself: there is no time to wait that could be set, only the latency to stay below.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks.peers.servers import work

if __name__ == "__main__":
    options = ["--host", "127.0.0.1", "--port", str(work.PORT)]
    service = "benchmarks.peers.servers.bentoml:Service"
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *options])  # noqa: S606

import bentoml
from _bentoml_sdk.io_models import IORootModel
from starlette.requests import Request
from starlette.responses import Response


class Body(IORootModel[Any]):  # type: ignore[misc]
    """A body as it is; a batch of one where the API takes batches."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:  # noqa: ARG003
        body = await request.body()
        return cls.model_construct(root=[body] if work.BATCHED else body)

    @classmethod
    async def to_http_response(cls, output: Any, serde: Any) -> Any:  # noqa: ARG003
        return Response(output[0] if work.BATCHED else output, media_type="application/octet-stream")


class BodyIn(Body):
    """The same, for what comes in."""

    __root_input__ = True


@bentoml.service(
    workers=work.WORKERS,
    traffic={"timeout": 30, "max_concurrency": 4096},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Service:
    """One of these in each worker process."""

    def __init__(self) -> None:
        work.here()

    if work.BATCHED:

        @bentoml.api(
            batchable=True,
            max_batch_size=work.MAX_BATCH,
            max_latency_ms=1000,
            route="/run",
            input_spec=BodyIn,
            output_spec=Body,
        )
        def run(self, bodies: list[Any]) -> list[Any]:
            return work.batch(bodies)

    else:

        @bentoml.api(route="/run", input_spec=BodyIn, output_spec=Body)
        async def run(self, body: Any) -> Any:
            return work.one(body)
