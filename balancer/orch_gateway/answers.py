"""From the results of a batch's rows to its output tensors, checked against what the model declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from orch.model import Tensor
from orch_gateway import plain
from orch_gateway.faults import BadResult
from orch_gateway.inference import Inference, ModelSpec, Wanted
from orch_gateway.tensors import Elements, Shape, Unfit, from_result


class Output(NamedTuple):
    """An output tensor. shape: with the batch dimension. rows: the elements of each row, which follow each other."""

    name: str
    datatype: str
    shape: Shape
    rows: Sequence[Elements]
    binary: bool


def join(inference: Inference, spec: ModelSpec, results: Sequence[Any]) -> list[Output]:
    """The outputs that were asked for, in that order. results: one for each row.

    Raises:
        BadResult: a result is not what the model declares, or the rows cannot be stacked.
    """
    return [_output(wish, spec, results) for wish in inference.outputs]


def _output(wish: Wanted, spec: ModelSpec, results: Sequence[Any]) -> Output:
    tensor = wish.tensor
    shapes: list[Shape] = []
    rows: list[Elements] = []
    for i, result in enumerate(results):
        try:
            shape, elements = from_result(_pick(result, tensor, spec), tensor.datatype, tensor.shape)
        except Unfit as err:
            raise BadResult(
                f"model '{spec.name}' returned {err} for output '{tensor.name}' in row {i}; it declares "
                f"{tensor.datatype} {list(tensor.shape)}"
            ) from err
        shapes.append(shape)
        rows.append(elements)
    if len(set(shapes)) > 1:
        different = ", ".join(str(list(shape)) for shape in sorted(set(shapes)))
        raise BadResult(
            f"model '{spec.name}' returned rows of shapes {different} for output '{tensor.name}', which do not stack; "
            "send such rows in requests of their own"
        )
    shape = shapes[0]
    if not wish.classes:
        return Output(tensor.name, tensor.datatype, (len(rows), *shape), rows, wish.binary)
    texts: list[Elements] = [_classes(np.asarray(row), tensor.datatype, wish.classes) for row in rows]
    return Output(tensor.name, "BYTES", (len(rows), len(texts[0])), texts, wish.binary)


def _pick(result: Any, tensor: Tensor, spec: ModelSpec) -> Any:
    """One output's part of a row's result: of a dict by its name; a single output may come without a dict."""
    if not spec.outputs:
        try:
            return plain.dumps(result)
        except ValueError as err:
            raise BadResult(
                f"the result of model '{spec.name}' cannot be said in JSON: {err}; return what can, or declare outputs"
            ) from err
    if isinstance(result, Mapping):
        if tensor.name in result:
            return result[tensor.name]
        raise Unfit(f"only {sorted(map(str, result))}, nothing,")
    if len(spec.outputs) == 1:
        return result
    raise Unfit(f"a {type(result).__name__}, no dict of {len(spec.outputs)} outputs,")


def _classes(row: Any, datatype: str, count: int) -> list[bytes]:
    """Triton's classification extension: `value:index` of the largest values, the largest first."""
    values = plain.floats(row) if datatype == "BF16" else row
    order = np.argsort(-values.astype(np.float64), kind="stable")[:count].tolist()
    form = "{:f}:{}" if values.dtype.kind == "f" else "{:d}:{}"
    return [form.format(values[i].item(), i).encode() for i in order]
