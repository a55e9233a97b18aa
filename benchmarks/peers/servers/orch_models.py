"""The workloads as models of orch."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.servers import work
from benchmarks.peers.workloads import MAX_BATCH, MAX_WAIT_S, TENSOR_SHAPE

import orch


class Echo(orch.Model):
    """What came, unchanged."""

    max_batch_size = 64

    def load(self, device: str) -> None:
        work.here()

    def predict(self, inputs: list[Any]) -> list[Any]:
        return inputs


class Mean(Echo):
    """The mean of each array."""

    max_batch_size = 8

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [float(array.mean()) for array in inputs]


class HttpMean(Mean):
    """The same for clients of the Open Inference Protocol, who need to know what a model takes."""

    inputs = (orch.Tensor("x", "FP32", TENSOR_SHAPE),)
    outputs = (orch.Tensor("mean", "FP32"),)

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [each["x"].mean() for each in inputs]


class SimulatedGpu(Echo):
    """Time goes by, and then the inputs are the outputs."""

    max_batch_size = MAX_BATCH
    max_batch_wait = MAX_WAIT_S

    def predict(self, inputs: list[Any]) -> list[Any]:
        return work.batch(inputs)


class Slow(Echo):
    """One at a time, each with 2 ms of work."""

    max_batch_size = 1

    def predict(self, inputs: list[Any]) -> list[Any]:
        return [work.one(each) for each in inputs]
