"""Plain JSON for people: a body as inputs of a model, and its outputs as a body. Pure.

{"instances": [...]} is so many inputs, and answered by {"predictions": [...]} (the names are TensorFlow Serving's); any
other JSON value is one input, and answered by its output alone. A body of application/octet-stream is one input of
bytes, and an output of bytes is answered as such a body. Where the model declares tensors, an input is {name: value},
or the value alone of a single one, and its lists become arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from orch.model import Tensor
from orch.payload import BFLOAT16, RawTensor
from orch_gateway import plain
from orch_gateway.faults import BadRequest, BadResult
from orch_gateway.inference import MAX_ROWS
from orch_gateway.messages import BINARY, JSON, Response
from orch_gateway.tensors import DTYPES, fits, shape_of

INSTANCES, PREDICTIONS = "instances", "predictions"
# By the kind of a declared dtype, the kinds of numbers in JSON that it takes.
FROM_KINDS: Final = {"b": "b", "i": "iu", "u": "iu", "f": "iuf"}
BFLOAT16_NAN: Final = 0x7FC0


@dataclass(frozen=True, slots=True)
class Asked:
    """Inputs of one HTTP request. many: asked as a list, and to be answered as one."""

    rows: list[Any]
    many: bool = False


def asked(body: bytes, media_type: str, inputs: Sequence[Tensor] = ()) -> Asked:
    """The inputs that a body holds.

    Raises:
        BadRequest: it is no JSON, or not what the model declares.
    """
    if media_type.encode("latin-1") == BINARY and not inputs:
        return Asked([body])
    try:
        value = plain.loads(body)
    except ValueError as err:
        hint = "; a text needs quotation marks, as in '\"hello\"'" if body.strip()[:1].isalpha() else ""
        raise BadRequest(f"the body is no JSON: {err}{hint}") from None
    many = isinstance(value, dict) and value.keys() == {INSTANCES}
    rows = value[INSTANCES] if many else [value]
    if not isinstance(rows, list):
        raise BadRequest(f"{INSTANCES!r} must be a list of inputs")
    if len(rows) > MAX_ROWS:
        raise BadRequest(f"{len(rows)} inputs in one request; at most {MAX_ROWS}")
    return Asked([_row(row, inputs) for row in rows] if inputs else rows, many)


def answer(outputs: list[Any], *, many: bool) -> Response:
    """The outputs of what was asked.

    Raises:
        BadResult: JSON has no word for one.
    """
    if not many and isinstance(outputs[0], bytes):
        return Response(200, (outputs[0],), BINARY)
    return Response(200, (written({PREDICTIONS: outputs} if many else outputs[0]),), JSON)


def written(value: Any) -> bytes:
    """An output as JSON; numbers that are not finite are null.

    Raises:
        BadResult: JSON has no word for it.
    """
    try:
        return plain.dumps(value)
    except ValueError as err:
        raise BadResult(f"the model's output cannot be said in JSON: {err}") from None


# --- declared inputs ---------------------------------------------------------------------------------------------


def _row(value: Any, inputs: Sequence[Tensor]) -> dict[str, Any]:
    names = [tensor.name for tensor in inputs]
    if not isinstance(value, dict) or (len(inputs) == 1 and names[0] not in value):
        if len(inputs) != 1:
            raise BadRequest(f"an input of this model is an object with {', '.join(names)}")
        value = {names[0]: value}
    if value.keys() != set(names):
        raise BadRequest(f"an input of this model has exactly {', '.join(names)}, not {', '.join(value) or 'nothing'}")
    return {tensor.name: _array(value[tensor.name], tensor) for tensor in inputs}


def _array(value: Any, tensor: Tensor) -> Any:
    if tensor.datatype == "BYTES":
        found, shape = _as_bytes(value), shape_of(value, tensor.shape)
    else:
        found = _numbers(value, tensor)
        shape = found.shape if found.size else shape_of(value, tensor.shape)
        found = found.reshape(shape)
    if not fits(shape, tensor.shape):
        raise BadRequest(f"{tensor.name} has the shape {list(shape)}; the model takes {list(tensor.shape)}")
    return _narrowed(found) if tensor.datatype == "BF16" else found


def _numbers(value: Any, tensor: Tensor) -> np.ndarray[Any, Any]:
    dtype = np.dtype(np.float32) if tensor.datatype == "BF16" else DTYPES[tensor.datatype]
    try:
        found = np.asarray(value)
        if found.size and found.dtype.kind not in FROM_KINDS[dtype.kind]:
            raise TypeError
        return np.asarray(value, dtype)
    except (ValueError, TypeError, OverflowError):
        raise BadRequest(f"{tensor.name} cannot be an array of {tensor.datatype}") from None


def _narrowed(array: np.ndarray[Any, Any]) -> RawTensor:
    """float32 as bfloat16, its upper half: rounded to the nearest, ties to even."""
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return RawTensor(BFLOAT16, array.shape, np.where(np.isnan(array), BFLOAT16_NAN, rounded).astype("<u2").data)


def _as_bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_bytes(each) for each in value]
    if not isinstance(value, str):
        raise BadRequest(f"an element of a BYTES tensor must be a text, not {type(value).__name__}")
    return value.encode()
