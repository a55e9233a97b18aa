"""A gRPC inference request becomes an `Inference`, the rows' results become a response. Answers are always raw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orch_gateway.answers import join
from orch_gateway.faults import BadRequest
from orch_gateway.grpc_messages import ModelInferResponse
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
from orch_gateway.tensors import Elements, Unfit, from_binary, from_values, to_binary

# Which field of InferTensorContents holds the elements of a datatype; FP16 and BF16 travel raw only.
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
FINAL = "triton_final_response"  # the parameter that says whether more responses to a request will follow


def read(request: Any, spec: ModelSpec) -> Inference:
    """The inference that a ModelInferRequest asks for.

    Raises:
        BadRequest: it breaks the protocol, or is not what the model declares.
        NotFound: the model has no such version.
    """
    version = spec.version(request.model_version)
    parameters = _parameters(request.parameters)
    priority, timeout_s = scheduling(parameters, spec.name)
    outputs = _outputs(request, spec)
    payloads = payloads_of(spec, _inputs(request, spec))
    return Inference(spec.name, version, payloads, outputs, request.id, priority, timeout_s, parameters)


def write(inference: Inference, spec: ModelSpec, results: Sequence[Any], *, final: bool | None = None) -> Any:
    """The ModelInferResponse. final: in a stream, whether it is the last one to its request.

    Raises:
        BadResult: the model returned what it does not declare.
    """
    response = blank(inference, final=final)
    for output in join(inference, spec, results):
        response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        response.raw_output_contents.append(b"".join(to_binary(row) for row in output.rows))
    return response


def blank(inference: Inference, *, final: bool | None = None) -> Any:
    """A ModelInferResponse without outputs, as the last one of a stream whose parts have all been sent."""
    response = ModelInferResponse(model_name=inference.model, model_version=inference.version, id=inference.id)
    if final is not None:
        response.parameters[FINAL].bool_param = final
    return response


def _inputs(request: Any, spec: ModelSpec) -> list[Given]:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise BadRequest(
            f"expected number of raw_input_contents to match the inputs for model '{spec.name}', "
            f"got {len(raw)} and {len(request.inputs)}"
        )
    found: list[Given] = []
    for i, each in enumerate(request.inputs):
        if "shared_memory_region" in each.parameters:
            raise BadRequest("shared memory regions are not supported: send the input with the request")
        shape = tuple(each.shape)
        check_input(spec, each.name, each.datatype, shape, found)
        try:
            elements = from_binary(memoryview(raw[i]), each.datatype, shape) if raw else _contents(each, shape)
        except Unfit as err:
            raise unfit(err, each.name, spec.name) from err
        found.append(Given(each.name, each.datatype, shape, elements))
    return found


def _contents(given: Any, shape: tuple[int, ...]) -> Elements:
    field = CONTENTS.get(given.datatype)
    if field is None:
        raise Unfit(f"{given.datatype} must be sent in raw_input_contents")
    other = [name.name for name, _ in given.contents.ListFields() if name.name != field]
    if other:
        raise Unfit(f"{given.datatype} belongs in {field}, not in {other[0]}")
    return from_values(getattr(given.contents, field), given.datatype, shape)


def _outputs(request: Any, spec: ModelSpec) -> tuple[Wanted, ...]:
    asked = []
    for each in request.outputs:
        parameters = _parameters(each.parameters)
        if "shared_memory_region" in parameters:
            raise BadRequest("shared memory regions are not supported: take the output with the answer")
        asked.append((each.name, True, unsigned(parameters, "classification")))
    return wanted(spec, asked, binary=True)


def _parameters(given: Any) -> Mapping[str, Any]:
    """Parameters as plain values; one that holds nothing is left out."""
    kinds = ((name, value.WhichOneof("parameter_choice"), value) for name, value in given.items())
    return {name: getattr(value, kind) for name, kind, value in kinds if kind}
