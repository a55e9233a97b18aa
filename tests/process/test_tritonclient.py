"""tritonclient, unmodified, against real instances: each datatype in each form, beside a reference of our own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from tests.process.harness import Place
from tests.process.web import Web, free_address
from tests.unit.gateway_reference import DATATYPES, NUMPY_NAMES, SAMPLES, count, nest

pytest.importorskip("grpc_health")
http = pytest.importorskip("tritonclient.http")

from tritonclient import grpc  # noqa: E402  only where it is
from tritonclient.grpc import aio as grpc_aio  # noqa: E402
from tritonclient.http import aio as http_aio  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

HALF = ("FP16", "BF16")  # they have no JSON form
FLOATS = (*HALF, "FP32", "FP64")
NOT_FINITE = (float("inf"), float("-inf"), float("nan"), -0.0)
# By their declared kinds, the shapes of a row: of the sizes that are open, some are 0.
SHAPES = {"one": (), "row": (3,), "grid": (2, 3), "any": (5,), "pairs": (4, 2)}
EMPTY = {**SHAPES, "any": (0,), "pairs": (0, 2)}
BATCHES = (1, 3, 8)
# How inputs and outputs travel: all in binary, all in JSON, in turns, or (outputs) as the client has it by default.
FORMS = [
    ("binary", "binary"),
    ("binary", "json"),
    ("binary", "default"),
    ("json", "binary"),
    ("json", "json"),
    ("mixed", "mixed"),
]


class Column(NamedTuple):
    """One input of a batch. flat: the elements of each row."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    flat: list[list[Any]]

    @property
    def array(self) -> Any:
        """As clients of numpy have it."""
        found = np.empty(len(self.flat) * count(self.shape), dtype(self.datatype))
        found[:] = [each for row in self.flat for each in row]
        return found.reshape(len(self.flat), *self.shape)


class Front(NamedTuple):
    """One way to reach the model. ask: inputs and wished outputs in, the answer out."""

    module: ModuleType
    ask: Callable[..., Any]


def dtype(datatype: str) -> Any:
    """numpy's, as tritonclient takes it."""
    if datatype == "BYTES":
        return np.dtype(object)
    return np.dtype(ml_dtypes.bfloat16 if datatype == "BF16" else NUMPY_NAMES[datatype])


def columns(num_rows: int, shapes: dict[str, tuple[int, ...]]) -> list[Column]:
    """Every input, with values that differ from row to row."""
    dice = random.Random(num_rows)
    found = []
    for datatype in DATATYPES:
        values = (*SAMPLES[datatype], *(NOT_FINITE if datatype in FLOATS else ()))
        for kind, shape in shapes.items():
            flat = [[dice.choice(values) for _ in range(count(shape))] for _ in range(num_rows)]
            found.append(Column(f"{datatype}_{kind}", datatype, shape, flat))
    return found


def seen(column: Column, row: int) -> bytes:
    """What the model says of one row: the reference of what reaches it."""
    flat = column.flat[row]
    kind = {"BYTES": "bytes", "BF16": "torch torch.bfloat16"}.get(
        column.datatype, f"numpy {NUMPY_NAMES[column.datatype]}"
    )
    return f"{column.name} {kind} {nest(flat, column.shape) if count(column.shape) else empty(column.shape)!r}".encode()


def empty(shape: Sequence[int]) -> Any:
    """Nested lists without an element."""
    return [] if not shape[0] else [empty(shape[1:]) for _ in range(shape[0])]


def told(flat: Sequence[Any]) -> list[str]:
    """Elements that can be compared: NaN is no NaN's equal, and a text in JSON is the same as its bytes."""
    return [repr(each.encode() if isinstance(each, str) else each) for each in flat]


def is_binary(form: str, number: int, datatype: str) -> bool:
    """Whether a tensor travels so."""
    return datatype in HALF or form == "binary" or (form == "mixed" and number % 2 == 0)


