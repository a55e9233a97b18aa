"""Payload trees: what a request and a result may hold, as a msgpack body and large frames beside it.

None, bool, int of any size, float, str, bytes, list, tuple, dict, numpy arrays and scalars of every fixed-size
dtype, torch tensors (bfloat16 too). Arrays of FRAME_BYTES and more, and a payload that is just bytes, become frames
of their own: they are not copied here, so they must not change until they are sent. A body that is still as large
moves into a frame as a whole. Nothing is ever pickled.

torch is not imported to find out whether something is a tensor. A tensor that arrives where torch is not installed
becomes a numpy array (bfloat16 as float32, which holds every bfloat16 exactly).
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from orch.errors import RemoteProtocolError
from orch.wire import FRAME_BYTES, MAX_FRAMES

# msgpack extension codes. The inside of each is msgpack again; a large buffer is an index into the frames.
TUPLE, ARRAY, SCALAR, TENSOR, BIG_INT, BYTES, TREE = range(1, 8)

MAX_DEPTH = 100  # nested tuples recurse in Python; msgpack's own limit is 511
MAX_BIG_INT_BYTES = 64 * 1024
MAX_DIMENSIONS = 64  # numpy's own limit
REGISTERED = 2  # dtype.isbuiltin of a type that another package has added

# What packing raises for a value that cannot travel.
UNFIT = (TypeError, ValueError, OverflowError, RecursionError, BufferError)

Frames = list[Any]


def encode(payload: Any) -> tuple[bytes, tuple[Any, ...]]:
    """The body and the frames of a payload tree. The frames are views of the caller's memory.

    Raises:
        TypeError: something in the tree cannot travel; the message says what, and where in the tree.
    """
    frames: Frames = []
    if type(payload) is bytes and len(payload) >= FRAME_BYTES:
        return _pointer(BYTES, 0), (memoryview(payload),)
    try:
        body: bytes = _packer(frames, 0).pack(payload)
    except UNFIT as err:
        raise TypeError(_diagnose(payload, err)) from err
    if len(body) >= FRAME_BYTES and len(frames) < MAX_FRAMES:
        frames.append(memoryview(body))
        body = _pointer(TREE, len(frames) - 1)
    return body, tuple(frames)


def decode(body: bytes, frames: Sequence[Any] = ()) -> Any:
    """The payload tree. Arrays in frames are views of the received memory.

    Raises:
        RemoteProtocolError: for anything that `encode` cannot have written.
    """
    try:
        return _unpack(body, [memoryview(frame).cast("B") for frame in frames])
    except RemoteProtocolError:
        raise
    except Exception as err:  # malformed input surfaces as any of a dozen types; all mean the same
        raise RemoteProtocolError(f"not a payload: {type(err).__name__}: {err}"[:300]) from err


def nbytes(body: bytes, frames: Sequence[Any]) -> int:
    """Bytes that a payload has on the wire."""
    return len(body) + sum(memoryview(frame).nbytes for frame in frames)


# --- packing -----------------------------------------------------------------------------------------------------


def _packer(frames: Frames, depth: int) -> msgpack.Packer:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")

    def other(value: Any) -> Any:
        return _extension(value, frames, depth)

    # strict_types: subclasses and tuples come to `other`, so a tuple comes back a tuple and not a list.
    return msgpack.Packer(default=other, strict_types=True, use_bin_type=True)


def _extension(value: Any, frames: Frames, depth: int) -> Any:
    def inside(code: int, content: list[Any]) -> msgpack.ExtType:
        return msgpack.ExtType(code, _packer(frames, depth + 1).pack(content))

    if isinstance(value, tuple):
        return inside(TUPLE, list(value))
    if isinstance(value, np.ndarray):
        kind, shape, buffer = _array_parts(value)
        return inside(ARRAY, [kind, shape, _place(buffer, frames)])
    if isinstance(value, np.generic):
        kind, _, buffer = _array_parts(np.asarray(value))
        return inside(SCALAR, [kind, bytes(buffer)])
    if _is_tensor(value):
        return inside(TENSOR, _tensor_parts(value, frames))
    if isinstance(value, int):
        return _int_parts(int(value))
    plain: Any
    for plain in (str, float, bytes, bytearray, list, dict):  # a subclass travels as what it is a kind of
        if isinstance(value, plain):
            return plain(value)
    raise TypeError(_unsupported(value))


def _pointer(code: int, index: int) -> bytes:
    """A body that says: what belongs here is in that frame."""
    return msgpack.packb(msgpack.ExtType(code, msgpack.packb(index)))  # type: ignore[no-any-return]


def _place(buffer: memoryview, frames: Frames) -> Any:
    """A frame's index for a large buffer while frames are left, else the bytes themselves."""
    if buffer.nbytes >= FRAME_BYTES and len(frames) < MAX_FRAMES - 1:  # one is kept for the tree itself
        frames.append(buffer)
        return len(frames) - 1
    return bytes(buffer)


