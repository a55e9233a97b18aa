"""The Open Inference Protocol v2 over HTTP: a body becomes an `Inference`, the rows' results become a body.

A body is JSON, or JSON with the tensors' binary form behind it; the header Inference-Header-Content-Length says where
the JSON ends. 0 there means no JSON at all: the body is the one input of one row, and the answer is binary.
Source: the protocol's inference_rest.md, and Triton's binary data, classification and schedule policy extensions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from orch.model import ANY, Tensor
from orch_gateway import plain
from orch_gateway.answers import join
from orch_gateway.faults import BadRequest
from orch_gateway.inference import (
    Given,
    Inference,
    ModelSpec,
    Wanted,
    check_input,
    payloads_of,
    scheduling,
    unfit,
    unsigned,
    wanted,
)
from orch_gateway.tensors import (
    BINARY_ONLY,
    DTYPES,
    Array,
    Elements,
    Shape,
    Unfit,
    from_binary,
    from_json,
    to_binary,
    to_json,
)

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_SUBCLASS
SOURCES = ("data", "binary_data_size", "shared_memory_region")


class NotJson(list[Any]):
    """Numbers that JSON cannot say."""


def parse(body: Any, header_length: int | None, spec: ModelSpec, version: str = "") -> Inference:
    """The inference that a request's body asks for. The payloads may be views of the body, which must not change.

    body: contiguous bytes, already decompressed. header_length: of Inference-Header-Content-Length; None without it.

    Raises:
        BadRequest: the body breaks the protocol, or is not what the model declares.
        NotFound: the model has no such version.
    """
    view = memoryview(body).cast("B")
    version = spec.version(version)
    if header_length == 0:
        return _raw(view, spec, version)
    length = len(view) if header_length is None else header_length
    if not 0 <= length <= len(view):
        raise BadRequest(f"inference header size should be in range (0, {len(view)}), got: {length}")
    request = document(view[:length])
    parameters = _parameters(request)
    priority, timeout_s = scheduling(parameters, spec.name)
    outputs = _outputs(request, _flag(parameters, "binary_data_output", default=False), spec)
    return Inference(
        spec.name,
        version,
        payloads_of(spec, _inputs(request, view[length:], spec)),
        outputs,
        _text(request, "id") if "id" in request else "",
        priority,
        timeout_s,
        parameters,
    )


def respond(inference: Inference, spec: ModelSpec, results: Sequence[Any]) -> tuple[list[Any], int | None]:
    """The answer's body in parts, and the length of its JSON if tensors follow it (Inference-Header-Content-Length).

    results: one for each of the inference's payloads, in order. The parts are bytes, or views of the results' memory.

    Raises:
        BadResult: the model returned what it does not declare.
        BadRequest: an output cannot be said in JSON, and was asked for in it.
    """
    described: list[dict[str, Any]] = []
    parts: list[Any] = [b""]
    for output in join(inference, spec, results):
        shown: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        if output.binary:
            pieces = [to_binary(row) for row in output.rows]
            shown["parameters"] = {"binary_data_size": sum(piece.nbytes for piece in pieces)}
            parts += pieces
        else:
            shown["data"] = _data(output.rows, output.datatype, output.name)
        described.append(shown)
    answer: dict[str, Any] = {"model_name": spec.name, "model_version": inference.version, "outputs": described}
    if inference.id:
        answer["id"] = inference.id
    parts[0] = _written(answer)
    return parts, len(parts[0]) if any(wish.binary for wish in inference.outputs) else None


def error(message: str) -> bytes:
    """The body of every answer that is not a success."""
    return json.dumps({"error": message}).encode()


def document(data: memoryview) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        BadRequest: it is none.
    """
    try:
        request = plain.loads(data)
    except ValueError as err:
        raise BadRequest(f"failed to parse the request JSON buffer: {err}") from err
    if not isinstance(request, dict):
        raise BadRequest("failed to parse the request JSON buffer: it must be an object")
    return request


# --- a request ---------------------------------------------------------------------------------------------------


def _raw(view: memoryview, spec: ModelSpec, version: str) -> Inference:
    if len(spec.takes) != 1:
        raise BadRequest(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(spec.takes)} inputs in "
            f"'{spec.name}' model configuration"
        )
    tensor = spec.takes[0]
    try:
        shape = (1, *_raw_shape(tensor, view.nbytes))
        if 0 in shape:
            check_input(spec, tensor.name, tensor.datatype, shape, ())
        elements: Elements = [bytes(view)] if tensor.datatype == "BYTES" else from_binary(view, tensor.datatype, shape)
    except Unfit as err:
        raise unfit(err, tensor.name, spec.name) from err
    payloads = payloads_of(spec, [Given(tensor.name, tensor.datatype, shape, elements)])
    return Inference(spec.name, version, payloads, spec.all_binary)


