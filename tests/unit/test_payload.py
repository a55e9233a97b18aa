"""Payload trees: what is sent is what arrives, large arrays are not copied, and what cannot travel says where it is."""

from __future__ import annotations

import base64
import enum
import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from orch import payload
from orch.errors import RemoteProtocolError
from orch.wire import FRAME_BYTES, MAX_FRAMES

ROOT = Path(__file__).resolve().parents[2]

TORCH_DTYPES = sorted(
    {str(dtype) for name in dir(torch) if isinstance(dtype := getattr(torch, name), torch.dtype)}
    - {f"torch.{name}" for name in ("qint8", "qint32", "quint8", "quint4x2", "quint2x4")}
)


def arrived(value: Any) -> Any:
    """What a peer reads of a payload; frames arrive in writable memory of its own."""
    body, frames = payload.encode(value)
    return payload.decode(body, [bytearray(frame) for frame in frames])


def same(left: Any, right: Any) -> bool:
    """Equal in type and value, all the way down; nan is nan, and -0.0 is not 0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return (
            math.isnan(right)
            if math.isnan(left)
            else (left, math.copysign(1, left)) == (right, math.copysign(1, right))
        )
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (np.ndarray, np.generic)):
        return bool(left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes())
    return bool(left == right)


# --- trees ---------------------------------------------------------------------------------------------------------

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**2000), 2**2000)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
keys = st.recursive(leaves, lambda inner: st.tuples(inner, inner), max_leaves=3)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=150)
@given(trees)
def test_a_tree_arrives_as_it_was_sent(tree: Any) -> None:
    """Every type, every size of int, every kind of key; a tuple is not a list, and True is not 1."""
    assert same(arrived(tree), tree)


@pytest.mark.parametrize("bits", [62, 63, 64, 65, 127, 200_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_int_of_any_size_arrives(bits: int, sign: int) -> None:
    """Beyond 64 bits an int travels as its bytes."""
    around = [sign * 2**bits - 1, sign * 2**bits, sign * 2**bits + 1]
    assert arrived(around) == around


class Fruit(enum.StrEnum):
    APPLE = "apple"


class Shout(str, enum.Enum):  # noqa: UP042  its str() is not its text, which is the point
    LOUD = "loud"


class Level(enum.IntEnum):
    TOP = 3


Point = namedtuple("Point", "x y")  # noqa: PYI024  a plain one, as users write them


@pytest.mark.parametrize(
    ("sent", "plain"),
    [
        (OrderedDict(a=1), {"a": 1}),
        (Point(1, 2), (1, 2)),
        (Fruit.APPLE, "apple"),
        (Shout.LOUD, "loud"),
        (Level.TOP, 3),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (np.str_(""), ""),
        (np.str_("a\0"), "a\0"),
        (np.bytes_(b"a\0"), b"a\0"),
    ],
)
def test_a_kind_of_a_plain_type_arrives_as_the_plain_type(sent: Any, plain: Any) -> None:
    """Its value is kept, its class stays at home."""
    assert same(arrived([sent]), [plain])


def test_lists_may_nest_deeper_than_tuples() -> None:
    """Tuples recurse in the reader, so their depth is bounded well below the end of its stack."""
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    assert arrived(deep) == deep
    tuples: Any = ()
    for _ in range(payload.MAX_DEPTH - 1):
        tuples = (tuples,)
    assert arrived(tuples) == tuples
    with pytest.raises(TypeError, match="nested deeper than"):
        payload.encode(((tuples,),))


def test_a_large_tree_moves_into_a_frame_as_a_whole() -> None:
    """The balancer copies heads; what is large never lies in one."""
    tree = {"texts": ["sentence"] * 20_000, "array": np.arange(FRAME_BYTES)}
    body, frames = payload.encode(tree)
    assert len(body) < 10
    assert len(frames) == 2
    assert same(arrived(tree), tree)


def test_large_bytes_are_a_frame_of_their_own_and_not_copied() -> None:
    """A payload that is just bytes, an image say, costs nothing to pack."""
    data = bytes(range(256)) * 256
    body, frames = payload.encode(data)
    assert len(body) < 10
    assert frames[0].obj is data
    assert arrived(data) == data


@pytest.mark.parametrize("size", [10, FRAME_BYTES])
def test_a_view_of_bytes_travels_as_bytes(size: int) -> None:
    """So that bytes need not be copied out of where they were read to."""
    data = bytearray(range(10)) * (size // 10 + 1)
    body, frames = payload.encode(memoryview(data))
    assert payload.decode(body, frames) == data
    assert [memoryview(frame).obj is data for frame in frames] == [True] * (size >= FRAME_BYTES)


@pytest.mark.parametrize("size", [10, FRAME_BYTES])
def test_a_view_with_gaps_is_refused(size: int) -> None:
    """Here, and not when it is sent, among others."""
    with pytest.raises(TypeError, match="contiguous"):
        payload.encode(memoryview(bytes(2 * size))[::2])


# --- numpy ---------------------------------------------------------------------------------------------------------

scalars = npst.scalar_dtypes() | npst.unicode_string_dtypes() | npst.byte_string_dtypes()
dtypes = scalars | npst.array_dtypes(scalars, max_size=3, allow_subarrays=True)
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@settings(max_examples=120)
@given(npst.arrays(dtypes, shapes))
def test_an_array_of_any_fixed_size_dtype_arrives(array: np.ndarray[Any, Any]) -> None:
    """Complex, half, dates, text, structures, either byte order; no dimensions, or no elements."""
    assert same(arrived([array]), [array])


@settings(max_examples=60)
@given(npst.arrays(scalars, npst.array_shapes(max_dims=3, max_side=5)), st.data())
def test_a_view_of_any_layout_arrives_as_the_array_it_shows(array: np.ndarray[Any, Any], data: st.DataObject) -> None:
    """Reversed, stepped, cut and transposed."""
    view = array[data.draw(npst.basic_indices(array.shape))]
    if isinstance(view, np.ndarray):
        assert same(arrived([view.T]), [view.T.copy(order="C")])


@settings(max_examples=60)
@given(npst.arrays(npst.scalar_dtypes(), ()))
def test_a_numpy_scalar_arrives_as_a_numpy_scalar(array: np.ndarray[Any, Any]) -> None:
    """With its type, which a float would forget."""
    assert same(arrived([array[()]]), [array[()]])


@pytest.mark.parametrize(
    "dtype", ["<f4", ">f4", "<f2", "<c16", "<f16", "<M8[us]", "<m8[D]", "|b1", "<U3", "|S5", "|V7", ">i8", "<u2"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (20_000,)])
def test_every_kind_of_dtype_arrives_small_and_large(dtype: str, shape: tuple[int, ...]) -> None:
    """Inside the body, and as a frame."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    array = np.frombuffer(bytes(i % 2 for i in range(size)), dtype).reshape(shape) if size else np.zeros(shape, dtype)
    assert same(arrived(array), array)


