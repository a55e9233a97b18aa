"""JSON as the gateway reads and writes it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import Tensor
from orch.payload import RawTensor
from orch_gateway import plain, v2
from orch_gateway.inference import ModelSpec

texts = st.text()
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=20,
)


@given(values)
def test_what_json_can_say_is_read_and_written(value: Any) -> None:
    """The standard library agrees both ways."""
    text = plain.dumps(value)
    assert plain.loads(text) == json.loads(text) == value
    assert plain.loads(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.arange(6, dtype="i4").reshape(2, 3), "[[0,1,2],[3,4,5]]"),
        (np.arange(6).reshape(2, 3).T, "[[0,3],[1,4],[2,5]]"),
        (np.array([1, 2], ">i2"), "[1,2]"),
        (np.array([0.1], "f4"), "[0.1]"),
        (np.array([0.5, np.nan], "f2"), "[0.5,null]"),
        (np.array(3), "3"),
        (np.float32(0.5), "0.5"),
        (np.zeros((2, 0)), "[[],[]]"),
        (RawTensor("bfloat16", (1, 2), b"\x80\x3f\xc0\x3f"), "[[1.0,1.5]]"),
        (b"\xc3\xa4", '"ä"'),
        ((1, [float("inf")]), "[1,[null]]"),
        ({1: float("nan"), None: "NaN"}, '{"1":null,"null":"NaN"}'),
        (2**70, "1180591620717411303424"),
    ],
)
def test_what_models_return_has_its_form(value: Any, text: str) -> None:
    """Arrays of any layout; what is not finite is null, whoever writes it."""
    assert plain.dumps(value) == text.encode()


@pytest.mark.parametrize(
    ("value", "why"), [({1, 2}, "set has no JSON form"), ([b"\xff"], "no UTF-8"), ({(1, 2): 3}, "keys must be")]
)
def test_what_json_cannot_say_is_told(value: Any, why: str) -> None:
    """In one line."""
    with pytest.raises(ValueError, match=why):
        plain.dumps(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"{", "at 1"),
        (b"", "at 0"),
        (b'"\xff"', "no UTF-8 at 1"),
        (b"[" * 100_000, "nested too deep"),
        (b"[1] x", "at 4"),
    ],
)
def test_what_is_no_json_is_told(text: bytes, why: str) -> None:
    """With its place."""
    with pytest.raises(ValueError, match=why):
        plain.loads(text)


def test_numbers_that_are_not_finite_come_and_go_as_tritonclient_has_them() -> None:
    """Only in the protocol's own tensors; beside them, everything else is as always."""
    model = ModelSpec(
        "same", inputs=(Tensor("x", "FP32", (-1,)),), outputs=(Tensor("y", "FP32", (-1,)), Tensor("n", "INT64", ()))
    )
    given = '{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [NaN, Infinity, 0.1]}'
    inference = v2.parse(f'{{"id": "\\ud800", "inputs": [{given}]}}'.encode(), None, model)
    (parts, _) = v2.respond(inference, model, [{"y": inference.payloads[0]["x"], "n": np.int64(2**53 + 1)}])
    text = b"".join(map(bytes, parts))
    assert b'"data":[NaN,Infinity,0.1' in text
    assert b'"data":[9007199254740993]' in text
    assert json.loads(text)["id"] == "\ud800"