def _int_parts(value: int) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    size = value.bit_length() // 8 + 1
    if size > MAX_BIG_INT_BYTES:
        raise TypeError(f"an int of {size} bytes; at most {MAX_BIG_INT_BYTES}")
    return msgpack.ExtType(BIG_INT, value.to_bytes(size, "little", signed=True))


def _array_parts(array: np.ndarray[Any, Any]) -> tuple[Any, list[int], memoryview]:
    dtype = array.dtype
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask; send .data and .mask")
    if dtype.hasobject or dtype.itemsize == 0 or dtype.char == "T":
        raise TypeError(f"an array of dtype {dtype} has no fixed-size elements")
    kind: Any = dtype.str
    if dtype.fields or dtype.subdtype:
        kind = np.lib.format.dtype_to_descr(dtype)
    elif dtype.isbuiltin == REGISTERED:  # registered by another package, e.g. ml_dtypes.bfloat16: dtype.str would say V2
        kind = f"{dtype.type.__module__}:{dtype.name}"
    whole = array if array.flags.c_contiguous else array.copy(order="C")
    # A view of plain bytes: datetime64 and registered dtypes have no buffer of their own.
    flat = whole.reshape(-1).view(np.ndarray)
    return kind, list(array.shape), flat.view(np.uint8).data.cast("B") if flat.size else memoryview(b"")


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _tensor_parts(tensor: Any, frames: Frames) -> list[Any]:
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TypeError(f"a tensor with layout {tensor.layout} has no plain memory; send .to_dense()")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    name = str(plain.dtype).removeprefix("torch.")
    flat = plain.reshape(-1).view(torch.uint8) if plain.numel() else plain.new_empty(0, dtype=torch.uint8)
    return [name, list(plain.shape), _place(memoryview(flat.numpy()), frames)]


# --- unpacking ---------------------------------------------------------------------------------------------------


def _unpack(body: bytes | memoryview, frames: Sequence[memoryview]) -> Any:
    def extension(code: int, data: bytes) -> Any:
        reader = _READERS.get(code)
        if reader is None:
            raise RemoteProtocolError(f"unknown extension {code}")
        return reader(data, frames)

    return msgpack.unpackb(body, ext_hook=extension, raw=False, strict_map_key=False)


def _buffer(place: Any, frames: Sequence[memoryview]) -> memoryview:
    if isinstance(place, bytes):
        return memoryview(bytearray(place))  # writable, as an array in a frame is
    if type(place) is not int or not 0 <= place < len(frames):
        raise RemoteProtocolError(f"frame {place!r} of {len(frames)}")
    return frames[place]


def _read_tuple(data: bytes, frames: Sequence[memoryview]) -> Any:
    return tuple(_unpack(data, frames))


def _read_array(data: bytes, frames: Sequence[memoryview]) -> Any:
    kind, shape, place = _unpack(data, frames)
    return _as_array(_dtype(kind), _shape(shape), _buffer(place, frames))


def _read_scalar(data: bytes, frames: Sequence[memoryview]) -> Any:
    kind, place = _unpack(data, frames)
    return _as_array(_dtype(kind), (), _buffer(place, ()))[()]