def test_a_structure_with_padding_and_arrays_inside_arrives() -> None:
    """A record as C lays it out."""
    dtype = np.dtype([("a", "u1"), ("b", "<f8", (2, 3)), ("c", [("d", ">i2")])], align=True)
    array = np.zeros(4, dtype)
    array["b"] = np.arange(24).reshape(4, 2, 3)
    found = arrived(array)
    assert found.dtype == dtype
    assert (found == array).all()


class Square(np.ndarray[Any, Any]):
    """Never has fewer than two dimensions, as np.matrix."""

    def __array_finalize__(self, parent: object) -> None:
        if self.ndim == 1:
            self.shape = (1, *self.shape)


@pytest.mark.parametrize("array", [np.arange(4).reshape(2, 2).view(Square), np.zeros(2, "i4,f8").view(np.recarray)])
def test_a_subclass_of_an_array_arrives_as_an_array(array: np.ndarray[Any, Any]) -> None:
    """Its elements and its shape are kept."""
    found = arrived(array)
    assert type(found) is np.ndarray
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes()


def test_large_arrays_that_differ_in_their_dtype_alone_are_told_apart() -> None:
    """What is remembered of one is not taken for another's: each comes again, behind all the others."""
    shape = (2, FRAME_BYTES)
    dtypes = ["<i2", ">i2", "<u2", "<f2", "|V2", "|S2", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "|i1", "|b1"]
    dtypes += [f"{order}{kind}8[{unit}]" for order in "<>" for kind in "Mm" for unit in ("s", "ms", "7D", "W")]
    dtypes += [[("a", "<i2")], [("b", "<i2")], np.dtype({"names": ["a"], "formats": ["<i2"], "itemsize": 4})]
    arrays = [np.zeros(shape, dtype) for dtype in dtypes]
    for array in [*arrays, *reversed(arrays)]:
        assert same(arrived(array), array)


