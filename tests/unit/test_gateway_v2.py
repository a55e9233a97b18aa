"""Requests and answers of the Open Inference Protocol over HTTP, against a plain second implementation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch import Tensor
from orch.payload import RawTensor
from orch_gateway import generate, v2
from orch_gateway.faults import BadRequest, BadResult, Fault, NotFound
from orch_gateway.inference import MAX_ROWS, MAX_TIMEOUT_S, Inference, ModelSpec
from tests.unit import gateway_reference as reference

ADD = ModelSpec(
    "add",
    ("1", "2"),
    (Tensor("a", "INT32", (2,)), Tensor("b", "FP32", (-1,))),
    (Tensor("sum", "FP32", (-1,)), Tensor("label", "BYTES", ())),
    max_batch_size=8,
)
ECHO = ModelSpec("echo")  # declares nothing
A = {"name": "a", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}
B = {"name": "b", "datatype": "FP32", "shape": [1, 1], "data": [0.5]}


def ask(spec: ModelSpec, request: Any, tail: bytes = b"", version: str = "") -> Inference:
    """A request of a JSON object, with what follows it."""
    head = request if isinstance(request, bytes) else json.dumps(request).encode()
    return v2.parse(head + tail, len(head) if tail else None, spec, version)


def complaint(spec: ModelSpec, request: Any, tail: bytes = b"") -> str:
    """Why a request is refused."""
    with pytest.raises(BadRequest) as caught:
        ask(spec, request, tail)
    return str(caught.value)


def add(**changes: Any) -> dict[str, Any]:
    """A good request for ADD, with changes."""
    return {"inputs": [A, B], **changes}


def ones(spec: ModelSpec, num_rows: int) -> list[Any]:
    """Results of ADD."""
    return [{"sum": np.full(3, i, "f4"), "label": b"x"} for i in range(num_rows)]


# --- the matrix ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", reference.DATATYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_identity_model_answers_what_was_sent(datatype: str, shape: tuple[int, ...], batch: int) -> None:
    """Every datatype, in JSON and in binary, and asked for in either."""
    declared = tuple(size or -1 for size in shape)
    spec = ModelSpec("same", ("1",), (Tensor("x", datatype, declared),), (Tensor("y", datatype, declared),))
    whole = (batch, *shape)
    flat = reference.samples(datatype, whole)
    data, binary = reference.plain(datatype, flat), reference.packed(datatype, flat)
    ways: list[tuple[dict[str, Any], bytes]] = [({"parameters": {"binary_data_size": len(binary)}}, binary)]
    if datatype in reference.JSON_DATATYPES:
        ways += [({"data": data}, b""), ({"data": reference.nest(data, whole)}, b"")]
    for (way, tail), binary_out in product(ways, (False, True)):
        request = {
            "inputs": [{"name": "x", "datatype": datatype, "shape": list(whole), **way}],
            "outputs": [{"name": "y", "parameters": {"binary_data": binary_out}}],
        }
        if not binary_out and datatype not in reference.JSON_DATATYPES:
            assert f"sending {datatype} data via JSON is not supported" in complaint(spec, request, tail)
            continue
        inference = ask(spec, request, tail)
        assert len(inference.payloads) == batch
        answer = v2.respond(inference, spec, [{"y": row["x"]} for row in inference.payloads])
        assert reference.tensors_of(*answer) == {"y": (datatype, list(whole), flat)}
        assert (answer[1] is not None) == binary_out


def test_several_tensors_travel_in_one_body_in_any_mixture() -> None:
    """Binary ones follow the JSON in the order of their names in it; a model gets its rows by name."""
    tail = reference.packed("FP32", [0.5, 1.5, 2.5, 3.5])
    binary = {"name": "b", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": len(tail)}}
    request = {
        "id": "42",
        "inputs": [binary, {"name": "a", "datatype": "INT32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}],
        "outputs": [{"name": "label"}, {"name": "sum", "parameters": {"binary_data": True}}],
    }
    inference = ask(ADD, request, tail)
    rows = [{name: row[name].tolist() for name in sorted(row)} for row in inference.payloads]
    assert rows == [{"a": [1, 2], "b": [0.5, 1.5]}, {"a": [3, 4], "b": [2.5, 3.5]}]
    parts, length = v2.respond(inference, ADD, ones(ADD, 2))
    assert length is not None
    head = json.loads(parts[0][:length])
    assert (head["id"], head["model_name"], head["model_version"]) == ("42", "add", "2")
    assert reference.tensors_of(parts, length) == {
        "label": ("BYTES", [2], [b"x", b"x"]),
        "sum": ("FP32", [2, 3], [0.0] * 3 + [1.0] * 3),
    }


def test_all_outputs_are_answered_when_none_is_named() -> None:
    """In the form that `binary_data_output` asks for, which an output's own wish overrules."""
    for binary in (False, True):
        inference = ask(ADD, add(parameters={"binary_data_output": binary}))
        answer = v2.respond(inference, ADD, ones(ADD, 1))
        assert set(reference.tensors_of(*answer)) == {"sum", "label"}
        assert (answer[1] is not None) == binary
    wish = {"name": "sum", "parameters": {"binary_data": False}}
    inference = ask(ADD, add(parameters={"binary_data_output": True}, outputs=[wish]))
    assert v2.respond(inference, ADD, ones(ADD, 1))[1] is None