def _raw_shape(tensor: Tensor, num_bytes: int) -> Shape:
    """The one shape of a row that so many bytes can have."""
    if tensor.datatype == "BYTES":
        if any(size not in (1, ANY) for size in tensor.shape):
            raise Unfit("For BYTE datatype raw input, the model must have input shape [1],")
        return (1,) * len(tensor.shape)
    if tensor.shape.count(ANY) > 1:
        raise Unfit(
            "The shape of the raw input can not be deduced because there are more than one variable-sized dimension"
        )
    if ANY not in tensor.shape:
        return tensor.shape
    known = math.prod(size for size in tensor.shape if size != ANY) * DTYPES[tensor.datatype].itemsize
    if num_bytes % known:
        raise Unfit(f"unexpected size, got {num_bytes} bytes, which is no multiple of {known},")
    return tuple(num_bytes // known if size == ANY else size for size in tensor.shape)


def _inputs(request: Mapping[str, Any], tail: memoryview, spec: ModelSpec) -> list[Given]:
    found: list[Given] = []
    for each in _list(request, "inputs"):
        parameters = _parameters(each)
        source = _source(each, parameters)
        name, datatype, shape = _text(each, "name"), _text(each, "datatype"), _list(each, "shape", items=int)
        check_input(spec, name, datatype, shape, found)
        try:
            elements: Elements
            if source == "data":
                elements = from_json(each["data"], datatype, tuple(shape))
            else:
                size = unsigned(parameters, "binary_data_size")
                if size > tail.nbytes:
                    raise Unfit(f"unexpected size, expecting {size - tail.nbytes} additional bytes")
                elements, tail = from_binary(tail[:size], datatype, tuple(shape)), tail[size:]
        except Unfit as err:
            raise unfit(err, name, spec.name) from err
        found.append(Given(name, datatype, tuple(shape), elements))
    if tail.nbytes:
        raise BadRequest(f"unexpected additional input data for model '{spec.name}': {tail.nbytes} bytes")
    return found


def _source(given: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Where an input's elements are: in exactly one place."""
    found = [name for name in SOURCES if name in (given if name == "data" else parameters)]
    if len(found) != 1:
        raise BadRequest(
            "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters'. "
            f"But {f'set {found}' if found else 'no field is set'}"
        )
    if found[0] == "shared_memory_region":
        raise BadRequest("shared memory regions are not supported: send the input with the request")
    return found[0]


def _outputs(request: Mapping[str, Any], binary: bool, spec: ModelSpec) -> tuple[Wanted, ...]:
    asked = []
    for each in _list(request, "outputs") if "outputs" in request else ():
        parameters = _parameters(each)
        if "shared_memory_region" in parameters:
            raise BadRequest("shared memory regions are not supported: take the output with the answer")
        classes = unsigned(parameters, "classification")
        asked.append((_text(each, "name"), _flag(parameters, "binary_data", default=binary), classes))
    return wanted(spec, asked, binary=binary)


def _parameters(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = holder.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise BadRequest("Unable to parse 'parameters': it must be an object")
    return parameters or {}


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"Unable to parse '{name}': it must be true or false")
    return value


def _text(holder: Mapping[str, Any], name: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str):
        raise BadRequest(f"Unable to parse '{name}': it must be a text")
    return value


def _list(holder: Mapping[str, Any], name: str, items: type = dict) -> list[Any]:
    value = holder.get(name)
    if not isinstance(value, list) or any(type(item) is not items for item in value):
        raise BadRequest(
            f"Unable to parse '{name}': it must be an array of {'objects' if items is dict else 'integers'}"
        )
    return value


# --- an answer ---------------------------------------------------------------------------------------------------


def _data(parts: Sequence[Elements], datatype: str, name: str) -> Any:
    if datatype not in ("BYTES", *BINARY_ONLY):
        array: Array = np.concatenate(parts) if len(parts) > 1 else np.asarray(parts[0])
        # Triton writes what is not finite, and tritonclient reads it. It is no JSON, and orjson would say null.
        return array if array.dtype.kind != "f" or np.isfinite(array).all() else NotJson(array.tolist())
    try:
        return [element for row in parts for element in to_json(row, datatype)]
    except Unfit as err:
        raise BadRequest(f"{err} for output '{name}'") from err


def _written(answer: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(answer, option=OPTIONS)
    except orjson.JSONEncodeError:  # NotJson, or an id with half of a surrogate pair
        return json.dumps(answer, default=np.ndarray.tolist, separators=(",", ":")).encode()
