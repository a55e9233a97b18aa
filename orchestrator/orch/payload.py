"""Payload trees: what a request and a result may hold, as a msgpack body and large frames beside it.

None, bool, int of any size, float, str, bytes, list, tuple, dict, numpy arrays and scalars of every fixed-size
dtype, torch tensors (bfloat16 too). Arrays of FRAME_BYTES and more, and a payload that is just bytes, become frames
of their own: they are not copied here, so they must not change until they are sent. A body that is still as large
moves into a frame as a whole. Nothing is ever pickled.

torch is not imported to find out whether something is a tensor. A tensor that arrives where torch is not installed
becomes a numpy array (bfloat16 as float32, which holds every bfloat16 exactly). A process that passes tensors on and
never wants torch says `leave_torch_out()`; to such a one bfloat16 is a `RawTensor`, both ways.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from orch.errors import RemoteProtocolError
from orch.wire import FRAME_BYTES, MAX_FRAMES

# msgpack extension codes. The inside of each is msgpack again; a large buffer is an index into the frames.
TUPLE, ARRAY, SCALAR, TENSOR, BIG_INT, BYTES, TREE = range(1, 8)

# Each level of nested tuples takes about 46 KiB of C stack in msgpack's unpackb: 175 levels end a process whose stack
# has the usual 8 MiB. Lists and dicts do not recurse there; msgpack's own limit for them is 511.
MAX_DEPTH = 64
MAX_BIG_INT_BYTES = 64 * 1024
MAX_SHOWN = 60  # characters of a key, in an error's place
# How the names of torch's quantized dtypes begin. Their tensors are more than memory, and torch crashes on them if the
# rest is missing.
QUANTIZED = ("qint", "quint")
MAX_DIMENSIONS = 64  # numpy's own limit
REGISTERED = 2  # dtype.isbuiltin of a type that another package has added
BFLOAT16, BFLOAT16_BYTES = "bfloat16", 2

# Arrays of one dtype and shape come again and again. What is remembered of so many is bounded, as a peer chooses them.
NUM_REMEMBERED, MAX_REMEMBERED = 256, 256  # bytes of a body
MAX_NAME = 64  # characters of a dtype's; the longest are half of that
# What packing raises for a value that cannot travel.
UNFIT = (TypeError, ValueError, OverflowError, RuntimeError, BufferError)

# Packs what needs no extension, without the price of a packer per payload. It calls nothing back, so the interpreter's
# lock makes each `pack` atomic, whatever threads share it.
_PLAIN = msgpack.Packer(strict_types=True, use_bin_type=True)
_pack_plain, _ARRAY = _PLAIN.pack, np.ndarray  # looked up once
_INTS = frozenset([int])
# First bytes of a body that is an extension as a whole: ext 8 to 32, fixext 1 to 16.
_EXTENSIONS = frozenset([*range(0xC7, 0xCA), *range(0xD4, 0xD9)])

Frames = list[Any]


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """A tensor as its bytes, for a process without torch. It travels as the torch tensor that it stands for.

    dtype: torch's name without its prefix, such as "bfloat16". data: the elements in C order, any contiguous buffer;
    it is not copied, and must not change until it is sent.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Any


def leave_torch_out() -> None:
    """Never import torch in this process: tensors arrive as numpy arrays, bfloat16 as a `RawTensor`.

    For a process that only passes them on: torch would cost it seconds, and hundreds of megabytes. It is not undone.
    """
    _READERS[TENSOR] = _read_tensor_without_torch


class _NotPlainError(Exception):
    """A body has extensions; plain msgpack is not all of it."""


class _Received:
    """The frames of one payload, each of which is used once, and how deep its extensions are nested."""

    __slots__ = ("depth", "frames")

    def __init__(self, frames: Sequence[Any]) -> None:
        self.frames: list[memoryview | None] = [memoryview(frame).cast("B") for frame in frames]
        self.depth = 0

    def take(self, index: Any) -> memoryview:
        frame = self.frames[index] if type(index) is int and 0 <= index < len(self.frames) else None
        if frame is None:  # used twice, a small message would become a large payload
            raise RemoteProtocolError(f"no frame {index!r} of {len(self.frames)}, or it was used already"[:200])
        self.frames[index] = None
        return frame