def test_rows_leave_in_parts_that_are_views() -> None:
    """A large output is not copied on its way out."""
    inference = ask(ADD, add(parameters={"binary_data_output": True}))
    result = {"sum": np.zeros(1000, "f4"), "label": b""}
    parts, _ = v2.respond(inference, ADD, [result])
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), result["sum"]) for part in parts[1:] if len(part) > 100)


def test_a_model_that_declares_nothing_takes_and_gives_json() -> None:
    """Each element of its one BYTES tensor is a JSON text."""
    texts = ['{"a": [1, 2.5]}', '"schön"', "null"]
    inference = ask(ECHO, {"inputs": [{"name": "input", "datatype": "BYTES", "shape": [3], "data": texts}]})
    assert inference.payloads == [{"a": [1, 2.5]}, "schön", None]
    results = [{"array": np.arange(2), "x": (1, np.float32(0.5))}, b"bytes", RawTensor("bfloat16", (1,), b"\xc0\x3f")]
    found = reference.tensors_of(*v2.respond(inference, ECHO, results))
    assert found == {"output": ("BYTES", [3], [b'{"array":[0,1],"x":[1,0.5]}', b'"bytes"', b"[1.5]"])}


@pytest.mark.parametrize(
    ("declared", "body", "expected"),
    [
        (Tensor("x", "FP32", (2,)), reference.packed("FP32", [0.5, 1.5]), [0.5, 1.5]),
        (Tensor("x", "FP32", (2, -1)), reference.packed("FP32", [0.5, 1.5, 2.5, 3.5]), [[0.5, 1.5], [2.5, 3.5]]),
        (Tensor("x", "INT64", ()), reference.packed("INT64", [7]), 7),
        (Tensor("x", "UINT8", (-1,)), b"", []),
    ],
)
def test_a_raw_body_is_the_one_input_of_one_row(declared: Tensor, body: bytes, expected: Any) -> None:
    """Its shape follows from its length, and all of the answer is binary."""
    spec = ModelSpec("raw", inputs=(declared,), outputs=(declared,))
    inference = v2.parse(body, 0, spec)
    assert [row["x"].tolist() for row in inference.payloads] == [expected]
    answer = v2.respond(inference, spec, [inference.payloads[0]["x"]])
    assert answer[1] is not None
    assert reference.nest(reference.tensors_of(*answer)["x"][2], np.shape(expected)) == expected


def test_a_raw_body_of_bytes_is_one_element() -> None:
    """Without a length before it; to a model that declares nothing it is one JSON text."""
    spec = ModelSpec("raw", inputs=(Tensor("x", "BYTES", (1,)),))
    assert v2.parse(b"\xff\0", 0, spec).payloads == [{"x": [b"\xff\0"]}]
    assert v2.parse(b'{"a": 1}', 0, ECHO).payloads == [{"a": 1}]


@pytest.mark.parametrize(
    ("inputs", "body", "why"),
    [
        (ADD.inputs, b"", "but got 2 inputs in 'add'"),
        ((Tensor("x", "FP32", (2,)),), b"abc", "got 3 bytes, expecting 8"),
        ((Tensor("x", "FP32", (-1,)),), b"abc", "no multiple of 4"),
        ((Tensor("x", "FP32", (-1, -1)),), b"abcd", "more than one variable-sized dimension"),
        ((Tensor("x", "BYTES", (2,)),), b"abcd", r"must have input shape \[1\]"),
        ((), b"no json", "is no JSON"),
    ],
)
def test_a_raw_body_that_cannot_be_placed_is_refused(inputs: Sequence[Tensor], body: bytes, why: str) -> None:
    """With the reason, not with a guess."""
    with pytest.raises(BadRequest, match=why):
        v2.parse(body, 0, ModelSpec("add", inputs=tuple(inputs)))


