"""The gRPC messages: read from inference.proto, and the same as those of tritonclient where both have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orch import Tensor
from orch_gateway.faults import BadRequest, Fault
from orch_gateway.inference import ModelSpec
from tests.unit import gateway_reference as reference

pytest.importorskip("grpc")
tritonclient = pytest.importorskip("tritonclient.grpc")

from google.protobuf.json_format import ParseDict  # noqa: E402  only where there is gRPC

from orch_gateway import facts, grpc_codec, grpc_messages, protofile  # noqa: E402

SPEC = ModelSpec("m", ("1",), (Tensor("x", "FP32", (2,)), Tensor("n", "INT8", ())), (Tensor("y", "FP32", (-1,)),))


def shown(message: Any) -> dict[str, Any]:
    """What matters of a message type on the wire."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.containing_oneof and field.containing_oneof.name,
            field.message_type and field.message_type.full_name,
        )
        for field in message.fields
    }


def all_of(messages: Any) -> list[Any]:
    """Message types and those inside of them."""
    return [each for message in messages for each in (message, *all_of(message.nested_types))]


def test_fields_have_the_names_numbers_and_types_of_the_public_protocol() -> None:
    """Compared with the messages that tritonclient brings; ours may have fewer fields, never others."""
    theirs = tritonclient.service_pb2.DESCRIPTOR.pool
    messages = all_of(grpc_messages.SERVICE.file.message_types_by_name.values())
    assert len(messages) > 40
    for message in messages:
        expected = shown(theirs.FindMessageTypeByName(message.full_name))
        for name, form in shown(message).items():
            assert form == expected[name], f"{message.full_name}.{name}"
    for name, enum in grpc_messages.SERVICE.file.enum_types_by_name.items():
        known = theirs.FindEnumTypeByName(f"inference.{name}").values_by_name
        assert {value.name: value.number for value in enum.values} == {key: known[key].number for key in known}


def test_methods_have_the_forms_of_the_public_protocol() -> None:
    """Names, messages, and which sides stream."""
    theirs = tritonclient.service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in grpc_messages.SERVICE.methods:
        other = theirs[method.name]
        assert method.input_type.full_name == other.input_type.full_name
        assert method.output_type.full_name == other.output_type.full_name
        assert (method.client_streaming, method.server_streaming) == (other.client_streaming, other.server_streaming)


@pytest.mark.parametrize(
    "text",
    ["message {", "message A { int3 a = 1; }", "import 'x';", "message A { int32 a 1; }", "syntax = 'proto2';", "§"],
)
def test_what_is_no_such_file_is_told(text: str) -> None:
    """With the place, not with a descriptor that lacks something."""
    with pytest.raises(ValueError, match=r"expected|cannot read|no message"):
        protofile.parse(text, "x.proto")


def test_the_facts_of_the_protocol_are_messages_too() -> None:
    """Each member of the JSON forms is a field."""
    config = ParseDict({"config": facts.model_config(SPEC)}, grpc_messages.message("ModelConfigResponse")()).config
    assert (config.max_batch_size, config.input[0].data_type, list(config.input[0].dims)) == (1, 11, [2])
    ParseDict(facts.model_metadata(SPEC), grpc_messages.message("ModelMetadataResponse")())
    ParseDict(facts.server_metadata("1"), grpc_messages.message("ServerMetadataResponse")())
    statistics = facts.Statistics(batches={2: facts.Duration(1, 2)})
    ParseDict(facts.model_statistics([(SPEC, statistics)]), grpc_messages.message("ModelStatisticsResponse")())


def request(**fields: Any) -> Any:
    """A ModelInferRequest."""
    return ParseDict({"model_name": "m", **fields}, grpc_messages.message("ModelInferRequest")())


X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [0.5, 1.5]}}
N = {"name": "n", "datatype": "INT8", "shape": [1], "contents": {"int_contents": [-3]}}


def test_typed_contents_are_read() -> None:
    """The fields of InferTensorContents, as clients in other languages fill them."""
    (payload,) = grpc_codec.read(request(inputs=[X, N]), SPEC).payloads
    assert (payload["x"].tolist(), payload["n"].tolist(), payload["n"].dtype) == ([0.5, 1.5], -3, np.int8)


@pytest.mark.parametrize("datatype", sorted(set(reference.DATATYPES) - {"FP16", "BF16"}))
def test_typed_contents_of_each_datatype_are_what_the_raw_ones_are(datatype: str) -> None:
    """Both ways of sending the same elements."""
    spec = ModelSpec("m", inputs=(Tensor("x", datatype, (3,)),), outputs=(Tensor("x", datatype, (3,)),))
    flat = reference.samples(datatype, (2, 3))
    typed, raw = (request(inputs=[{"name": "x", "datatype": datatype, "shape": [2, 3]}]) for _ in range(2))
    getattr(typed.inputs[0].contents, grpc_codec.CONTENTS[datatype]).extend(flat)
    raw.raw_input_contents.append(reference.packed(datatype, flat))
    for each in (typed, raw):
        inference = grpc_codec.read(each, spec)
        response = grpc_codec.write(inference, spec, [row["x"] for row in inference.payloads])
        assert list(response.raw_output_contents) == [reference.packed(datatype, flat)]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"inputs": [X]}, "Missing: n"),
        ({"inputs": [X, N], "raw_input_contents": ["AAAA"]}, "match the inputs for model 'm', got 1 and 2"),
        ({"inputs": [X, {**N, "contents": {"int_contents": [128]}}]}, "INT8 takes -128 to 127"),
        ({"inputs": [X, {**N, "contents": {"int64_contents": ["1"]}}]}, "INT8 belongs in int_contents, not in int64"),
        ({"inputs": [X, {**N, "contents": {}}]}, "true shape"),
        ({"inputs": [{**X, "parameters": {"shared_memory_region": {"string_param": "r"}}}, N]}, "are not supported"),
        ({"inputs": [X, N], "outputs": [{"name": "z"}]}, "unexpected inference output 'z'"),
        ({"inputs": [X, N], "parameters": {"priority": {"int64_param": -1}}}, "Unable to parse 'priority'"),
        ({"inputs": [X, N], "parameters": {"sequence_id": {"int64_param": 1}}}, "keeps no state"),
        ({"inputs": [X, N], "model_version": "7"}, "version 7 is not found"),
    ],
)
def test_a_wrong_request_is_refused(fields: dict[str, Any], why: str) -> None:
    """In the words that HTTP uses."""
    with pytest.raises(Fault, match=why):
        grpc_codec.read(request(**fields), SPEC)


def test_half_floats_travel_raw_only() -> None:
    """They have no field of their own."""
    spec = ModelSpec("m", inputs=(Tensor("x", "FP16", (1,)),))
    with pytest.raises(BadRequest, match="FP16 must be sent in raw_input_contents"):
        grpc_codec.read(request(inputs=[{"name": "x", "datatype": "FP16", "shape": [1, 1]}]), spec)
