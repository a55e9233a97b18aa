"""Models for a GPU: one keeps it busy as a lone decoder does, and does harm when it is told to; one copies to it."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import orch

SIZE, LAYERS, TOKENS = 2048, 24, 16
WRITE_NOWHERE = """
extern "C" __global__ void nowhere(long long *p) { *p = 42; }
"""


class Decoder(orch.Model):
    """16 tokens an answer, one at a time: small matrix-vector products in a CUDA graph, then a pause of the host."""

    max_batch_size = 1

    def __init__(self, pause: float = 0.0) -> None:
        self.pause_s = pause

    def load(self, device: str) -> None:
        """Weights, and the graph of one token."""
        self.device = device
        self.leaked: list[torch.Tensor] = []
        shape = (SIZE, SIZE)
        self.weights = [torch.randn(shape, device=device, dtype=torch.bfloat16) / SIZE**0.5 for _ in range(LAYERS)]
        self.state = torch.randn(1, SIZE, device=device, dtype=torch.bfloat16)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):
            self._token()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._token()

    def _token(self) -> None:
        state = self.state
        for weight in self.weights:
            state = torch.tanh(state @ weight)
        self.state.copy_(state)

    def warmup(self) -> list[Any]:
        """One answer."""
        return [{"n": 0}]

    def predict(self, inputs: list[dict[str, Any]]) -> list[Any]:
        """Decode, or do what `do` says first."""
        (asked,) = inputs
        harm = asked.get("do")
        if harm == "illegal":
            kernel = torch.cuda._compile_kernel(WRITE_NOWHERE, "nowhere")  # noqa: SLF001  the one way to compile without nvcc
            kernel((1, 1, 1), (1, 1, 1), (0x10,))
            torch.cuda.synchronize()
        elif harm == "assert":
            torch.zeros(4, device=self.device)[torch.tensor([1000], device=self.device)].cpu()
        elif harm == "leak":
            while True:
                self.leaked.append(torch.zeros(256 * 2**20, dtype=torch.uint8, device=self.device))
        elif harm == "forget":
            self.leaked.clear()
        for _ in range(TOKENS):
            self.graph.replay()
        torch.cuda.synchronize()
        if self.pause_s:
            time.sleep(self.pause_s)
        return [[os.getpid(), asked.get("n")]]


class Copier(orch.Model):
    """An array of bytes is answered by how fast it is copied to the device from where it lies, and from elsewhere."""

    max_batch_size = 1
    COPIES = 8

    def load(self, device: str) -> None:
        """The context."""
        self.device = device
        torch.zeros(1, device=device)

    def predict(self, inputs: list[npt.NDArray[np.uint8]]) -> list[Any]:
        """pinned: the driver knows the memory. GB/s from there, and from plain memory; whether it arrived whole."""
        (given,) = inputs
        there, plain = torch.from_numpy(given), torch.from_numpy(given.copy())
        room = torch.empty_like(there, device=self.device)
        facts = {"pinned": there.is_pinned(), "plain_gb_s": self._rate(plain, room)}
        room.zero_()
        facts["gb_s"] = self._rate(there, room)
        return [{**facts, "equal": bool((room.cpu() == plain).all())}]

    def _rate(self, source: torch.Tensor, room: torch.Tensor) -> float:
        """GB/s, after one copy that does not count."""
        room.copy_(source)
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(self.COPIES):
            room.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        return self.COPIES * source.nbytes / (time.perf_counter() - began) / 1e9
