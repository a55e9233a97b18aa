"""What is sent: the payloads of the workloads, and how the HTTP peers want them wrapped."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from benchmarks.peers.workloads import ECHO_BODY, TENSOR_SHAPE
from numpy.typing import NDArray

BYTES, RAW, TRITON = "bytes", "raw", "triton"


def tensor() -> NDArray[np.float32]:
    """The input of the tensor workload, the same in every process."""
    return np.random.default_rng(0).random(TENSOR_SHAPE, dtype=np.float32)


def body_of(workload: str) -> bytes:
    """One request, as bytes."""
    return tensor().tobytes() if workload == "tensor" else ECHO_BODY


def answer_bytes_of(workload: str) -> int:
    """What a right answer of the HTTP peers has at least: a mean, or what was sent."""
    return np.dtype(np.float32).itemsize if workload == "tensor" else len(body_of(workload))


def wrapped(form: str, body: bytes) -> tuple[dict[str, str], bytes]:
    """Headers and body: the bytes as they are, or as the binary tensor "x" of the Open Inference Protocol.

    RAW: its raw binary request, which is the bytes of a model's one input, under a header that says so.
    """
    headers = {"Content-Type": "application/octet-stream"}
    if form == BYTES:
        return headers, body
    if form == RAW:
        return {**headers, "Inference-Header-Content-Length": "0"}, body
    size = {"binary_data_size": len(body)}
    x: dict[str, Any] = {"name": "x", "shape": [1, len(body)], "datatype": "UINT8", "parameters": size}
    head = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}}).encode()
    return {**headers, "Inference-Header-Content-Length": str(len(head))}, head + body


def posted(host: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
    """A whole HTTP/1.1 request."""
    fields = {"Host": host, **headers, "Content-Length": str(len(body))}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