@pytest.mark.parametrize("dtype", ["<f4", ">i2", "<M8[us]", ml_dtypes.bfloat16, "i4,f8"])
def test_a_large_view_of_any_layout_arrives_as_the_array_it_shows(dtype: Any) -> None:
    """As one payload of its own: what can be copied is left alone, and what has gaps is packed."""
    plain = np.arange(100_000).astype(np.dtype(dtype)).reshape(100, 1000)
    locked = plain.copy()
    locked.flags.writeable = False
    for view in (plain.T, np.asfortranarray(plain), plain[::-1, ::-1], plain[:, ::2], plain[3:], locked, plain[:0]):
        assert same(arrived(view), view.copy(order="C"))


@pytest.mark.parametrize("kind", [Square, np.matrix])
def test_the_frame_of_a_large_subclass_is_its_bytes(kind: type[np.ndarray[Any, Any]]) -> None:
    """Whoever asks a frame for its length gets its bytes, whatever the array has for dimensions."""
    array = np.arange(100_000.0).reshape(1, -1).view(kind)
    body, (frame,) = payload.encode(array)
    assert len(frame) == array.nbytes
    assert np.shares_memory(np.frombuffer(frame), array)
    assert same(payload.decode(body, [frame]), array.view(np.ndarray))


def test_a_large_array_is_a_frame_of_the_callers_own_memory() -> None:
    """Nothing is copied on the way out, nor on the way in."""
    array = np.arange(100_000.0)
    _, frames = payload.encode({"image": array})
    assert len(frames) == 1
    assert np.shares_memory(np.frombuffer(frames[0]), array)
    received = bytearray(frames[0])
    body, _ = payload.encode({"image": array})
    found = payload.decode(body, [received])["image"]
    assert np.shares_memory(found, np.frombuffer(received))
    assert found.flags.writeable


def test_an_array_below_64_kib_lies_inline() -> None:
    """A frame of its own would cost more than the copy."""
    assert len(payload.encode(np.zeros(FRAME_BYTES - 100, np.uint8))[1]) == 0
    assert len(payload.encode(np.zeros(FRAME_BYTES, np.uint8))[1]) == 1


def test_packing_a_hundred_megabytes_allocates_next_to_nothing() -> None:
    """Whatever its size, an array costs its description."""
    array = np.zeros(100_000_000, np.uint8)
    tracemalloc.start()
    try:
        body, frames = payload.encode([array, array])
        found = payload.decode(body, [*frames])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert np.shares_memory(found[1], array)


def test_more_large_arrays_than_frames_share_the_last_one() -> None:
    """A message owns at most 64 frames; what finds no frame travels in the tree, which keeps one for itself."""
    arrays = [np.full(FRAME_BYTES, i, np.uint8) for i in range(MAX_FRAMES + 5)]
    body, frames = payload.encode(arrays)
    assert len(frames) == MAX_FRAMES
    assert len(body) < 10
    assert same(arrived(arrays), arrays)


def test_a_payload_has_the_bytes_of_its_body_and_its_frames() -> None:
    """What limits are compared with, whatever the items of a buffer are."""
    assert payload.nbytes(b"abc", (np.zeros(10).data, b"12")) == 3 + 80 + 2


