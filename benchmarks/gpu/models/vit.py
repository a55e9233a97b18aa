"""ViT-B/16 with random weights (86 million), run eagerly: an image model that batches.

`ViT` answers with the best classes, `Scores` with all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import orch

SIZE, PATCH = 224, 16
NUM_PATCHES = (SIZE // PATCH) ** 2
TOP = 5


class Block(nn.Module):
    """One layer of the encoder."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """(batch, places, hidden) to the same."""
        batch, places, hidden = state.shape
        qkv = self.qkv(self.before_attention(state)).view(batch, places, 3, self.heads, hidden // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, places, hidden)
        state = state + self.out(mixed)
        after: torch.Tensor = state + self.mlp(self.before_mlp(state))
        return after


class Network(nn.Module):
    """Patches in, a score for each class out."""

    def __init__(self, layers: int, hidden: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * PATCH * PATCH, hidden)
        self.first = nn.Parameter(torch.randn(1, 1, hidden) * 0.02)
        self.places = nn.Parameter(torch.randn(1, NUM_PATCHES + 1, hidden) * 0.02)
        self.blocks = nn.Sequential(*(Block(hidden, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 224, 224) to (batch, classes)."""
        batch, side = images.shape[0], SIZE // PATCH
        cut = images.view(batch, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5)
        state = self.patches(cut.reshape(batch, NUM_PATCHES, -1))
        state = torch.cat([self.first.expand(batch, -1, -1), state], dim=1) + self.places
        scores: torch.Tensor = self.head(self.norm(self.blocks(state)[:, 0]))
        return scores


class ViT(orch.Model):
    """An image, uint8 (3, 224, 224), is answered by the ids and the probabilities of the five best classes."""

    max_batch_size = 8

    def __init__(
        self, layers: int = 12, hidden: int = 768, heads: int = 12, classes: int = 1000, seed: int = 0
    ) -> None:
        self.sizes, self.seed = (layers, hidden, heads, classes), seed

    def load(self, device: str) -> None:
        """Weights made on the device."""
        self.device = torch.device(device)
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        torch.manual_seed(self.seed)
        with self.device:
            network = Network(*self.sizes)
        self.network = network.to(self.dtype).eval()

    def warmup(self) -> list[Any]:
        """Two images of noise."""
        noise = np.random.default_rng(0)
        return [noise.integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8) for _ in range(2)]

    def scores(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (batch, 3, 224, 224) to float32 (batch, classes), both on the device."""
        found: torch.Tensor = self.network(images.to(self.dtype).div_(127.5).sub_(1))
        return found.float()

    def predict(self, inputs: list[npt.NDArray[np.uint8]]) -> list[Any]:
        """One pass for the whole batch."""
        with torch.inference_mode():
            shares = self.scores(torch.from_numpy(np.stack(inputs)).to(self.device)).softmax(-1)
            scores, ids = shares.topk(min(TOP, shares.shape[1]))
        return [{"ids": each, "scores": score} for each, score in zip(ids.tolist(), scores.tolist(), strict=True)]


class Scores(ViT):
    """An image, uint8 (3, 224, 224), is answered by its scores for all classes, float32 (classes,).

    Each image is copied to the device from where it lies. orch's shared memory is registered with CUDA, so that this
    runs at the speed of the bus, and costs the host one call an image.
    staged: collect each batch in pinned memory of our own first, and copy that.
    """

    max_batch_size = 128

    def __init__(self, *, staged: bool = False, **sizes: int) -> None:
        super().__init__(**sizes)
        self.staged = staged

    def load(self, device: str) -> None:
        """The room for a batch grows with the first that needs it, which is at warm-up."""
        super().load(device)
        self.rows: list[torch.Tensor] = []

    def predict(self, inputs: list[npt.NDArray[np.uint8]]) -> list[Any]:
        """The answers are rows of memory that the next batch is written to."""
        count = len(inputs)
        with torch.inference_mode():
            if count > len(self.rows):
                self._make_room(count)
            if self.staged:
                np.stack(inputs, out=self.staging.numpy()[:count])
                self.images[:count].copy_(self.staging[:count], non_blocking=True)
            else:
                for row, image in zip(self.rows, inputs, strict=False):
                    row.copy_(torch.from_numpy(image), non_blocking=True)
            self.answers[:count].copy_(self.scores(self.images[:count]), non_blocking=True)
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return list(self.answers.numpy()[:count])

    def _make_room(self, count: int) -> None:
        pinned = self.device.type == "cuda"
        shape, classes = (count, 3, SIZE, SIZE), self.sizes[-1]
        self.images = torch.empty(shape, dtype=torch.uint8, device=self.device)
        self.rows = list(self.images.unbind(0))
        self.answers = torch.empty(count, classes, pin_memory=pinned)
        if self.staged:
            self.staging = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
