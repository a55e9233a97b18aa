"""A lone decoder: a transformer of 0.5 billion random weights that answers one request at a time, token by token.

On a GPU one token is one CUDA graph. Between bursts of tokens the host has work of its own, as in a real server.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import gelu, linear, rms_norm

import orch

# Runs before the graph is captured: libraries make their handles and workspaces in them.
EAGER_RUNS = 3
# Bursts are timed for so long: an idle card needs some of it to raise its clocks.
TIMING_S = 0.6


@dataclass(frozen=True)
class Layer:
    """Weights of one layer, and what it remembers: keys and values, (heads, context, width) each."""

    qkv: torch.Tensor
    out: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor


class Decoder(orch.Model):
    """{"start": token} is answered by {"tokens": the next ones, "worker": pid}; equal for all replicas of a seed.

    tokens: in one answer. burst: tokens between two waits for the device.
    gap_s: the host's time after each burst, on average; 0: none; None: such that the host has host_share of the whole
    time, from bursts timed in `load`, when nothing else should run on the device. Each gap is drawn anew, from half of
    that to one and a half: equal ones would let a few replicas fall into step, for better or worse by chance.
    """

    max_batch_size = 1

    def __init__(
        self,
        layers: int = 24,
        hidden: int = 1280,
        heads: int = 20,
        vocab: int = 16_384,
        context: int = 512,
        tokens: int = 32,
        burst: int = 8,
        host_share: float = 0.4,
        gap_s: float | None = None,
        seed: int = 0,
    ) -> None:
        if hidden % heads or tokens > context:
            raise ValueError(f"hidden = {hidden} must be a multiple of heads = {heads}, tokens at most {context}")
        self.num_layers, self.hidden, self.heads, self.width = layers, hidden, heads, hidden // heads
        self.vocab, self.context, self.tokens, self.burst = vocab, context, tokens, burst
        self.host_share, self.gap_s, self.seed = host_share, gap_s, seed

    def load(self, device: str) -> None:
        """Weights made on the device, and the graph of one token."""
        self.on_gpu = device != "cpu"
        dtype = torch.bfloat16 if self.on_gpu else torch.float32
        numbers = torch.Generator(device).manual_seed(self.seed)

        def weights(rows: int, columns: int) -> torch.Tensor:
            made = torch.randn(rows, columns, generator=numbers, device=device, dtype=dtype)
            return made.mul_(columns**-0.5)

        def memory() -> torch.Tensor:
            return torch.zeros(self.heads, self.context, self.width, device=device, dtype=dtype)

        hidden = self.hidden
        self.embedding, self.places = weights(self.vocab, hidden), weights(self.context, hidden)
        self.layers = [
            Layer(
                weights(3 * hidden, hidden), weights(hidden, hidden),
                weights(4 * hidden, hidden), weights(hidden, 4 * hidden),
                memory(), memory(),
            )
            for _ in range(self.num_layers)
        ]  # fmt: skip
        self.head = weights(self.vocab, hidden)
        # Read and written by the graph, so they stay where they are.
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.said = torch.zeros(self.context, dtype=torch.int64, device=device)
        self.all_positions = torch.arange(self.context, device=device)
        self.next_token: Callable[[], None] = self._captured() if self.on_gpu else self._step
        if self.gap_s is None:
            self.gap_s = self._time_bursts() * self.host_share / (1 - self.host_share)

    def warmup(self) -> list[Any]:
        """One answer."""
        return [{"start": 1}]

    def predict(self, inputs: list[dict[str, Any]]) -> list[Any]:
        """One after another, whatever the batch."""
        return [{"tokens": self._decode(int(each["start"]) % self.vocab), "worker": os.getpid()} for each in inputs]

    def _decode(self, start: int) -> list[int]:
        self._begin(start)
        for done in range(0, self.tokens, self.burst):
            self._run(min(self.burst, self.tokens - done))
            if self.gap_s:
                time.sleep(self.gap_s * (0.5 + random.random()))
        said: list[int] = self.said[: self.tokens].tolist()
        return said

    def _begin(self, start: int) -> None:
        """What an earlier answer left in the memory lies behind the position, and is not looked at."""
        self.token.fill_(start)
        self.position.zero_()

    def _run(self, count: int) -> None:
        for _ in range(count):
            self.next_token()
        if self.on_gpu:
            torch.cuda.synchronize()

    def _step(self) -> None:
        """One token, all of it on the device: no value of it comes to the host."""
        at = self.position
        state = self.embedding.index_select(0, self.token) + self.places.index_select(0, at)
        unwritten = self.all_positions > at
        for layer in self.layers:
            query, key, value = linear(self._norm(state), layer.qkv).view(3, self.heads, 1, self.width).unbind(0)
            layer.keys.index_copy_(1, at, key)
            layer.values.index_copy_(1, at, value)
            scores = torch.bmm(query, layer.keys.transpose(1, 2)) * self.width**-0.5
            shares = scores.masked_fill(unwritten, float("-inf")).softmax(-1)
            mixed = torch.bmm(shares, layer.values).reshape(1, self.hidden)
            state = state + linear(mixed, layer.out)
            state = state + linear(gelu(linear(self._norm(state), layer.up)), layer.down)
        self.token.copy_(linear(self._norm(state), self.head).argmax(-1))
        self.said.index_copy_(0, at, self.token)
        at.add_(1)

    def _norm(self, state: torch.Tensor) -> torch.Tensor:
        return rms_norm(state, (self.hidden,))

    def _captured(self) -> Callable[[], None]:
        """The graph of one token; its inputs and outputs are the tensors that `load` made."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(EAGER_RUNS):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        torch.cuda.synchronize()
        replay: Callable[[], None] = graph.replay
        return replay

    def _time_bursts(self) -> float:
        """Seconds of one burst: the median of the later half."""
        took_s: list[float] = []
        end = time.perf_counter() + TIMING_S
        while (began := time.perf_counter()) < end or len(took_s) < 4:
            self._begin(1)
            self._run(self.burst)
            took_s.append(time.perf_counter() - began)
        return statistics.median(took_s[len(took_s) // 2 :])
