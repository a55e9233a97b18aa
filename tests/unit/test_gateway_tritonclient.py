"""tritonclient's own encoder and decoder against ours, without a server between them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from orch import Tensor
from orch.payload import RawTensor
from orch_gateway import v2
from orch_gateway.inference import ModelSpec

tritonclient = pytest.importorskip("tritonclient.http")

ARRAYS = {
    "BOOL": np.array([[True, False, True], [False, False, True]]),
    **{
        f"{sign.upper()}INT{bits}": np.array([[0, 1, 100], [7, 99, 3]], f"{sign}int{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "FP16": np.array([[0.5, -2.0, 65504.0], [0.0, 1.0, 6e-5]], np.float16),
    "FP32": np.array([[0.5, -2.0, 3e38], [0.1, np.inf, -0.0]], np.float32),
    "FP64": np.array([[0.5, -2.0, 1e300], [0.1, np.inf, -0.0]]),
    "BF16": np.array([[0.5, -2.0, 3e38], [0.0, 1.0, 1.5]], ml_dtypes.bfloat16),
    "BYTES": np.array([["a", "schön", ""], ["x" * 300, "b", "c"]], np.object_),
}
# Datatype, sent in binary, and answered so; None: no wish. Half floats have no JSON form.
WAYS = [
    (datatype, binary_in, binary_out)
    for datatype in sorted(ARRAYS)
    for binary_in in (True, False)
    for binary_out in (None, True, False)
    if datatype not in ("FP16", "BF16") or (binary_in and binary_out is not False)
]


def spec(datatype: str, shape: tuple[int, ...] = (3,)) -> ModelSpec:
    """A model that gives what it takes."""
    return ModelSpec("same", inputs=(Tensor("x", datatype, shape),), outputs=(Tensor("y", datatype, shape),))


def echo(model: ModelSpec, body: bytes, header_length: int | None) -> Any:
    """What tritonclient makes of the answer to a request that it made."""
    inference = v2.parse(body, header_length, model)
    parts, length = v2.respond(inference, model, [row["x"] for row in inference.payloads])
    return tritonclient.InferResult.from_response_body(b"".join(map(bytes, parts)), header_length=length)


def same(found: Any, sent: Any) -> bool:
    """Texts come back as bytes in the binary form, and as texts in JSON."""
    if sent.dtype == np.object_:
        return [each.decode() if type(each) is bytes else each for each in found.flat] == list(sent.flat)
    return bool(found.dtype == sent.dtype and found.tobytes() == sent.tobytes())


@pytest.mark.parametrize(("datatype", "binary_in", "binary_out"), WAYS)
def test_an_array_comes_back_through_tritonclient(datatype: str, binary_in: bool, binary_out: bool | None) -> None:
    """Each datatype in each form that tritonclient has for it; without wishes it asks for binary."""
    array = ARRAYS[datatype]
    sent = tritonclient.InferInput("x", list(array.shape), datatype)
    sent.set_data_from_numpy(array, binary_data=binary_in)
    wishes = None if binary_out is None else [tritonclient.InferRequestedOutput("y", binary_data=binary_out)]
    body, length = tritonclient.InferenceServerClient.generate_request_body([sent], outputs=wishes, request_id="17")
    found = echo(spec(datatype), body, length)
    assert same(found.as_numpy("y"), array)
    assert found.get_response()["id"] == "17"
    assert ("parameters" in found.get_output("y")) == (binary_out is not False)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_an_empty_tensor_comes_back(datatype: str) -> None:
    """A dimension of 0, in the binary form."""
    array = np.zeros((2, 0), np.object_ if datatype == "BYTES" else np.float32)
    sent = tritonclient.InferInput("x", [2, 0], datatype)
    sent.set_data_from_numpy(array)
    body, length = tritonclient.InferenceServerClient.generate_request_body([sent])
    assert echo(spec(datatype, (-1,)), body, length).as_numpy("y").shape == (2, 0)


def test_priority_timeout_and_classes_are_understood() -> None:
    """As tritonclient writes them."""
    sent = tritonclient.InferInput("x", [1, 3], "FP32").set_data_from_numpy(np.array([[1, 5, 3]], np.float32))
    body, length = tritonclient.InferenceServerClient.generate_request_body(
        [sent],
        outputs=[tritonclient.InferRequestedOutput("y", class_count=2)],
        priority=1,
        timeout=2_000_000,
        parameters={"mine": "x"},
    )
    inference = v2.parse(body, length, spec("FP32"))
    assert (inference.priority, inference.timeout_s, inference.parameters["mine"]) == ("high", 2.0, "x")
    assert echo(spec("FP32"), body, length).as_numpy("y").tolist() == [[b"5.000000:1", b"3.000000:2"]]


def test_a_model_that_declares_nothing_is_a_tensor_of_json_texts() -> None:
    """Both ways."""
    sent = tritonclient.InferInput("input", [2], "BYTES").set_data_from_numpy(np.array(["[1]", "2"], np.object_))
    body, length = tritonclient.InferenceServerClient.generate_request_body([sent])
    model = ModelSpec("echo")
    inference = v2.parse(body, length, model)
    assert inference.payloads == [[1], 2]
    parts, length = v2.respond(inference, model, [{"a": 1}, RawTensor("bfloat16", (1,), b"\x80\x3f")])
    found = tritonclient.InferResult.from_response_body(b"".join(map(bytes, parts)), header_length=length)
    assert found.as_numpy("output").tolist() == [b'{"a":1}', b"[1.0]"]