# --- torch ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", TORCH_DTYPES)
@pytest.mark.parametrize("num_bytes", [0, 32, FRAME_BYTES])
def test_a_tensor_of_every_dtype_arrives(name: str, num_bytes: int) -> None:
    """bfloat16 and the eight-bit floats too: a tensor travels as its bytes."""
    dtype = getattr(torch, name.removeprefix("torch."))
    data = torch.arange(num_bytes, dtype=torch.int32).to(torch.uint8).fmod(2)  # ones and zeros are valid in all of them
    tensor = data.view(dtype).reshape(2, -1) if num_bytes else torch.empty((2, 0), dtype=dtype)
    found = arrived([tensor])[0]
    assert found.dtype == dtype
    assert found.shape == tensor.shape
    if num_bytes:
        assert torch.equal(found.reshape(-1).view(torch.uint8), data)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.arange(12).reshape(3, 4).T,
        torch.arange(12.0)[::3],
        torch.ones(3, requires_grad=True),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([1 + 2j]).conj().imag,
        torch.nn.Parameter(torch.ones(2)),
        torch.zeros(3).expand(2, 3),
    ],
)
def test_a_tensor_arrives_as_the_values_it_shows(tensor: torch.Tensor) -> None:
    """Strides, gradients and lazy conjugation stay at home."""
    found = arrived(tensor)
    assert type(found) is torch.Tensor
    assert not found.requires_grad
    assert torch.equal(found, tensor.detach())


def test_a_large_tensor_is_a_frame_of_the_callers_own_memory() -> None:
    """As an array is."""
    tensor = torch.zeros(100_000)
    _, frames = payload.encode((tensor,))
    assert np.shares_memory(np.frombuffer(frames[0], np.float32), tensor.numpy())


WITHOUT_TORCH = """
import base64, importlib.abc, json, sys, warnings

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocker())
warnings.simplefilter("error")
import numpy as np
from orch import payload
from orch.errors import RemoteProtocolError

answers = {}
for name, (body, frames) in json.load(sys.stdin).items():
    try:
        found = payload.decode(base64.b64decode(body), [base64.b64decode(frame) for frame in frames])
        assert type(found) is np.ndarray
        answers[name] = [str(found.dtype), list(found.shape), found.reshape(-1).tolist()]
    except RemoteProtocolError as err:
        answers[name] = str(err)
json.dump(answers, sys.stdout)
"""


def python(program: str, stdin: str = "") -> Any:
    """What a fresh interpreter prints as JSON."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("orchestrator", "worker", "balancer"))
    child = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        input=stdin,
        capture_output=True,
        check=False,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


LEAVES_TORCH_OUT = """
import base64, json, sys
from orch import payload

payload.leave_torch_out()
answers = {}
for name, (body, frames) in json.load(sys.stdin).items():
    found = payload.decode(base64.b64decode(body), [base64.b64decode(frame) for frame in frames])
    body, frames = payload.encode({"back": found})
    sent = [base64.b64encode(part).decode() for part in (body, *frames)]
    answers[name] = [type(found).__name__, str(found.dtype), list(found.shape), sent]