def encode(payload: Any) -> tuple[bytes, tuple[Any, ...]]:
    """The body and the frames of a payload tree. The frames are views of the caller's memory.

    Raises:
        TypeError: something in the tree cannot travel; the message says what, and where in the tree.
    """
    kind = type(payload)
    # A view of bytes stands for them; one with gaps is refused below, as a small one is.
    size = len(payload) if kind is bytes else payload.nbytes if kind is memoryview and payload.c_contiguous else 0
    if size >= FRAME_BYTES:
        return _pointer(BYTES, 0), (memoryview(payload),)
    frames: Frames = []
    try:
        body: bytes
        if kind is _ARRAY and payload.dtype.fields is None:  # most are, and need no packer of their own
            name, shape, buffer = _array_parts(payload)
            if buffer.nbytes >= FRAME_BYTES:
                return _one_array(name, shape), (buffer,)
            body = _PLAIN.pack(msgpack.ExtType(ARRAY, _PLAIN.pack([name, list(shape), bytes(buffer)])))
        else:
            body = _pack_plain(payload)
            if len(body) < FRAME_BYTES:
                return body, ()
    except UNFIT:  # something in it is more than plain msgpack
        try:
            body = _packer(frames, 0).pack(payload)
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
        is_extension = bool(body) and body[0] in _EXTENSIONS
        if not (frames or is_extension):
            # Plain, as far as one can see: a reader of extensions for each body would be two thirds of its time.
            try:
                return msgpack.unpackb(body, ext_hook=_not_plain, raw=False, strict_map_key=False)
            except _NotPlainError:
                pass
        elif is_extension and len(frames) == 1 and len(body) <= MAX_REMEMBERED:
            form = _form_of_one_array(body)
            if form is not None:
                return _as_array(*form, memoryview(frames[0]).cast("B"))
        return _unpack(body, _Received(frames))
    except RemoteProtocolError:
        raise
    except Exception as err:  # malformed input surfaces as any of a dozen types; all mean the same
        raise RemoteProtocolError(f"not a payload: {type(err).__name__}: {err}"[:300]) from err


def nbytes(body: bytes, frames: Sequence[Any]) -> int:
    """Bytes that a payload has on the wire."""
    return len(body) + sum([memoryview(frame).nbytes for frame in frames]) if frames else len(body)


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
        return inside(ARRAY, [kind, list(shape), _place(buffer, frames)])
    if isinstance(value, np.generic) and not isinstance(value, (str, bytes)):  # an array would drop trailing zeros
        kind, _, buffer = _array_parts(np.asarray(value))
        return inside(SCALAR, [kind, bytes(buffer)])
    if _is_tensor(value):
        return inside(TENSOR, _tensor_parts(value, frames))
    if isinstance(value, RawTensor):
        data = memoryview(value.data)
        return inside(TENSOR, [value.dtype, list(value.shape), _place(data.cast("B") if data.nbytes else data, frames)])
    if isinstance(value, int):
        return _int_parts(int(value))
    if isinstance(value, str):  # a subclass travels as what it is a kind of, here and below
        return str.__str__(value)  # str() of an enum's member is its name
    plain: Any
    for plain in (float, bytes, bytearray, list, dict):
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


@functools.lru_cache(maxsize=NUM_REMEMBERED)
def _kind_of(dtype: np.dtype[Any]) -> Any:
    if dtype.hasobject or dtype.itemsize == 0 or dtype.char == "T":
        raise TypeError(f"an array of dtype {dtype} has no fixed-size elements")
    if dtype.fields or dtype.subdtype:
        return np.lib.format.dtype_to_descr(dtype)
    if dtype.isbuiltin == REGISTERED:  # e.g. ml_dtypes.bfloat16, whose dtype.str would only say V2
        if not dtype.isnative:
            raise TypeError(f"an array of dtype {dtype} in another byte order")
        return f"{dtype.type.__module__}:{dtype.name}"
    return dtype.str


@functools.lru_cache(maxsize=NUM_REMEMBERED)
def _one_array(kind: str, shape: tuple[int, ...]) -> bytes:
    """The body of a payload that is one array, whose elements are its one frame."""
    return msgpack.packb(msgpack.ExtType(ARRAY, msgpack.packb([kind, shape, 0])))  # type: ignore[no-any-return]