# --- parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "priority", "timeout_s"),
    [
        ({}, "normal", None),
        ({"priority": 0, "timeout": 0}, "normal", None),
        ({"priority": 1}, "high", None),
        ({"priority": 2}, "normal", None),
        ({"priority": 3}, "low", None),
        ({"priority": 2**64 - 1}, "low", None),
        ({"timeout": 1_500_000, "custom": [1]}, "normal", 1.5),
        ({"timeout": 2**64 - 1}, "normal", MAX_TIMEOUT_S),
        ({"sequence_id": 0, "sequence_start": False}, "normal", None),
    ],
)
def test_priority_and_timeout_are_taken_from_the_parameters(
    parameters: dict[str, Any], priority: str, timeout_s: float | None
) -> None:
    """1 is the highest of three levels, 0 the usual one; a time-out is in microseconds."""
    inference = ask(ADD, add(parameters=parameters))
    assert (inference.priority, inference.timeout_s) == (priority, timeout_s)
    assert inference.parameters == parameters


@pytest.mark.parametrize(
    ("datatype", "row", "texts"),
    [
        ("FP32", [0.5, 2.0, -1.0], ["2.000000:1", "0.500000:0"]),
        ("INT32", [7, 7, 9], ["9:2", "7:0"]),
        ("UINT8", [0, 255, 1], ["255:1", "1:2"]),
    ],
)
def test_classification_answers_the_largest_values_with_their_places(datatype: str, row: Any, texts: list[str]) -> None:
    """As texts, the largest first, of equals the first."""
    spec = ModelSpec("c", outputs=(Tensor("y", datatype, (3,)),))
    request = {
        "inputs": [{"name": "input", "datatype": "BYTES", "shape": [2], "data": ["1", "2"]}],
        "outputs": [{"name": "y", "parameters": {"classification": 2}}],
    }
    found = reference.tensors_of(*v2.respond(ask(spec, request), spec, [row, row]))
    assert found == {"y": ("BYTES", [2, 2], [text.encode() for text in texts * 2])}