assert "torch" not in sys.modules
json.dump(answers, sys.stdout)
"""


def test_a_process_that_leaves_torch_out_passes_tensors_on() -> None:
    """bfloat16 stays bfloat16 on its way in and out, small, large, empty and without dimensions."""
    tensors = {
        "small": torch.tensor([[0.0, -1.5, float("inf")]]).to(torch.bfloat16),
        "large": torch.arange(40_000).to(torch.bfloat16),
        "empty": torch.zeros((0, 3), dtype=torch.bfloat16),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "float32": torch.tensor([0.5]),
    }
    sent = {}
    for name, tensor in tensors.items():
        body, frames = payload.encode(tensor)
        sent[name] = [as_text(body), [as_text(frame) for frame in frames]]
    found = python(LEAVES_TORCH_OUT, json.dumps(sent))
    assert found["float32"][:3] == ["ndarray", "float32", [1]]
    for name in ("small", "large", "empty", "scalar"):
        assert found[name][:3] == ["RawTensor", "bfloat16", list(tensors[name].shape)]
        passed_on = [base64.b64decode(part) for part in found[name][3]]
        back = payload.decode(passed_on[0], [bytearray(frame) for frame in passed_on[1:]])["back"]
        assert back.dtype == torch.bfloat16
        assert torch.equal(back, tensors[name])


def test_a_raw_tensor_is_not_copied_and_arrives_as_a_tensor() -> None:
    """Whatever buffer holds its bytes."""
    bits = np.arange(100_000, dtype="<u2")
    _, frames = payload.encode([payload.RawTensor("bfloat16", (100_000,), bits.data)])
    assert np.shares_memory(np.frombuffer(frames[0], np.uint16), bits)
    found = arrived(payload.RawTensor("bfloat16", (2, 1), b"\x80\x3f\xc0\x3f"))
    assert (found.dtype, found.tolist()) == (torch.bfloat16, [[1.0], [1.5]])


def test_where_torch_is_not_installed_a_tensor_arrives_as_an_array() -> None:
    """bfloat16 as float32, exactly; what numpy has no dtype for is refused."""
    values = torch.tensor([[0.0, -1.5, 3.140625], [1e38, -1e-38, float("inf")]])
    tensors = {
        "bfloat16": values.to(torch.bfloat16),
        "large bfloat16": torch.arange(40_000).to(torch.bfloat16),
        "empty bfloat16": torch.zeros((0, 3), dtype=torch.bfloat16),
        "float16": torch.tensor([[0.5]], dtype=torch.float16),
        "bool": torch.tensor([True, False]),
        "uint16": torch.tensor([65535], dtype=torch.uint16),
        "scalar": torch.tensor(7),
        "float8": torch.zeros(3).to(torch.float8_e5m2),
    }
    sent = {}
    for name, tensor in tensors.items():
        body, frames = payload.encode(tensor)
        sent[name] = [as_text(body), [as_text(frame) for frame in frames]]
    found = python(WITHOUT_TORCH, json.dumps(sent))
    expected = tensors["bfloat16"].float()
    assert found["bfloat16"] == ["float32", [2, 3], expected.reshape(-1).tolist()]
    assert found["large bfloat16"] == ["float32", [40_000], tensors["large bfloat16"].float().tolist()]
    assert found["empty bfloat16"] == ["float32", [0, 3], []]
    assert found["float16"] == ["float16", [1, 1], [0.5]]
    assert found["bool"] == ["bool", [2], [True, False]]
    assert found["uint16"] == ["uint16", [1], [65535]]
    assert found["scalar"] == ["int64", [], [7]]
    assert "float8_e5m2" in found["float8"]


def as_text(data: bytes | memoryview) -> str:
    """Bytes as JSON can hold them."""
    return base64.b64encode(data).decode()


def test_torch_is_not_imported_to_pack_or_read_what_is_no_tensor() -> None:
    """A client of arrays and text starts fast and small."""
    program = """
import json, sys
import numpy as np
from orch import payload
for value in ([1, "a", np.zeros(3), np.zeros(100_000), {1: (2, 3.5)}], 2**80, b"x" * 100_000):
    payload.decode(*payload.encode(value))
try:
    payload.encode([object()])
except TypeError:
    pass
