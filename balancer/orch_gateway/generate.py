"""Triton's generate extension: one row as a flat JSON object, and its answer, or the parts of a stream, as another.

The names of the object's members are those of the model's inputs and outputs; other members are passed over. A model
that declares no inputs gets the member "input", or the whole object if there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orch.model import ANY, Tensor
from orch_gateway import plain
from orch_gateway.answers import join
from orch_gateway.faults import BadRequest
from orch_gateway.inference import (
    JSON_INPUT,
    Given,
    Inference,
    ModelSpec,
    check_input,
    payloads_of,
    scheduling,
    unfit,
    wanted,
)
from orch_gateway.tensors import Unfit, from_json, shape_of, to_json
from orch_gateway.v2 import document


def parse(body: Any, spec: ModelSpec, version: str = "") -> Inference:
    """The inference of one row that a body asks for.

    Raises:
        BadRequest: it is no JSON object, or not what the model declares.
        NotFound: the model has no such version.
    """
    request = document(memoryview(body).cast("B"))
    version, name = spec.version(version), request.get("id", "")
    if not isinstance(name, str):
        raise BadRequest("Unable to parse 'id': it must be a text")
    parameters = request.get("parameters", {})
    if not isinstance(parameters, dict):
        raise BadRequest("Unable to parse 'parameters': it must be an object")
    outputs = wanted(spec, (), binary=False)
    priority, timeout_s = scheduling(parameters, spec.name)
    payloads: list[Any] = [request.get(JSON_INPUT.name, request)]
    if spec.inputs:
        payloads = payloads_of(spec, _given(request, spec))
    return Inference(spec.name, version, payloads, outputs, name, priority, timeout_s, parameters)


def answer(inference: Inference, spec: ModelSpec, result: Any) -> dict[str, Any]:
    """The JSON object for a result, or for one part of a stream. A single element stands for itself, more are an array.

    Raises:
        BadResult: the model returned what it does not declare.
        BadRequest: an output cannot be said in JSON.
    """
    found: dict[str, Any] = {"model_name": spec.name, "model_version": inference.version}
    if inference.id:
        found["id"] = inference.id
    for output in join(inference, spec, [result]):
        try:
            data = to_json(output.rows[0], output.datatype)
        except Unfit as err:
            raise BadRequest(f"{err} for output '{output.name}'") from err
        if not spec.outputs:
            found[output.name] = plain.loads(data[0].encode())
        else:
            found[output.name] = data[0] if len(data) == 1 else data
    return found


def event(message: Mapping[str, Any]) -> bytes:
    """A server-sent event that holds a JSON object: one line, and an empty one."""
    return b"data: " + plain.dumps(message) + b"\n\n"


def _given(request: Mapping[str, Any], spec: ModelSpec) -> list[Given]:
    found: list[Given] = []
    for tensor in spec.inputs:
        if tensor.name not in request:
            continue
        value = request[tensor.name]
        shape = (1, *_shape(value, tensor))
        check_input(spec, tensor.name, tensor.datatype, shape, found)
        try:
            elements = from_json(value if isinstance(value, list) else [value], tensor.datatype, shape)
        except Unfit as err:
            raise unfit(err, tensor.name, spec.name) from err
        found.append(Given(tensor.name, tensor.datatype, shape, elements))
    return found


def _shape(value: Any, tensor: Tensor) -> tuple[int, ...]:
    """Of a row: a single value fills a tensor of one element, whatever its dimensions."""
    if not isinstance(value, list) and all(size in (1, ANY) for size in tensor.shape):
        return (1,) * len(tensor.shape)
    return shape_of(value, tensor.shape)
