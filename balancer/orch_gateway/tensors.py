"""The elements of a tensor, between JSON, the binary form, and what a model takes and gives.

The binary form (Triton's binary tensor data extension, and gRPC's raw contents): little-endian, row-major, unpadded;
BOOL is one byte; an element of BYTES is its length as a u32, and the bytes. FP16 and BF16 have the binary form only.

`Elements` is one tensor, or a part of one, in row-major order and flat: a numpy array of the datatype (BF16: its bits
as uint16), for BYTES a list of bytes. It does not know its shape.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from orch.model import ANY, MAX_DIMENSIONS
from orch.payload import BFLOAT16, RawTensor

Array = np.ndarray[Any, Any]
Elements = Array | list[bytes]
Shape = tuple[int, ...]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}
NAMES: Mapping[str, str] = {dtype.str: name for name, dtype in DTYPES.items() if name != "BF16"}
BINARY_ONLY = frozenset({"FP16", "BF16"})
LENGTH = struct.Struct("<I")

# By the kind of a dtype, the types that its elements have in JSON, and how a message calls them.
JSON_TYPES: Mapping[str, tuple[set[type], str]] = {
    "b": ({bool}, "true and false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
}
MISMATCH = "Shape does not match true shape of 'data' field"


class Unfit(Exception):
    """Elements that are not of the datatype and shape they are said to be. The message does not name the tensor."""


# --- a client's elements -----------------------------------------------------------------------------------------


def from_json(data: Any, datatype: str, shape: Shape) -> Elements:
    """The elements of a `data` field, flat or nested as `shape` says.

    Raises:
        Unfit: other types, a number out of the datatype's range, another shape, or a datatype that JSON cannot carry.
    """
    if datatype in BINARY_ONLY:
        raise Unfit(f"receiving {datatype} data via JSON is not supported. Please use the binary data format")
    if not isinstance(data, list):
        raise Unfit("'data' must be an array")
    flat = _flat(data, shape)
    if datatype != "BYTES":
        return _numbers(flat, DTYPES[datatype], datatype)
    if not set(map(type, flat)) <= {str}:
        raise Unfit("'data' of BYTES must be texts. Please use the binary data format for other bytes")
    return _texts(flat)


def from_values(values: Sequence[Any], datatype: str, shape: Shape) -> Elements:
    """The elements of gRPC's typed contents: as from_json, flat, and BYTES as bytes."""
    if datatype != "BYTES":
        return from_json(list(values), datatype, shape)
    if len(values) != math.prod(shape):
        raise Unfit(MISMATCH)
    return list(values)