json.dump("torch" in sys.modules, sys.stdout)
"""
    assert python(program) is False


# --- what cannot travel --------------------------------------------------------------------------------------------


class Secret:
    def __repr__(self) -> str:
        raise RuntimeError("no comment")


def cyclic() -> list[Any]:
    """A list that holds itself."""
    items: list[Any] = [1]
    items.append(items)
    return items


@pytest.mark.parametrize(
    ("tree", "where", "why"),
    [
        (lambda: 0, "payload: ", "builtins.function cannot travel"),
        ({"a": [1, {"b": {2}}]}, "payload['a'][1]['b']: ", "builtins.set cannot travel"),
        ((1, (2, object())), "payload[1][1]: ", "builtins.object cannot travel"),
        ({(1, frozenset()): 0}, "payload[key (1, frozenset())][1]: ", "builtins.frozenset cannot travel"),
        ([1j], "payload[0]: ", "builtins.complex cannot travel"),
        ([range(3)], "payload[0]: ", "builtins.range cannot travel"),
        (["ok", "\ud800"], "payload[1]: ", "surrogates not allowed"),
        ([2 ** (8 * 64 * 1024 + 8)], "payload[0]: ", "an int of 65538 bytes"),
        ([np.array([None])], "payload[0]: ", "dtype object has no fixed-size elements"),
        ([np.array(["a"], dtype=np.dtypes.StringDType())], "payload[0]: ", "no fixed-size elements"),
        ([np.zeros(2, "V0")], "payload[0]: ", "no fixed-size elements"),
        ([np.zeros(2, [("a", "O")])], "payload[0]: ", "no fixed-size elements"),
        ([np.zeros(2, np.dtype(ml_dtypes.bfloat16).newbyteorder(">"))], "payload[0]: ", "another byte order"),
        ([np.ma.masked_array([1], [True])], "payload[0]: ", "would lose its mask"),
        ([torch.zeros(2).to_sparse()], "payload[0]: ", "send .to_dense()"),
        ([torch.zeros(2, device="meta")], "payload[0]: ", "meta tensor"),
        ([torch.zeros(8, dtype=torch.uint8).view(torch.quint8)], "payload[0]: ", "lacks its scale"),
        (cyclic(), "payload[1][1]", "nested deeper"),
        ({"k" * 1000: {0}}, "payload['kkk", "set cannot travel"),
        ({Secret(): 0}, "payload[key <Secret>]: ", "Secret cannot travel"),
    ],
)
def test_what_cannot_travel_is_named_with_its_place(tree: Any, where: str, why: str) -> None:
    """A caller reads where in the tree it is, why, and what could be sent instead."""
    with pytest.raises(TypeError) as caught:
        payload.encode(tree)
    message = str(caught.value)
    assert message.startswith(where)
    assert why in message
    assert "send None, bool, int" in message
    assert len(message) < 400


def test_the_error_stays_one_line_for_a_large_tree() -> None:
    """A thousand good neighbours are not listed."""
    with pytest.raises(TypeError) as caught:
        payload.encode([[0] * 1000, {"deep": [[object()]]}])
    assert str(caught.value).startswith("payload[1]['deep'][0][0]: ")
    assert len(str(caught.value)) < 200


# --- what nobody can have sent -------------------------------------------------------------------------------------


def ext(code: int, *content: Any) -> bytes:
    """An extension as a hostile peer may write it."""
    inside = msgpack.packb(content[0] if len(content) == 1 else list(content))
    return bytes(msgpack.packb(msgpack.ExtType(code, inside)))


def nested(levels: int) -> bytes:
    """Tuples in tuples."""
    body = msgpack.packb([])
    for _ in range(levels):
        body = msgpack.packb(msgpack.ExtType(payload.TUPLE, b"\x91" + body))
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "frames"),
    [
        (b"", ()),
        (b"\xc1", ()),
        (ext(99, 0), ()),
        (ext(payload.ARRAY, 1), ()),
        (ext(payload.ARRAY, "<f4", [1], b"123"), ()),
        (ext(payload.ARRAY, "<f4", [2], b"1234"), ()),
        (ext(payload.ARRAY, "<f4", [-1], b"1234"), ()),
        (ext(payload.ARRAY, "<f4", ["1"], b"1234"), ()),
        (ext(payload.ARRAY, "<f4", [1] * 65, b"1234"), ()),
        (ext(payload.ARRAY, "<f4", [10**12], b""), ()),
        (ext(payload.ARRAY, "|O", [1], b"12345678"), ()),
        (ext(payload.ARRAY, "|V0", [1], b""), ()),
        (ext(payload.ARRAY, "os:path", [1], b"1"), ()),
        (ext(payload.ARRAY, "ml_dtypes:no_such_type", [1], b"1"), ()),
        (ext(payload.ARRAY, "ml_dtypes:finfo", [1], b"12345678"), ()),
        (ext(payload.ARRAY, "ml_dtypes:__doc__", [1], b"12345678"), ()),
        (ext(payload.ARRAY, "ml_dtypes:finfo", [1], 0), (b"12345678",)),
        (ext(payload.ARRAY, "ml_dtypes:finfo", [0], b""), ()),
        (ext(payload.SCALAR, "ml_dtypes:finfo", b"12345678"), ()),
        (ext(payload.TENSOR, "ml_dtypes:finfo", [1], b"12345678"), ()),
        (ext(payload.ARRAY, "(2,3)i4", [2], bytes(48)), ()),
        (ext(payload.ARRAY, ["<i4", [2]], [2], bytes(16)), ()),
        (ext(payload.ARRAY, ",".join(["i4"] * 99), [1], bytes(396)), ()),
        (ext(payload.ARRAY, "<f4", [2], 0), (b"1234",)),
        (ext(payload.ARRAY, "<f4", [1 << 63, 1 << 63], 0), (b"1234",)),
        (ext(payload.ARRAY, "<f4", [1 << 63, 0], 0), (b"",)),
        (ext(payload.ARRAY, "<f4", [True], 0), (b"1234",)),
        (ext(payload.ARRAY, "<f4", [1], 0, 0), (b"1234",)),
        (ext(payload.ARRAY, "<f4", [1], False), (b"1234",)),
        (ext(payload.ARRAY, [["a", "|O"]], [1], b"12345678"), ()),
        (ext(payload.ARRAY, 5, [1], b"1"), ()),
        (ext(payload.ARRAY, "|u1", [3], 0), ()),
        (ext(payload.ARRAY, "|u1", [3], 1), (b"abc",)),
        (ext(payload.ARRAY, "|u1", [3], -1), (b"abc",)),
        (ext(payload.ARRAY, "|u1", [3], True), (b"abc", b"abc")),
        (ext(payload.SCALAR, "<f8", b""), ()),
        (ext(payload.TENSOR, "float32", [10**12], b""), ()),
        (ext(payload.TENSOR, "qint8", [1], b"1"), ()),
        (ext(payload.TENSOR, "nn", [1], b"1"), ()),
        (ext(payload.TENSOR, ["float32"], [1], b"1234"), ()),
        (ext(payload.TENSOR, "float32", [1], b"123"), ()),
        (ext(payload.BYTES, 3), (b"abc",)),
        (ext(payload.TREE, 0), ()),
        (ext(payload.TREE, 0), (ext(payload.TREE, 0),)),
        (b"\x92" + ext(payload.BYTES, 0) * 2, (b"abc",)),
        (nested(payload.MAX_DEPTH + 2), ()),
        (nested(2_000), ()),
        (msgpack.packb({"a": 1}) + b"\x00", ()),
        (b"\x81\x90\x01", ()),
    ],
)
def test_what_no_encoder_writes_is_the_peers_mistake(body: bytes, frames: tuple[bytes, ...]) -> None:
    """It is refused before it costs anything, in a short message."""
    with pytest.raises(RemoteProtocolError) as caught:
        payload.decode(body, frames)
    assert len(str(caught.value)) <= 300


def test_a_frame_counts_once_so_a_small_message_cannot_become_a_large_payload() -> None:
    """Neither many names for one frame nor trees of trees multiply what was received."""
    frames = [b"\x92" + ext(payload.TREE, i + 1) * 2 for i in range(60)] + [b"\xc0", bytes(1_000_000)]
    many = b"\xdc\xff\xff" + ext(payload.BYTES, 61) * 0xFFFF
    tracemalloc.start()
    try:
        for body in (ext(payload.TREE, 0), many):
            with pytest.raises(RemoteProtocolError, match="used already"):
                payload.decode(body, frames)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


@settings(max_examples=300)
@given(st.sampled_from(["float32", "bfloat16", "int4", "x"]), st.binary(max_size=40), st.data())
def test_any_bytes_in_a_tensor_are_a_tensor_or_a_remote_protocol_error(
    name: str, noise: bytes, data: st.DataObject
) -> None:
    """Also where the mistake is in what torch is asked to make."""
    shape = data.draw(st.lists(st.integers(-1, 2**40), max_size=3))
    body = ext(payload.TENSOR, name, shape, noise)
    try:
        found = payload.decode(body)
    except RemoteProtocolError:
        return
    assert found.numel() == math.prod(shape)


def test_frames_of_any_item_size_are_read_as_bytes() -> None:
    """A transport may hand over whatever buffers it uses."""
    array = np.arange(20_000, dtype="<i4")
    body, frames = payload.encode(array)
    for item in (np.uint8, np.uint16, np.float64):
        assert same(payload.decode(body, [np.frombuffer(bytearray(frames[0]), item)]), array)


def test_an_array_that_is_in_a_tree_twice_arrives_as_two() -> None:
    """Each use of an array in a tree is packed, and freed, by itself."""
    array = np.arange(FRAME_BYTES)
    body, frames = payload.encode([array, array])
    assert len(frames) == 2
    left, right = payload.decode(body, [bytearray(frame) for frame in frames])
    assert not np.shares_memory(left, right)
    assert same([left, right], [array, array])
