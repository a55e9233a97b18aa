"""A model that declares a tensor of each datatype in each form of shape."""

from __future__ import annotations

from typing import Any

from orch import Model, Tensor
from orch.model import ANY, DATATYPES

SHAPES = {"one": (), "row": (3,), "grid": (2, 3), "any": (ANY,), "pairs": (ANY, 2)}


class Mirror(Model):
    """Answers each tensor with its elements in the opposite order, and says what it has seen."""

    max_batch_size = 4  # so that a batch of eight is none of ours
    inputs = tuple(
        Tensor(f"{datatype}_{kind}", datatype, shape) for datatype in DATATYPES for kind, shape in SHAPES.items()
    )
    outputs = (*(each._replace(name=f"{each.name}_back") for each in inputs), Tensor("seen", "BYTES", (len(inputs),)))

    def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {f"{name}_back": backwards(value) for name, value in row.items()}
            | {"seen": [f"{name} {described(value)}" for name, value in sorted(row.items())]}
            for row in inputs
        ]


def backwards(value: Any) -> Any:
    """The last element first, in the same shape."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        return [backwards(each) for each in reversed(value)]
    flat = value.reshape(-1)
    flat = flat.flip(0) if hasattr(flat, "flip") else flat[::-1]  # torch's, which has no step of -1, and numpy's
    return flat.reshape(value.shape)


def described(value: Any) -> str:
    """Type, and the elements as Python writes them."""
    if isinstance(value, (bytes, list)):
        return f"bytes {value!r}"
    return f"{type(value).__module__} {value.dtype} {value.tolist()!r}"


class Pair(Model):
    """Two small tensors, which come back."""

    max_batch_size = 8
    inputs = outputs = (Tensor("number", "FP32", (ANY,)), Tensor("text", "BYTES"))

    def predict(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return inputs