def test_a_version_may_be_asked_for() -> None:
    """The newest answers where none is named; one that is not there is not found."""
    assert ask(ADD, add()).version == "2"
    assert ask(ADD, add(), version="1").version == "1"
    with pytest.raises(NotFound, match="'add' version 3 is not found"):
        ask(ADD, add(), version="3")


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (b"", "failed to parse the request JSON buffer"),
        (b"{", "failed to parse the request JSON buffer"),
        (b"\xff", "no UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"[]", "must be an object"),
        ({}, "Unable to parse 'inputs'"),
        ({"inputs": {}}, "Unable to parse 'inputs'"),
        ({"inputs": [1]}, "Unable to parse 'inputs'"),
        ({"inputs": []}, "expected 2 inputs but got 0 inputs for model 'add'. Missing: a, b"),
        ({"inputs": [A]}, "Missing: b"),
        ({"inputs": [A, A, B]}, "input 'a' already exists"),
        ({"inputs": [A, {**B, "name": "c"}]}, "unexpected inference input 'c' for model 'add', which has 'a', 'b'"),
        ({"inputs": [A, {**B, "name": 3}]}, "Unable to parse 'name'"),
        ({"inputs": [A, {**B, "datatype": "FP64"}]}, "data-type is 'FP64', but model 'add' expects 'FP32'"),
        ({"inputs": [A, {**B, "datatype": None}]}, "Unable to parse 'datatype'"),
        ({"inputs": [A, {**B, "shape": 1}]}, "Unable to parse 'shape'"),
        ({"inputs": [A, {**B, "shape": [True, 1]}]}, "Unable to parse 'shape'"),
        ({"inputs": [A, {**B, "shape": [1.0, 1]}]}, "Unable to parse 'shape'"),
        ({"inputs": [A, {**B, "shape": [1, -1]}]}, "Expected [-1,-1], got [1, -1]"),
        ({"inputs": [A, {**B, "shape": []}]}, "Expected [-1,-1], got []"),
        ({"inputs": [A, {**B, "shape": [1]}]}, "The first dimension is the batch"),
        ({"inputs": [{**A, "shape": [1, 3]}, B]}, "unexpected shape for input 'a' for model 'add'. Expected [-1,2]"),
        ({"inputs": [{**A, "shape": [0, 2]}, B]}, f"batch-size must be 1 to {MAX_ROWS} for 'add', got 0"),
        ({"inputs": [{**A, "shape": [MAX_ROWS + 1, 2]}, B]}, f"batch-size must be 1 to {MAX_ROWS}"),
        ({"inputs": [A, {**B, "shape": [2, 1]}]}, "batch size does not match other inputs for 'add'"),
        ({"inputs": [A, {**B, "data": [1, 2]}]}, "Shape does not match true shape of 'data' field for input 'b'"),
        ({"inputs": [A, {**B, "data": ["x"]}]}, "FP32 takes numbers only for input 'b' for model 'add'"),
        ({"inputs": [A, {**B, "data": 3}]}, "'data' must be an array"),
        ({"inputs": [A, {**B, "parameters": 3}]}, "Unable to parse 'parameters'"),
        ({"inputs": [A, {"name": "b", "datatype": "FP32", "shape": [1, 1]}]}, "But no field is set"),
        ({"inputs": [A, {**B, "parameters": {"binary_data_size": 4}}]}, "But set ['data', 'binary_data_size']"),
        ({"inputs": [{**A, "data": [2**31, 0]}, B]}, "INT32 takes -2147483648 to 2147483647"),
        (add(id=3), "Unable to parse 'id'"),
        (add(parameters=[]), "Unable to parse 'parameters'"),
        (add(parameters={"priority": -1}), "Unable to parse 'priority'"),
        (add(parameters={"timeout": 1.5}), "Unable to parse 'timeout'"),
        (add(parameters={"timeout": 2**64}), "Unable to parse 'timeout'"),
        (add(parameters={"binary_data_output": 1}), "Unable to parse 'binary_data_output'"),
        (add(parameters={"sequence_id": 5}), "keeps no state between requests"),
        (add(parameters={"sequence_id": "five"}), "keeps no state between requests"),
        (add(outputs=3), "Unable to parse 'outputs'"),
        (add(outputs=[{}]), "Unable to parse 'name'"),
        (add(outputs=[{"name": "z"}]), "unexpected inference output 'z' for model 'add', which has 'sum', 'label'"),
        (add(outputs=[{"name": "sum"}, {"name": "sum"}]), "requested more than once"),
        (add(outputs=[{"name": "sum", "parameters": {"binary_data": "yes"}}]), "Unable to parse 'binary_data'"),
        (add(outputs=[{"name": "sum", "parameters": {"classification": -1}}]), "Unable to parse 'classification'"),
        (add(outputs=[{"name": "label", "parameters": {"classification": 1}}]), "classification is not supported"),
        (
            add(outputs=[{"name": "sum", "parameters": {"shared_memory_region": "r"}}]),
            "take the output with the answer",
        ),
    ],
)
def test_a_wrong_request_is_refused_in_the_protocols_words(request_: Any, why: str) -> None:
    """One line, status 400."""
    message = complaint(ADD, request_)
    assert why in message
    assert json.loads(v2.error(message)) == {"error": message}
    assert BadRequest.status == 400


@pytest.mark.parametrize(
    ("size", "tail", "why"),
    [
        (8, b"", "expecting 8 additional bytes for input 'b' for model 'add'"),
        (8, b"1234567", "expecting 1 additional bytes"),
        (8, b"123456789", "unexpected additional input data for model 'add': 1 bytes"),
        (3, b"123", "unexpected size, got 3 bytes, expecting 8"),
        (-1, b"1", "Unable to parse 'binary_data_size'"),
        ("8", b"12345678", "Unable to parse 'binary_data_size'"),
    ],
)
def test_the_binary_tail_must_be_as_long_as_the_inputs_say(size: Any, tail: bytes, why: str) -> None:
    """No byte too few or too many."""
    binary = {"name": "b", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": size}}
    assert why in complaint(ADD, {"inputs": [A, binary]}, tail)


@pytest.mark.parametrize("length", [-1, 3, 10**30])
def test_a_header_length_outside_of_the_body_is_refused(length: int) -> None:
    """Also where it is no size at all."""
    with pytest.raises(BadRequest, match=r"inference header size should be in range \(0, 2\)"):
        v2.parse(b"{}", length, ADD)


def test_memory_is_not_asked_for_by_shapes_alone() -> None:
    """A dimension of 0 makes any other one free of bytes."""
    spec = ModelSpec("empty", inputs=(Tensor("x", "BYTES", (-1, -1)),))
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1, 2**40, 0], "data": []}
    assert "too large for an empty tensor" in complaint(spec, {"inputs": [tensor]})


def test_a_message_that_quotes_a_client_is_one_short_line() -> None:
    """Whatever was quoted."""
    message = complaint(ADD, {"inputs": [{**A, "name": "x\n\ud800" * 10_000}]})
    assert len(message) < 600
    assert "\n" not in message
    assert message.encode()


