"""One inference, whichever protocol brought it: a model's declaration, and a batch that was checked against it.

A batch of N becomes N payloads, each of them one request to the balancer. A model that declares no inputs has one,
named "input": a JSON text for each row, of which the model gets the value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from orch.model import MAX_BATCH_SIZE, Tensor
from orch_gateway import plain
from orch_gateway.faults import BadRequest, NotFound
from orch_gateway.tensors import BINARY_ONLY, Elements, Shape, Unfit, fits, rows

JSON_INPUT = Tensor("input", "BYTES", ())
JSON_OUTPUT = Tensor("output", "BYTES", ())

# Of one request, whatever the model's own batches are: each row is a request, which costs a header of its own.
MAX_ROWS = MAX_BATCH_SIZE
# Of a tensor with a dimension of 0, counting that as 1: its shape costs no bytes, so these are not bounded by a body.
MAX_EMPTY = 2**20
MAX_UINT64 = 2**64 - 1
MICROSECONDS = 1_000_000
MAX_TIMEOUT_S = 7 * 24 * 3600.0  # a longer one is none in practice, and would not fit the wire's clock

PriorityName = Literal["high", "normal", "low"]
# Triton's: 1 is the highest, 0 the model's default, which of three levels is the middle one.
PRIORITIES: Mapping[int, PriorityName] = {0: "normal", 1: "high", 2: "normal"}


@dataclass(frozen=True)
class ModelSpec:
    """What clients may know of a model. inputs, outputs: as declared, of one row. streams: it answers in parts."""

    name: str
    versions: tuple[str, ...] = ("1",)
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    max_batch_size: int = 1
    max_batch_wait_s: float = 0.0
    streams: bool = False

    @property
    def takes(self) -> tuple[Tensor, ...]:
        """Its inputs to the protocol."""
        return self.inputs or (JSON_INPUT,)

    @property
    def gives(self) -> tuple[Tensor, ...]:
        """Its outputs to the protocol."""
        return self.outputs or (JSON_OUTPUT,)

    @functools.cached_property
    def all_binary(self) -> tuple[Wanted, ...]:
        """All of its outputs, in their binary form."""
        return wanted(self, (), binary=True)

    def version(self, wanted: str = "") -> str:
        """The version that answers a request for `wanted`, where "" is the newest.

        Raises:
            NotFound: there is no such version.
        """
        if wanted and wanted not in self.versions:
            raise NotFound(f"Request for unknown model: '{self.name}' version {wanted} is not found")
        return wanted or self.versions[-1]


def model_named(specs: Iterable[ModelSpec], name: str) -> ModelSpec:
    """The model of that name.

    Raises:
        NotFound: there is none.
    """
    for spec in specs:
        if spec.name == name:
            return spec
    raise NotFound(f"Request for unknown model: '{name}' is not found")


class Given(NamedTuple):
    """An input as it was sent. shape: with the batch dimension."""

    name: str
    datatype: str
    shape: Shape
    elements: Elements


class Wanted(NamedTuple):
    """An output that was asked for. classes: how many of the largest values, as texts; 0: the tensor itself."""

    tensor: Tensor
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Inference:
    """A checked request. payloads: one for each row, for the balancer. timeout_s: None for no deadline."""

    model: str
    version: str
    payloads: Sequence[Any]
    outputs: tuple[Wanted, ...]
    id: str = ""
    priority: PriorityName = "normal"
    timeout_s: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def check_input(spec: ModelSpec, name: str, datatype: str, shape: Sequence[Any], taken: Sequence[Given]) -> None:
    """Whether the model takes an input of this name, datatype and shape, and at this place of the request.

    Raises:
        BadRequest: it does not. To be called before the elements are read, whose number follows from the shape.
    """
    tensor = next((tensor for tensor in spec.takes if tensor.name == name), None)
    if tensor is None:
        raise BadRequest(f"unexpected inference input '{name}' for model '{spec.name}', {_has(spec.takes)}")
    if any(given.name == name for given in taken):
        raise BadRequest(f"input '{name}' already exists in request for model '{spec.name}'")
    if datatype != tensor.datatype:
        raise BadRequest(
            f"inference input '{name}' data-type is '{datatype}', but model '{spec.name}' expects '{tensor.datatype}'"
        )
    whole = f"[{','.join(map(str, (-1, *tensor.shape)))}]"
    if (
        any(type(size) is not int or size < 0 for size in shape)
        or not shape
        or not fits(tuple(shape[1:]), tensor.shape)
    ):
        raise BadRequest(
            f"unexpected shape for input '{name}' for model '{spec.name}'. Expected {whole}, got {list(shape)}. "
            "The first dimension is the batch"
        )
    num_rows = shape[0]
    if not 1 <= num_rows <= MAX_ROWS:
        raise BadRequest(f"inference request batch-size must be 1 to {MAX_ROWS} for '{spec.name}', got {num_rows}")
    if taken and taken[0].shape[0] != num_rows:
        raise BadRequest(
            f"input '{name}' batch size does not match other inputs for '{spec.name}': "
            f"{num_rows} and {taken[0].shape[0]} of '{taken[0].name}'"
        )
    if 0 in shape and math.prod(size or 1 for size in shape) > MAX_EMPTY:
        raise BadRequest(f"shape {list(shape)} for input '{name}' is too large for an empty tensor")


def payloads_of(spec: ModelSpec, given: Sequence[Given]) -> list[Any]:
    """One payload for each row, of inputs that passed `check_input`.

    Raises:
        BadRequest: an input is missing, or a row of a model that declares none is no JSON.
    """
    missing = sorted({tensor.name for tensor in spec.takes} - {each.name for each in given})
    if missing:
        raise BadRequest(
            f"expected {len(spec.takes)} inputs but got {len(given)} inputs for model '{spec.name}'. "
            f"Missing: {', '.join(missing)}"
        )
    if not spec.inputs:
        return [_value(element, i, spec) for i, element in enumerate(given[0].elements)]
    columns = [(each.name, rows(each.elements, each.datatype, each.shape)) for each in given]
    return [{name: column[i] for name, column in columns} for i in range(given[0].shape[0])]


def wanted(spec: ModelSpec, asked: Sequence[tuple[str, bool, int]], *, binary: bool) -> tuple[Wanted, ...]:
    """The outputs asked for, each as name, binary and classes; all of the model's if none is named.

    Raises:
        BadRequest: there is no such output, or it cannot be answered in that form.
    """
    known = {tensor.name: tensor for tensor in spec.gives}
    found: list[Wanted] = []
    for name, is_binary, classes in asked or [(name, binary, 0) for name in known]:
        if name not in known:
            raise BadRequest(f"unexpected inference output '{name}' for model '{spec.name}', {_has(spec.gives)}")
        tensor = known[name]
        if any(wish.tensor is tensor for wish in found):
            raise BadRequest(f"output '{name}' is requested more than once")
        if tensor.datatype in BINARY_ONLY and not is_binary and not classes:
            raise BadRequest(
                f"sending {tensor.datatype} data via JSON is not supported. Please use the binary data format for "
                f"output '{name}'"
            )
        if classes and tensor.datatype == "BYTES":
            raise BadRequest(f"classification is not supported for output '{name}' of datatype BYTES")
        found.append(Wanted(tensor, is_binary, classes))
    return tuple(found)


def scheduling(parameters: Mapping[str, Any], model: str) -> tuple[PriorityName, float | None]:
    """The priority and the time-out in seconds that a request's parameters ask for.

    Raises:
        BadRequest: they are no such numbers, or ask for a sequence, which no model of orch's has.
    """
    if parameters.get("sequence_id") or parameters.get("sequence_start") or parameters.get("sequence_end"):
        raise BadRequest(f"model '{model}' keeps no state between requests: leave out sequence_id, _start and _end")
    priority, timeout = unsigned(parameters, "priority"), unsigned(parameters, "timeout")
    return PRIORITIES.get(priority, "low"), min(timeout / MICROSECONDS, MAX_TIMEOUT_S) if timeout else None


def unsigned(parameters: Mapping[str, Any], name: str) -> int:
    """A parameter that is a u64; 0 if it is not given."""
    value = parameters.get(name, 0)
    if type(value) is not int or not 0 <= value <= MAX_UINT64:
        raise BadRequest(f"Unable to parse '{name}': it must be a whole number of 0 and more")
    return value


def unfit(err: Unfit, given: str, model: str) -> BadRequest:
    """The error of an input whose elements are not what they are said to be."""
    return BadRequest(f"{err} for input '{given}' for model '{model}'")


def _has(tensors: Sequence[Tensor]) -> str:
    return "which has " + ", ".join(f"'{tensor.name}'" for tensor in tensors)


def _value(element: Any, i: int, spec: ModelSpec) -> Any:
    try:
        return plain.loads(element)
    except ValueError as err:
        raise BadRequest(
            f"element {i} of input '{JSON_INPUT.name}' is no JSON ({err}); model '{spec.name}' declares no inputs, "
            "so each element is a JSON value"
        ) from err
