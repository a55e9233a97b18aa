# mypy: ignore-errors
# Its libraries live in the environment of the peers, out of the type checker's sight.
"""PyTriton: NVIDIA's Triton server, whose two instances of the model are threads of one Python process."""

from __future__ import annotations

from typing import Any

import numpy as np
from benchmarks.peers.servers import work
from benchmarks.peers.workloads import MAX_WAIT_S
from pytriton.decorators import batch as stacked
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@stacked
def infer(x: Any) -> dict[str, Any]:
    """x: (rows, bytes) uint8; y alike."""
    if work.BATCHED:
        return {"y": work.batch(x)}
    return {"y": np.stack([np.frombuffer(work.one(row.data), np.uint8) for row in x])}


if __name__ == "__main__":
    work.here()
    config = TritonConfig(
        http_port=work.PORT, http_address="127.0.0.1", allow_grpc=False, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="m",
            infer_func=[infer] * work.WORKERS,
            inputs=[Tensor(name="x", dtype=np.uint8, shape=(-1,))],
            outputs=[Tensor(name="y", dtype=np.uint8, shape=(-1,))],
            config=ModelConfig(
                batching=True,
                max_batch_size=work.MAX_BATCH if work.BATCHED else 1,
                batcher=DynamicBatcher(max_queue_delay_microseconds=round(MAX_WAIT_S * 1e6) if work.BATCHED else 0),
            ),
        )
        triton.serve()
