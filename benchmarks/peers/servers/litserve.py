# mypy: ignore-errors
# Its libraries live in the environment of the peers, out of the type checker's sight.
"""LitServe: two uvicorn processes in front, two workers, answers over its ZeroMQ queue.

Its documented bodies are JSON and multipart; a FastAPI dependency lets raw bytes pass. LitServe
hands annotations on as they are, so they must not be strings here.
"""

from typing import Annotated, Any

import litserve
from benchmarks.peers.servers import work
from benchmarks.peers.workloads import MAX_WAIT_S
from fastapi import Depends, Request
from fastapi.responses import Response


async def body_of(request: Request) -> bytes:
    """The body as it came."""
    return await request.body()


class Model(litserve.LitAPI):
    """One worker process."""

    def setup(self, device: Any) -> None:
        work.here()

    def decode_request(self, request: Annotated[bytes, Depends(body_of)]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, inputs: Any) -> Any:
        return work.batch(inputs) if work.BATCHED else work.one(inputs)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        return output

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    options = {"max_batch_size": work.MAX_BATCH, "batch_timeout": MAX_WAIT_S} if work.BATCHED else {}
    server = litserve.LitServer(
        Model(**options),
        accelerator="cpu",
        devices=1,
        workers_per_device=work.WORKERS,
        fast_queue=True,
        restart_workers=True,
        timeout=30,
    )
    server.run(
        host="127.0.0.1",
        port=work.PORT,
        num_api_servers=2,
        generate_client_file=False,
        log_level="error",
        access_log=False,
    )