def sent(module: ModuleType, given: Sequence[Column], form: str = "") -> list[Any]:
    """The client's inputs; form: of HTTP."""
    found = []
    for number, column in enumerate(given):
        options = {"binary_data": is_binary(form, number, column.datatype)} if form else {}
        wanted = module.InferInput(column.name, list(column.array.shape), column.datatype)
        found.append(wanted.set_data_from_numpy(column.array, **options))
    return found


def wished(module: ModuleType, given: Sequence[Column], form: str = "") -> list[Any]:
    """The client's outputs."""
    names = [*((f"{column.name}_back", column.datatype) for column in given), ("seen", "BYTES")]
    found = []
    for number, (name, datatype) in enumerate(names):
        options = {"binary_data": is_binary(form, number, datatype)} if form else {}
        found.append(module.InferRequestedOutput(name, **options))
    return found


def check(answer: Any, given: Sequence[Column]) -> None:
    """Every output is what the reference says, in datatype, shape, order and elements."""
    for column in given:
        found = answer.as_numpy(f"{column.name}_back")
        assert (found.shape, found.dtype) == (column.array.shape, dtype(column.datatype)), column.name
        backwards = [each for row in column.flat for each in reversed(row)]
        assert told(found.reshape(-1).tolist()) == told(backwards), column.name
    reports = answer.as_numpy("seen")
    for row in range(len(given[0].flat)):
        expected = sorted(seen(column, row) for column in given)
        assert told(reports[row].tolist()) == told(expected), row


# --- the instances -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mirror(shared_place: Place) -> Iterator[dict[str, Front]]:
    """The model that declares everything, by each client."""
    yield from fronts(shared_place, "tensors.py:Mirror")


@pytest.fixture(scope="module")
def plain(shared_place: Place) -> Iterator[dict[str, Front]]:
    """The model that declares nothing."""
    yield from fronts(shared_place, "plain.py:Echo")


def fronts(place: Place, target: str) -> Iterator[dict[str, Front]]:
    """Each client of an instance of its own."""
    address, name = free_address(), target.partition(":")[2]
    instance = place.up(target, f"--grpc={address}", name=name, http=True)
    web = "{}:{}".format(*Web(instance.url).address)

    def coroutine(module: ModuleType, url: str) -> Callable[..., Any]:
        async def ask(*given: Any, **options: Any) -> Any:
            async with module.InferenceServerClient(url) as client:
                return await client.infer(*given, **options)

        return lambda *given, **options: asyncio.run(ask(*given, **options))

    with http.InferenceServerClient(web) as over_http, grpc.InferenceServerClient(address) as over_grpc:
        yield {
            "http": Front(http, over_http.infer),
            "http.aio": Front(http, coroutine(http_aio, web)),
            "grpc": Front(grpc, over_grpc.infer),
            "grpc.aio": Front(grpc, coroutine(grpc_aio, address)),
        }


# --- the matrix ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", BATCHES)
@pytest.mark.parametrize(("sends", "takes"), FORMS)
@pytest.mark.parametrize("name", ["http", "http.aio"])
def test_every_tensor_over_http(mirror: dict[str, Front], name: str, sends: str, takes: str, num_rows: int) -> None:
    """Each datatype, shape and size of a batch, in binary and in JSON both ways; and open sizes that are 0."""
    front = mirror[name]
    for shapes in (SHAPES, EMPTY) if num_rows == 3 else (SHAPES,):
        given = columns(num_rows, shapes)
        wishes = None if takes == "default" else wished(http, given, takes)
        answer = front.ask("Mirror", sent(http, given, sends), outputs=wishes, request_id=f"{num_rows}")
        assert answer.get_response()["id"] == f"{num_rows}"
        check(answer, given)