def _array_parts(array: np.ndarray[Any, Any]) -> tuple[Any, tuple[int, ...], memoryview]:
    is_plain = type(array) is _ARRAY
    if not is_plain and isinstance(array, np.ma.MaskedArray):
        raise TypeError("a masked array would lose its mask; send .data and .mask")
    kind = _kind_of(array.dtype)
    whole = array if array.flags.c_contiguous else array.copy(order="C")
    # A view of plain bytes: datetime64 and registered dtypes have no buffer of their own.
    flat = (whole if is_plain else whole.view(_ARRAY)).reshape(-1)  # a matrix would stay one
    return kind, array.shape, flat.view(np.uint8).data if flat.size else memoryview(b"")


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _tensor_parts(tensor: Any, frames: Frames) -> list[Any]:
    torch = sys.modules["torch"]
    if tensor.layout != torch.strided:
        raise TypeError(f"a tensor with layout {tensor.layout} has no plain memory; send .to_dense()")
    if tensor.is_quantized or tensor.is_meta:
        raise TypeError(f"a {'quantized' if tensor.is_quantized else 'meta'} tensor is more, or less, than its memory")
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    name = str(plain.dtype).removeprefix("torch.")
    if name.startswith(QUANTIZED):
        raise TypeError(f"a tensor of dtype {name} lacks its scale; send .int_repr() and the scale")
    # Not reshape: what has one element counts as contiguous with any stride, and keeps it.
    flat = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8) if plain.numel() else torch.empty(0).byte()
    return [name, list(plain.shape), _place(memoryview(flat.numpy()), frames)]


# --- unpacking ---------------------------------------------------------------------------------------------------


def _not_plain(_code: int, _data: bytes) -> Any:
    raise _NotPlainError


def _unpack(body: bytes | memoryview, received: _Received) -> Any:
    def extension(code: int, data: bytes) -> Any:
        reader = _READERS.get(code)
        if reader is None:
            raise RemoteProtocolError(f"unknown extension {code}")
        return reader(data, received)

    received.depth += 1
    if received.depth > MAX_DEPTH + 2:  # the outermost is none, and a tree in a frame is one more
        raise RemoteProtocolError(f"nested deeper than {MAX_DEPTH}")
    value = msgpack.unpackb(body, ext_hook=extension, raw=False, strict_map_key=False)
    received.depth -= 1
    return value


def _buffer(place: Any, received: _Received) -> memoryview:
    if isinstance(place, bytes):
        return memoryview(bytearray(place))  # writable, as an array in a frame is
    return received.take(place)


def _read_tuple(data: bytes, received: _Received) -> Any:
    return tuple(_unpack(data, received))