def _read_tensor(data: bytes, frames: Sequence[memoryview]) -> Any:
    name, shape, place = _unpack(data, frames)
    buffer, shape = _buffer(place, frames), _shape(shape)
    if not _torch_is_installed():
        return _tensor_without_torch(name, shape, buffer)
    torch = importlib.import_module("torch")
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype):
        raise RemoteProtocolError(f"no torch dtype {name!r}")
    if not buffer.nbytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


@functools.cache
def _torch_is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def _tensor_without_torch(name: Any, shape: tuple[int, ...], buffer: memoryview) -> Any:
    if name == "bfloat16":  # the upper half of a float32
        wide = np.frombuffer(buffer, np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return _as_array(np.dtype(name), shape, buffer)


def _read_big_int(data: bytes, _frames: Sequence[memoryview]) -> Any:
    return int.from_bytes(data, "little", signed=True)


def _read_bytes(data: bytes, frames: Sequence[memoryview]) -> Any:
    return bytes(_buffer(_unpack(data, ()), frames))


def _read_tree(data: bytes, frames: Sequence[memoryview]) -> Any:
    place = _unpack(data, ())
    others = [frame if i != place else memoryview(b"") for i, frame in enumerate(frames)]  # a tree holds no tree
    return _unpack(_buffer(place, frames), others)


_READERS: Mapping[int, Callable[[bytes, Sequence[memoryview]], Any]] = {
    TUPLE: _read_tuple,
    ARRAY: _read_array,
    SCALAR: _read_scalar,
    TENSOR: _read_tensor,
    BIG_INT: _read_big_int,
    BYTES: _read_bytes,
    TREE: _read_tree,
}


def _dtype(kind: Any) -> np.dtype[Any]:
    if isinstance(kind, str) and ":" in kind:
        if not kind.startswith("ml_dtypes:"):  # never import what a peer names
            raise RemoteProtocolError(f"dtype {kind!r} is not known here")
        name = kind.removeprefix("ml_dtypes:")
        registered: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        return registered
    dtype: np.dtype[Any] = np.dtype(kind) if isinstance(kind, str) else np.lib.format.descr_to_dtype(_descr(kind))
    if dtype.hasobject or dtype.itemsize == 0:
        raise RemoteProtocolError(f"dtype {dtype} has no fixed-size elements")
    return dtype


def _descr(kind: Any) -> Any:
    return kind if isinstance(kind, (tuple, list)) else _refuse(kind)


def _refuse(kind: Any) -> Any:
    raise RemoteProtocolError(f"not a dtype: {kind!r}"[:200])


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise RemoteProtocolError(f"not a shape: {shape!r}"[:200])
    return tuple(shape)


def _as_array(dtype: np.dtype[Any], shape: tuple[int, ...], buffer: memoryview) -> np.ndarray[Any, Any]:
    if not buffer.nbytes:
        if 0 not in shape:
            raise RemoteProtocolError(f"no bytes for an array of shape {shape}")
        return np.empty(shape, dtype)
    return np.frombuffer(buffer, np.uint8).view(dtype).reshape(shape)


# --- what cannot travel ------------------------------------------------------------------------------------------


def _unsupported(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__} cannot travel"


def _diagnose(payload: Any, err: Exception) -> str:
    """Which leaf refused, and where: found by packing each subtree, on the way to an error only."""
    where, value, depth = "payload", payload, 0
    while depth <= MAX_DEPTH:
        for step, child in _children(value):
            if not _travels(child):
                where, value, depth = where + step, child, depth + 1
                break
        else:
            break
    hint = "send None, bool, int, float, str, bytes, list, tuple, dict, numpy arrays or torch tensors"
    if depth > MAX_DEPTH:
        return f"{where[:60]}…: nested deeper than {MAX_DEPTH}; {hint}"
    try:
        _packer([], 0).pack(value)
    except UNFIT as leaf:  # the leaf's own reason is the clearest
        err = leaf
    return f"{where}: {err}; {hint}"


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        keys = [(f"[key {key!r}]", key) for key in value]
        return keys + [(f"[{key!r}]", child) for key, child in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", child) for i, child in enumerate(value)]
    return []


def _travels(value: Any) -> bool:
    try:
        _packer([], 0).pack(value)
    except UNFIT:
        return False
    return True