@pytest.mark.parametrize("num_rows", BATCHES)
@pytest.mark.parametrize("name", ["grpc", "grpc.aio"])
def test_every_tensor_over_grpc(mirror: dict[str, Front], name: str, num_rows: int) -> None:
    """The same."""
    for shapes in (SHAPES, EMPTY) if num_rows == 3 else (SHAPES,):
        given = columns(num_rows, shapes)
        for wishes in (None, wished(grpc, given)):
            answer = mirror[name].ask("Mirror", sent(grpc, given), outputs=wishes, request_id=f"{num_rows}")
            assert answer.get_response().id == f"{num_rows}"
            check(answer, given)


@pytest.mark.parametrize("num_rows", BATCHES)
@pytest.mark.parametrize("name", ["http", "http.aio", "grpc", "grpc.aio"])
def test_a_model_that_declares_nothing_takes_json_texts(plain: dict[str, Front], name: str, num_rows: int) -> None:
    """And gives them."""
    module = plain[name].module
    texts = [b'{"a":[1,null,"%d"]}' % number for number in range(num_rows)]
    answer = plain[name].ask("Echo", sent(module, [Column("input", "BYTES", (), [[each] for each in texts])]))
    assert answer.as_numpy("output").tolist() == texts


# --- wrong requests ------------------------------------------------------------------------------------------------

ROW = Column("INT8_row", "INT8", (3,), [[1, 2, 3]])
WRONG: dict[str, tuple[list[Column], dict[str, Any], int, str]] = {
    "another datatype": ([ROW._replace(datatype="INT16")], {}, 400, "data-type is 'INT16'"),
    "another shape": ([ROW._replace(shape=(1, 3))], {}, 400, "unexpected shape"),
    "an unknown input": ([ROW._replace(name="none")], {}, 400, "unexpected inference input 'none'"),
    "too few inputs": ([ROW], {}, 400, "expected 70 inputs but got 1"),
    "an input twice": ([ROW, ROW], {}, 400, "already exists"),
    "batches that differ": (
        [ROW, Column("INT8_one", "INT8", (), [[1], [2]])], {}, 400, "batch size does not match",
    ),
    "too large a batch": ([ROW._replace(flat=[[1, 2, 3]] * 1025)], {}, 400, "batch-size must be 1 to 1024"),
    "an unknown version": ([ROW], {"model_version": "2"}, 404, "version 2 is not found"),
    "a sequence": ([ROW], {"sequence_id": 7}, 400, "keeps no state"),
}  # fmt: skip
STATUSES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND"}


@pytest.mark.parametrize("name", ["http", "http.aio", "grpc", "grpc.aio"])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_request_is_refused_in_the_protocols_form(mirror: dict[str, Front], name: str, what: str) -> None:
    """By its status and in one line, which the client raises."""
    given, options, status, says = WRONG[what]
    module = mirror[name].module
    with pytest.raises(InferenceServerException) as caught:
        mirror[name].ask("Mirror", sent(module, given), **options)
    assert says in caught.value.message()
    assert "\n" not in caught.value.message()
    assert caught.value.status() == (f"StatusCode.{STATUSES[status]}" if module is grpc else str(status))


@pytest.mark.parametrize("name", ["http", "http.aio", "grpc", "grpc.aio"])
def test_an_unknown_model_or_output_is_refused(mirror: dict[str, Front], name: str) -> None:
    """Half floats in JSON, too, which only HTTP can ask for."""
    front = mirror[name]
    given = columns(1, SHAPES)
    with pytest.raises(InferenceServerException, match="unknown model: 'none'"):
        front.ask("none", sent(front.module, given))
    with pytest.raises(InferenceServerException, match="unexpected inference output 'none'"):
        front.ask("Mirror", sent(front.module, given), outputs=[front.module.InferRequestedOutput("none")])
    if front.module is http:
        wish = http.InferRequestedOutput("BF16_one_back", binary_data=False)
        with pytest.raises(InferenceServerException, match="sending BF16 data via JSON is not supported"):
            front.ask("Mirror", sent(front.module, given), outputs=[wish])