@functools.lru_cache(maxsize=NUM_REMEMBERED)
def _form_of_one_array(body: bytes) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Dtype and shape of what `_one_array` has written; None: the body is something else."""
    outer = msgpack.unpackb(body, strict_map_key=False)
    if type(outer) is not msgpack.ExtType or outer.code != ARRAY:
        return None
    kind, shape, place = msgpack.unpackb(outer.data, strict_map_key=False)
    return (_dtype(kind), _shape(shape)) if type(kind) is str and type(place) is int and place == 0 else None


def _read_array(data: bytes, received: _Received) -> Any:
    kind, shape, place = _unpack(data, received)
    return _as_array(_dtype(kind), _shape(shape), _buffer(place, received))


def _read_scalar(data: bytes, received: _Received) -> Any:
    kind, place = _unpack(data, received)
    return _as_array(_dtype(kind), (), _buffer(place, received))[()]


def _read_tensor(data: bytes, received: _Received) -> Any:
    name, shape, place = _unpack(data, received)
    buffer, shape = _buffer(place, received), _shape(shape)
    torch = _torch()
    if torch is None:
        return _tensor_without_torch(name, shape, buffer)
    dtype = vars(torch).get(name) if isinstance(name, str) else None
    if not isinstance(dtype, torch.dtype) or name.startswith(QUANTIZED):
        raise RemoteProtocolError(f"no torch dtype {name!r}"[:200])
    if not buffer.nbytes:
        return torch.empty(_empty_shape(shape), dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


@functools.cache
def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except (ImportError, OSError):  # none, or one whose libraries cannot be loaded
        return None


def _read_tensor_without_torch(data: bytes, received: _Received) -> Any:
    name, shape, place = _unpack(data, received)
    buffer, shape = _buffer(place, received), _shape(shape)
    if name != BFLOAT16:
        return _tensor_without_torch(name, shape, buffer)
    if buffer.nbytes != math.prod(shape) * BFLOAT16_BYTES:
        raise RemoteProtocolError(f"{buffer.nbytes} bytes for a bfloat16 tensor of shape {shape}"[:200])
    return RawTensor(BFLOAT16, shape, buffer)


def _tensor_without_torch(name: Any, shape: tuple[int, ...], buffer: memoryview) -> Any:
    if name == BFLOAT16:  # the upper half of a float32
        wide = np.frombuffer(buffer, np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32).reshape(shape)
    return _as_array(_dtype(name), shape, buffer)


def _read_big_int(data: bytes, _received: _Received) -> Any:
    return int.from_bytes(data, "little", signed=True)


def _read_bytes(data: bytes, received: _Received) -> Any:
    return bytes(_buffer(_unpack(data, received), received))


def _read_tree(data: bytes, received: _Received) -> Any:
    return _unpack(_buffer(_unpack(data, received), received), received)


_READERS: dict[int, Callable[[bytes, _Received], Any]] = {
    TUPLE: _read_tuple,
    ARRAY: _read_array,
    SCALAR: _read_scalar,
    TENSOR: _read_tensor,
    BIG_INT: _read_big_int,
    BYTES: _read_bytes,
    TREE: _read_tree,
}


def _dtype(kind: Any) -> np.dtype[Any]:
    if isinstance(kind, str) and len(kind) <= MAX_NAME:
        return _named_dtype(kind)
    return _fixed_size(np.lib.format.descr_to_dtype(_descr(kind)))


@functools.lru_cache(maxsize=NUM_REMEMBERED)
def _named_dtype(kind: str) -> np.dtype[Any]:
    module, colon, name = kind.partition(":")
    if not colon:
        return _fixed_size(np.dtype(kind))
    if module != "ml_dtypes":  # never import what a peer names
        raise RemoteProtocolError(f"dtype {kind!r} is not known here"[:200])
    registered: np.dtype[Any] = np.dtype(getattr(importlib.import_module(module), name))
    if registered.isbuiltin != REGISTERED:  # any other class is the dtype of objects
        raise RemoteProtocolError(f"{kind!r} is no dtype"[:200])
    return registered


def _fixed_size(dtype: np.dtype[Any]) -> np.dtype[Any]:
    # Objects would be read as addresses; an array of arrays has more dimensions than its shape says.
    if dtype.hasobject or dtype.itemsize == 0 or dtype.subdtype:
        raise RemoteProtocolError(f"dtype {dtype} has no fixed-size elements"[:200])
    return dtype


def _descr(kind: Any) -> Any:
    return kind if isinstance(kind, (tuple, list)) else _refuse(kind)


def _refuse(kind: Any) -> Any:
    raise RemoteProtocolError(f"not a dtype: {kind!r}"[:200])


def _shape(shape: Any) -> tuple[int, ...]:
    is_one = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS and _INTS.issuperset(map(type, shape))
    if not is_one or (shape and min(shape) < 0):
        raise RemoteProtocolError(f"not a shape: {shape!r}"[:200])
    return tuple(shape)


def _empty_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if 0 not in shape:
        raise RemoteProtocolError(f"no bytes for an array of shape {shape}"[:200])
    return shape


def _as_array(dtype: np.dtype[Any], shape: tuple[int, ...], buffer: memoryview) -> np.ndarray[Any, Any]:
    if not buffer.nbytes:
        return np.empty(_empty_shape(shape), dtype)
    if buffer.nbytes != math.prod(shape) * dtype.itemsize:
        raise RemoteProtocolError(f"{buffer.nbytes} bytes for an array of shape {shape} and dtype {dtype}"[:200])
    return np.ndarray(shape, dtype, buffer)


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
        keys = [(f"[key {_shown(key)}]", key) for key in value]
        return keys + [(f"[{_shown(key)}]", child) for key, child in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", child) for i, child in enumerate(value)]
    return []


def _shown(key: Any) -> str:
    try:
        text = repr(key)
    except Exception:  # noqa: BLE001  the user's own __repr__ may raise anything; an int may have too many digits
        return f"<{type(key).__name__}>"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _travels(value: Any) -> bool:
    try:
        _packer([], 0).pack(value)
    except UNFIT:
        return False
    return True
