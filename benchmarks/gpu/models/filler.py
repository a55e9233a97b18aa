"""A model of a chosen size on the device, which computes next to nothing."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

import orch

GIB = 2**30
# What a process holds beside its tensors: the context and the libraries of one matrix product (765 MB on an H200).
CONTEXT_GIB = 0.72
BLOCK_GIB = 1.0
SIZE = 2048
LEAK_BYTES = 256 * 2**20


class Filler(orch.Model):
    """{"n": number} is answered by [pid, number, a sum over some weights].

    gib: device memory of the whole process, about; on the CPU memory of the weights alone.
    A request may say "pause": seconds that it takes at least; or "do": "leak", which allocates until it fails.
    """

    max_batch_size = 1

    def __init__(self, gib: float = 7.0, context_gib: float = CONTEXT_GIB) -> None:
        self.gib, self.context_gib = float(gib), float(context_gib)

    def load(self, device: str) -> None:
        """Weights in blocks, every byte of them written."""
        self.on_gpu = device != "cpu"
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        least = SIZE * SIZE * dtype.itemsize
        left = int((self.gib - (self.context_gib if self.on_gpu else 0)) * GIB)
        if left < least:
            raise ValueError(f"gib = {self.gib}: too small; the smallest is {self.context_gib + least / GIB:.2f}")
        self.device, self.leaked = device, [torch.empty(0)]
        self.blocks = []
        while left > 0:
            taken = max(least, min(left, int(BLOCK_GIB * GIB)))
            self.blocks.append(torch.full((taken // dtype.itemsize,), 1 / SIZE, dtype=dtype, device=device))
            left -= taken
        self.vector = torch.ones(SIZE, 1, dtype=dtype, device=device)

    def warmup(self) -> list[Any]:
        """One small product."""
        return [{"n": 0}]

    def predict(self, inputs: list[dict[str, Any]]) -> list[Any]:
        """The same product each time; what it sums to is SIZE."""
        return [self._answer(each) for each in inputs]

    def _answer(self, asked: dict[str, Any]) -> list[Any]:
        if asked.get("do") == "leak":
            self._leak()
        weights = self.blocks[-1][: SIZE * SIZE].view(SIZE, SIZE)
        total = float((weights @ self.vector).float().sum())
        time.sleep(float(asked.get("pause", 0)))
        return [os.getpid(), asked.get("n"), total]

    def _leak(self) -> None:
        if not self.on_gpu:
            raise ValueError("a leak on the CPU would take the whole machine's memory")
        while True:
            self.leaked.append(torch.zeros(LEAK_BYTES, dtype=torch.uint8, device=self.device))