# --- what a model may not return -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ([{"sum": np.zeros(3, "f8"), "label": b""}], "returned FP64 for output 'sum' in row 0; it declares FP32 [-1]"),
        ([{"sum": np.zeros(3, "f4")}], "returned only ['sum'], nothing, for output 'label'"),
        ([np.zeros(3, "f4")], "returned a ndarray, no dict of 2 outputs, for output 'sum'"),
        ([{"sum": np.zeros((1, 3), "f4"), "label": b""}], "a row of shape [1, 3] for output 'sum'"),
        (
            [{"sum": np.zeros(2, "f4"), "label": b""}, {"sum": np.zeros(3, "f4"), "label": b""}],
            "rows of shapes [2], [3] for output 'sum', which do not stack",
        ),
    ],
)
def test_a_result_that_was_not_declared_is_the_models_fault(results: list[Any], why: str) -> None:
    """Status 500, with what it declares."""
    rows = len(results)
    inputs = [{**A, "shape": [rows, 2], "data": [1, 2] * rows}, {**B, "shape": [rows, 1], "data": [0.5] * rows}]
    with pytest.raises(BadResult) as caught:
        v2.respond(ask(ADD, {"inputs": inputs}), ADD, results)
    assert why in str(caught.value)
    assert caught.value.status == 500


@pytest.mark.parametrize("result", [b"\xff", {1, 2}, {(1, 2): 3}, 1j, np.zeros(1, "c8"), float])
def test_a_result_that_json_cannot_say_is_told(result: Any) -> None:
    """For a model that declares nothing."""
    inference = ask(ECHO, {"inputs": [{"name": "input", "datatype": "BYTES", "shape": [1], "data": ["1"]}]})
    with pytest.raises(BadResult, match="cannot be said in JSON"):
        v2.respond(inference, ECHO, [result])


def test_bytes_that_are_no_text_need_the_binary_form() -> None:
    """The client asked for JSON, so the request is at fault."""
    with pytest.raises(BadRequest, match=r"no UTF-8.* binary data format for output 'label'"):
        v2.respond(ask(ADD, add()), ADD, [{"sum": np.zeros(1, "f4"), "label": b"\xff"}])


# --- any bytes -----------------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers(-3, 2**66) | st.floats() | st.text(max_size=3)
names = st.sampled_from(["a", "b", "input", "x", "sum"])
parameters = st.dictionaries(
    st.sampled_from(["binary_data_size", "priority", "timeout", "binary_data", "binary_data_output", "classification"]),
    st.integers(-1, 9) | scalars,
)
loose = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
tensor_forms = st.fixed_dictionaries(
    {},
    optional={
        "name": names | scalars,
        "datatype": st.sampled_from(["INT32", "FP32", "BYTES"]) | scalars,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | loose,
        "data": loose,
        "parameters": parameters | scalars,
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensor_forms, max_size=3)},
    optional={"id": scalars, "parameters": parameters | scalars, "outputs": st.lists(tensor_forms, max_size=2)},
)
bodies = requests.map(lambda request: json.dumps(request).encode()) | st.binary(max_size=60)


@settings(max_examples=300)
@given(bodies, st.binary(max_size=20), st.none() | st.integers(-1, 80), st.booleans(), st.sampled_from([ADD, ECHO]))
def test_any_bytes_are_an_inference_or_a_fault(
    head: bytes, tail: bytes, length: int | None, right: bool, spec: ModelSpec
) -> None:
    """Nothing else: no other exception reaches the server, whatever the body and its header say."""
    length = len(head) if right else length
    with contextlib.suppress(Fault):
        assert 1 <= len(v2.parse(head + tail, length, spec).payloads) <= MAX_ROWS
    with contextlib.suppress(Fault):
        assert len(generate.parse(head, spec).payloads) == 1


@settings(max_examples=200)
@given(st.recursive(scalars | st.binary(max_size=3), lambda inner: st.lists(inner, max_size=3), max_leaves=6))
def test_any_result_is_an_answer_or_a_fault(result: Any) -> None:
    """What a model returns is not trusted either."""
    declared = ModelSpec("m", outputs=(Tensor("y", "FP32", (-1,)),))
    asked = {"inputs": [{"name": "input", "datatype": "BYTES", "shape": [1], "data": ["1"]}]}
    for spec in (declared, ECHO):
        for value in (result, {"y": result}):
            try:
                parts, _ = v2.respond(ask(spec, asked), spec, [value])
            except Fault:
                continue
            data = json.loads(parts[0])["outputs"][0]["data"]
            assert spec is declared or len([json.loads(text) for text in data]) == 1
