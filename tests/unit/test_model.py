"""What a model declares to clients of other protocols."""

from __future__ import annotations

from typing import Any

import pytest

from orch import Model, Tensor
from orch.errors import ConfigError
from orch.model import DATATYPES, MAX_DIMENSIONS, MAX_TENSORS, declared


def test_a_model_declares_nothing_unless_it_says_so() -> None:
    """Its clients send and get JSON."""
    assert Model.inputs == Model.outputs == ()
    nothing: tuple[Any, ...] = ((), [], None)
    assert [declared(each, "inputs") for each in nothing] == [(), (), ()]


@pytest.mark.parametrize("datatype", DATATYPES)
def test_each_datatype_of_the_protocol_may_be_declared(datatype: str) -> None:
    """With sizes of 1 and more, -1 for any, or no dimension at all."""
    tensors = (Tensor("a", datatype, (3, -1)), Tensor("b", datatype))
    assert declared(tensors, "inputs") == tensors


def test_plain_lists_are_a_declaration_too() -> None:
    """As they arrive from a worker, through JSON."""
    assert declared([["x", "FP32", [2, -1]]], "inputs") == (Tensor("x", "FP32", (2, -1)),)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (Tensor("x", "FP32"), "must be a tuple of orch.Tensor"),
        ("x", "inputs is 'x'; it must be a tuple of orch.Tensor(name, datatype, shape)"),
        ({"x": "FP32"}, "must be a tuple of orch.Tensor"),
        (("x", "FP32", (1,)), "inputs[0] is 'x'; it must be orch.Tensor"),
        ([("x", "FP32")], "inputs[0] is ('x', 'FP32'); it must be orch.Tensor(name, datatype, shape)"),
        ([Tensor("", "FP32")], "inputs[0]: name is ''"),
        ([Tensor("a\n", "FP32")], r"inputs[0]: name is 'a\n'"),
        ([Tensor(3, "FP32")], "inputs[0]: name is 3"),  # type: ignore[arg-type]
        ([Tensor("x", "float32")], "inputs[0]: datatype is 'float32'; it must be one of BOOL, UINT8"),
        ([Tensor("x", [])], "inputs[0]: datatype is []"),  # type: ignore[arg-type]
        ([Tensor("x", "FP32", 3)], "inputs[0]: shape is 3; it must be a tuple"),  # type: ignore[arg-type]
        ([Tensor("x", "FP32", (0,))], "inputs[0]: shape is (0,)"),
        ([Tensor("x", "FP32", (-2,))], "inputs[0]: shape is (-2,)"),
        ([Tensor("x", "FP32", (True,))], "inputs[0]: shape is (True,)"),
        ([Tensor("x", "FP32", (1,) * (MAX_DIMENSIONS + 1))], f"at most {MAX_DIMENSIONS} sizes"),
        ([Tensor("x", "FP32"), Tensor("x", "FP64")], "inputs has 'x' twice"),
        ([Tensor(f"x{i}", "FP32") for i in range(MAX_TENSORS + 1)], f"at most {MAX_TENSORS}"),
    ],
)
def test_what_is_no_declaration_is_told_in_one_line(tensors: Any, message: str) -> None:
    """With the value, and what it must be."""
    with pytest.raises(ConfigError) as caught:
        declared(tensors, "inputs")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
