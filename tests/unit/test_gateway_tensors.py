"""A tensor's elements between JSON, the binary form, and a model: compared with a plain second implementation."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.payload import RawTensor
from orch_gateway import tensors
from orch_gateway.tensors import Unfit
from tests.unit import gateway_reference as reference

SHAPES = [(1,), (3,), (1, 1), (4, 3), (2, 3, 2), (3, 0), (2, 0, 3)]


def as_values(row: Any, datatype: str) -> Any:
    """What a model finds in its row, in plain lists."""
    if datatype == "BYTES":
        return row
    if datatype == "BF16":
        assert (type(row), row.dtype) == (RawTensor, "bfloat16")
        number = reference.count(row.shape)
        return reference.nest(reference.unpacked("BF16", bytes(row.data), number), row.shape)
    assert type(row) is np.ndarray
    assert row.dtype.name == reference.NUMPY_NAMES[datatype]
    return row.tolist()


@pytest.mark.parametrize("datatype", reference.DATATYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_binary_elements_reach_a_model_as_rows(datatype: str, shape: tuple[int, ...]) -> None:
    """Values, dtype and shape, of every datatype."""
    flat = reference.samples(datatype, shape)
    elements = tensors.from_binary(memoryview(reference.packed(datatype, flat)), datatype, shape)
    rows = tensors.rows(elements, datatype, shape)
    assert [as_values(row, datatype) for row in rows] == reference.nest(flat, shape)
    if datatype != "BYTES":
        assert {row.shape for row in rows} == {shape[1:]}


@pytest.mark.parametrize("datatype", reference.JSON_DATATYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_json_elements_are_the_binary_ones_flat_or_nested(datatype: str, shape: tuple[int, ...]) -> None:
    """Both ways of writing `data` mean the same."""
    flat = reference.samples(datatype, shape)
    data = reference.plain(datatype, flat)
    for form in (data, reference.nest(data, shape)):
        elements = tensors.from_json(form, datatype, shape)
        assert bytes(tensors.to_binary(elements)) == reference.packed(datatype, flat)
        assert tensors.to_json(elements, datatype) == data


@pytest.mark.parametrize("datatype", sorted(set(reference.DATATYPES) - {"BYTES", "BOOL"}))
def test_numbers_in_the_binary_form_are_not_copied(datatype: str) -> None:
    """Not on the way in, at an odd address as in a body behind its JSON, nor on the way out."""
    body = bytearray(b"x" + reference.packed(datatype, reference.samples(datatype, (6,))))
    elements = tensors.from_binary(memoryview(body)[1:], datatype, (2, 3))
    row = tensors.rows(elements, datatype, (2, 3))[1]
    out = tensors.to_binary(elements)
    before = bytes(out)
    body[-1] ^= 0xFF
    assert bytes(out) != before
    assert as_values(row, datatype)[:2] == reference.samples(datatype, (6,))[3:5]
    assert np.shares_memory(np.frombuffer(body, np.uint8), row.data if datatype == "BF16" else row)


def test_a_byte_above_one_is_a_true_bool() -> None:
    """Some clients write 255; numpy must not be shown such a bool."""
    elements = tensors.from_binary(memoryview(b"\x00\x01\xff"), "BOOL", (3,))
    assert bytes(tensors.to_binary(elements)) == b"\x00\x01\x01"


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_have_no_json_form(datatype: str) -> None:
    """As with Triton, in both directions."""
    with pytest.raises(Unfit, match=f"receiving {datatype} data via JSON is not supported"):
        tensors.from_json([1.0], datatype, (1,))
    with pytest.raises(Unfit, match=f"sending {datatype} data via JSON is not supported"):
        tensors.to_json(np.zeros(1, "<u2"), datatype)


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "why"),
    [
        ("a", "BYTES", (1,), "must be an array"),
        ([1, 2], "INT32", (3,), "true shape"),
        ([[1, 2], [3]], "INT32", (2, 2), "true shape"),
        ([[1, 2]], "INT32", (2,), "true shape"),
        ([[1], [2], [3]], "INT32", (1, 3), "true shape"),
        ([1, [2]], "INT32", (2,), "INT32 takes integers"),
        ([1.5], "INT32", (1,), "INT32 takes integers"),
        ([True], "INT32", (1,), "INT32 takes integers"),
        ([1], "BOOL", (1,), "BOOL takes true and false"),
        ([None], "FP32", (1,), "FP32 takes numbers"),
        (["1"], "FP32", (1,), "FP32 takes numbers"),
        ([{}], "FP64", (1,), "FP64 takes numbers"),
        ([256], "UINT8", (1,), "UINT8 takes 0 to 255"),
        ([-1], "UINT64", (1,), "UINT64 takes 0 to"),
        ([2**63], "INT64", (1,), "INT64 takes -9223372036854775808 to"),
        ([10**400], "FP64", (1,), "too large for FP64"),
        ([1], "BYTES", (1,), "must be texts"),
        (["\ud800"], "BYTES", (1,), "no text"),
    ],
)
def test_json_that_is_no_such_tensor_is_refused(data: Any, datatype: str, shape: tuple[int, ...], why: str) -> None:
    """Each mistake with a reason of its own; nothing wraps around."""
    with pytest.raises(Unfit, match=why):
        tensors.from_json(data, datatype, shape)


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "why"),
    [
        (b"abc", "FP32", (1,), "got 3 bytes, expecting 4"),
        (b"", "INT8", (1,), "got 0 bytes, expecting 1"),
        (b"a", "INT8", (0,), "got 1 bytes, expecting 0"),
        (b"\1\0\0", "BYTES", (1,), "expecting 1 strings"),
        (b"\3\0\0\0abcx", "BYTES", (2,), "string length indicator"),
        (b"\5\0\0\0abc", "BYTES", (1,), "incomplete string data"),
        (b"\0\0\0\0x", "BYTES", (1,), "1 bytes follow"),
        (b"", "BYTES", (10**30,), "got 0 bytes"),
    ],
)
def test_bytes_that_are_no_such_tensor_are_refused(
    data: bytes, datatype: str, shape: tuple[int, ...], why: str
) -> None:
    """A count that a shape alone claims is not believed."""
    with pytest.raises(Unfit, match=why):
        tensors.from_binary(memoryview(data), datatype, shape)


@given(
    st.sampled_from(reference.DATATYPES), st.lists(st.integers(0, 4), min_size=1, max_size=3), st.binary(max_size=40)
)
def test_any_bytes_are_a_tensor_or_unfit(datatype: str, shape: list[int], data: bytes) -> None:
    """And what is a tensor is written as it was read."""
    try:
        elements = tensors.from_binary(memoryview(data), datatype, tuple(shape))
    except Unfit:
        return
    written = bytes(tensors.to_binary(elements))
    assert written == (bytes(map(bool, data)) if datatype == "BOOL" else data)
    assert len(tensors.rows(elements, datatype, tuple(shape))) == shape[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


@given(json_values, st.sampled_from(reference.DATATYPES), st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_any_json_is_a_tensor_or_unfit(data: Any, datatype: str, shape: list[int]) -> None:
    """Nothing else comes out, whatever is in `data`."""
    try:
        elements = tensors.from_json(data, datatype, tuple(shape))
    except Unfit:
        return
    assert len(elements) == reference.count(shape)


# --- what a model returns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", sorted(set(reference.DATATYPES) - {"BF16"}))
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_model_may_return_arrays_or_plain_values(datatype: str, shape: tuple[int, ...]) -> None:
    """Lists, tuples, numpy arrays and scalars."""
    flat = reference.samples(datatype, shape)
    nested = reference.nest(flat, shape)
    forms = [nested, tuple(nested) if shape else nested]
    if datatype != "BYTES":
        array = np.array(nested, reference.NUMPY_NAMES[datatype])
        forms += [array, array[()], array.astype(array.dtype.newbyteorder(">")), array.T.copy().T]
    for form in forms:
        found_shape, elements = tensors.from_result(form, datatype, (-1,) * len(shape))
        assert found_shape == shape
        assert bytes(tensors.to_binary(elements)) == reference.packed(datatype, flat)


def test_bfloat16_comes_back_as_its_bits() -> None:
    """From torch as a raw tensor, from numpy with ml_dtypes."""
    bits = reference.packed("BF16", [1.5, -3.140625])
    for value in (RawTensor("bfloat16", (2,), bits), np.array([1.5, -3.140625], ml_dtypes.bfloat16)):
        shape, elements = tensors.from_result(value, "BF16", (2,))
        assert shape == (2,)
        assert bytes(tensors.to_binary(elements)) == bits


@pytest.mark.parametrize(
    ("value", "declared", "shape"),
    [([], (-1, 2), (0, 2)), ([[], []], (2, -1, 3), (2, 0, 3)), ([], (-1,), (0,)), ([], (-1, -1), (0, 0))],
)
def test_an_empty_list_has_the_declared_sizes_behind_it(
    value: Any, declared: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """It does not say them itself."""
    for datatype in ("BYTES", "INT32"):
        found, elements = tensors.from_result(value, datatype, declared)
        assert (found, len(elements)) == (shape, 0)


def test_texts_will_do_for_bytes() -> None:
    """In lists, and in numpy's arrays of texts and bytes."""
    for value in (["a", b"b"], np.array(["a", "b"]), np.array([b"a", b"b"])):
        assert tensors.from_result(value, "BYTES", (2,)) == ((2,), [b"a", b"b"])