def from_binary(data: memoryview, datatype: str, shape: Shape) -> Elements:
    """The elements in the binary form, as a view of `data` wherever the datatype allows it.

    Raises:
        Unfit: too few or too many bytes for the shape.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _prefixed(data, count)
    dtype = DTYPES[datatype]
    if data.nbytes != count * dtype.itemsize:
        raise Unfit(f"unexpected size, got {data.nbytes} bytes, expecting {count * dtype.itemsize},")
    if datatype != "BOOL":
        return np.frombuffer(data, dtype)
    flags = np.frombuffer(data, np.uint8)
    # A byte above 1 is true as well, but no bool of numpy's may hold it.
    return flags.view(np.bool_) if not count or flags.max() <= 1 else flags != 0


def rows(elements: Elements, datatype: str, shape: Shape) -> list[Any]:
    """What a model gets: the parts along the first dimension, as numpy arrays that are views.

    BF16: RawTensors, which reach the model as torch tensors. BYTES: bytes, in lists as deep as the rest of the shape.
    """
    row_shape = shape[1:]
    if isinstance(elements, list):
        return _nested(elements, shape)
    whole = elements.reshape(shape)
    if datatype == "BF16":
        return [RawTensor(BFLOAT16, row_shape, _buffer(whole[i, ...])) for i in range(shape[0])]
    return [whole[i, ...] for i in range(shape[0])]


# --- a model's elements ------------------------------------------------------------------------------------------


def from_result(value: Any, datatype: str, shape: Shape) -> tuple[Shape, Elements]:
    """The shape and the elements of what a model returned for one row: an array, or plain numbers, texts or bytes.

    Raises:
        Unfit: another datatype, or a shape that `shape`, in which -1 is any size, does not allow.
    """
    if isinstance(value, (RawTensor, np.ndarray, np.generic)):
        found_shape, elements = _from_array(value, datatype)
    else:
        found_shape = shape_of(value, shape)
        flat = _flat([value], (1, *found_shape))
        if datatype == "BYTES":
            elements = _bytes(flat)
        elif datatype == "BF16":
            raise Unfit(f"a {type(value).__name__}, no torch.bfloat16 tensor,")
        else:
            elements = _numbers(flat, DTYPES[datatype], datatype)
    if not fits(found_shape, shape):
        raise Unfit(f"a row of shape {list(found_shape)}")
    return found_shape, elements


def to_json(elements: Elements, datatype: str) -> list[Any]:
    """The elements as a flat list that JSON can carry.

    Raises:
        Unfit: the datatype cannot travel in JSON, or bytes that are no UTF-8.
    """
    if datatype in BINARY_ONLY:
        raise Unfit(f"sending {datatype} data via JSON is not supported. Please use the binary data format")
    if isinstance(elements, list):
        try:
            return [element.decode() for element in elements]
        except UnicodeDecodeError as err:
            raise Unfit("it holds bytes that are no UTF-8. Please use the binary data format") from err
    return elements.tolist()  # type: ignore[no-any-return]


def to_binary(elements: Elements) -> memoryview:
    """The elements in the binary form; numbers are a view, not a copy."""
    if not isinstance(elements, list):
        return _buffer(elements)
    return memoryview(b"".join(chain.from_iterable((LENGTH.pack(len(each)), each) for each in elements)))


def fits(shape: Shape, declared: Shape) -> bool:
    """Whether a shape is one that a declaration, in which -1 is any size, allows."""
    return len(shape) == len(declared) and all(want in (ANY, size) for size, want in zip(shape, declared, strict=True))


def shape_of(value: Any, declared: Shape = ()) -> Shape:
    """The shape that nested lists seem to have: that of the first list at each depth.

    An empty list does not say what its elements would be: there the sizes are the declared ones, and 0 for any.
    """
    shape: list[int] = []
    while isinstance(value, (list, tuple)) and len(shape) <= MAX_DIMENSIONS:
        shape.append(len(value))
        value = value[0] if value else None
    if shape and not shape[-1]:
        shape += (max(0, size) for size in declared[len(shape) :])
    return tuple(shape)


# --- inside ------------------------------------------------------------------------------------------------------


def _flat(data: list[Any], shape: Shape) -> list[Any]:
    """What is flat already, or nested exactly as the shape says."""
    level = data
    if not {list, tuple}.isdisjoint(map(type, data)):
        level = [data]
        for size in shape:
            if not all(isinstance(each, (list, tuple)) and len(each) == size for each in level):
                raise Unfit(MISMATCH)
            level = list(chain.from_iterable(level))
    if len(level) != math.prod(shape):
        raise Unfit(MISMATCH)
    return level


def _numbers(flat: list[Any], dtype: np.dtype[Any], datatype: str) -> Array:
    types, words = JSON_TYPES[dtype.kind]
    if not set(map(type, flat)) <= types:
        raise Unfit(f"{datatype} takes {words} only")
    if dtype.kind in "iu" and flat:
        limits = np.iinfo(dtype)
        if min(flat) < limits.min or max(flat) > limits.max:
            raise Unfit(f"{datatype} takes {limits.min} to {limits.max}, got {min(flat)} to {max(flat)}"[:200])
    try:
        with np.errstate(over="ignore"):  # too large for the datatype is infinite, as everywhere
            return np.array(flat, dtype)
    except OverflowError as err:
        raise Unfit(f"an integer too large for {datatype}") from err


def _texts(flat: Iterable[str]) -> list[bytes]:
    try:
        return [each.encode() for each in flat]
    except UnicodeEncodeError as err:
        raise Unfit("half of a surrogate pair, which is no text,") from err


def _bytes(flat: list[Any]) -> list[bytes]:
    if not set(map(type, flat)) <= {bytes, str}:
        raise Unfit("neither bytes nor texts")
    return [each if isinstance(each, bytes) else _texts([each])[0] for each in flat]


def _prefixed(data: memoryview, count: int) -> list[bytes]:
    whole, start = bytes(data), 0
    if count * LENGTH.size > len(whole):  # before a loop that a shape alone would make long
        raise Unfit(f"unexpected size, got {len(whole)} bytes, expecting {count} strings,")
    found: list[bytes] = []
    for _ in range(count):
        begin = start + LENGTH.size
        if begin > len(whole):
            raise Unfit(f"incomplete string length indicator, {count} strings expected, got {len(found)},")
        start = begin + LENGTH.unpack_from(whole, start)[0]
        if start > len(whole):
            raise Unfit(f"incomplete string data, {count} strings expected, got {len(found)},")
        found.append(whole[begin:start])
    if start != len(whole):
        raise Unfit(f"unexpected number of strings, {count} expected, and {len(whole) - start} bytes follow,")
    return found


def _nested(flat: list[Any], shape: Shape) -> list[Any]:
    for depth in range(len(shape) - 1, 0, -1):
        size = shape[depth]
        flat = [flat[i * size : (i + 1) * size] for i in range(math.prod(shape[:depth]))]
    return flat


def _from_array(value: Any, datatype: str) -> tuple[Shape, Elements]:
    if isinstance(value, RawTensor):
        if datatype != "BF16" or value.dtype != BFLOAT16:
            raise Unfit(f"a tensor of {value.dtype}")
        return value.shape, np.frombuffer(value.data, DTYPES["BF16"])
    array: Array = np.asarray(value)
    if datatype == "BYTES" and array.dtype.kind in "SU":
        return array.shape, _bytes(array.reshape(-1).tolist())
    name = NAMES.get(array.dtype.str)  # first, because numpy makes a dtype's name anew each time it is asked for it
    if name is None and array.dtype.name == BFLOAT16:  # of ml_dtypes
        name, array = "BF16", np.ascontiguousarray(array).view("<u2").reshape(array.shape)
    elif name is None:
        name = NAMES.get(array.dtype.newbyteorder("<").str, f"elements of {array.dtype}")
    if name != datatype:
        raise Unfit(name)
    return array.shape, np.ascontiguousarray(array, DTYPES[datatype]).reshape(-1)


def _buffer(array: Array) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")