@pytest.mark.parametrize(
    ("value", "datatype", "shape", "why"),
    [
        (np.zeros(3, "f8"), "FP32", (3,), "FP64"),
        (np.zeros(3, "c8"), "FP32", (3,), "elements of complex64"),
        (np.zeros(3, "M8[s]"), "INT64", (3,), "elements of datetime64"),
        (np.zeros(3, "f4"), "FP32", (4,), r"shape \[3\]"),
        (np.zeros((3, 1), "f4"), "FP32", (-1,), r"shape \[3, 1\]"),
        (RawTensor("bfloat16", (1,), b"ab"), "FP32", (1,), "a tensor of bfloat16"),
        (np.zeros(1, "u2"), "BF16", (1,), "UINT16"),
        ([1.5], "BF16", (1,), "no torch.bfloat16 tensor"),
        ([[1.0], [2.0, 3.0]], "FP32", (2, 1), "true shape"),
        (None, "FP32", (), "FP32 takes numbers"),
        ({"a": 1}, "FP32", (), "FP32 takes numbers"),
        ([300], "UINT8", (1,), "0 to 255"),
        (3, "BYTES", (), "neither bytes nor texts"),
    ],
)
def test_what_was_not_declared_is_told(value: Any, datatype: str, shape: tuple[int, ...], why: str) -> None:
    """A wrong dtype is not converted: it is a mistake, or loses digits."""
    with pytest.raises(Unfit, match=why):
        tensors.from_result(value, datatype, shape)
