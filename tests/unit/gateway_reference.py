"""The protocol's tensor forms, written a second time and plainly: Python values and struct, no numpy."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

CODES = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
DATATYPES = (*CODES, "BF16", "BYTES")
JSON_DATATYPES = tuple(name for name in DATATYPES if name not in ("FP16", "BF16"))
NUMPY_NAMES = {
    **{name: name.lower() for name in DATATYPES},
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BOOL": "bool",
}

# Extremes and ordinary values, each of which its datatype holds exactly.
SAMPLES: dict[str, tuple[Any, ...]] = {
    "BOOL": (True, False, False),
    "UINT8": (0, 255, 7),
    "UINT16": (0, 65535, 258),
    "UINT32": (0, 2**32 - 1, 65537),
    "UINT64": (0, 2**64 - 1, 2**53 + 1),
    "INT8": (-128, 127, -1),
    "INT16": (-32768, 32767, -2),
    "INT32": (-(2**31), 2**31 - 1, 65537),
    "INT64": (-(2**63), 2**63 - 1, 2**53 + 1),
    "FP16": (0.5, -65504.0, 6.103515625e-05),
    "BF16": (1.5, -3.140625, float(2**127)),
    "FP32": (0.5, -1.25, float(2**127)),
    "FP64": (0.1, -1e300, 5e-324),
    "BYTES": (b"", "schön".encode(), b"a\nb"),
}


def count(shape: Sequence[int]) -> int:
    """The number of elements."""
    product = 1
    for size in shape:
        product *= size
    return product


def samples(datatype: str, shape: Sequence[int]) -> list[Any]:
    """Elements of a tensor, flat."""
    return [SAMPLES[datatype][i % 3] for i in range(count(shape))]


def nest(flat: Sequence[Any], shape: Sequence[int]) -> Any:
    """Lists as deep as the shape; the element itself where there are no dimensions."""
    if not shape:
        return flat[0]
    step = count(shape[1:])
    return [nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def packed(datatype: str, flat: Sequence[Any]) -> bytes:
    """The binary form."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(each)) + each for each in flat)
    if datatype == "BF16":
        return b"".join(struct.pack("<f", each)[2:] for each in flat)
    return struct.pack(f"<{len(flat)}{CODES[datatype]}", *flat)


def unpacked(datatype: str, data: bytes, number: int) -> list[Any]:
    """The elements of a binary form, which must be used up."""
    if datatype == "BYTES":
        found = []
        for _ in range(number):
            (length,) = struct.unpack("<I", data[:4])
            found.append(data[4 : 4 + length])
            assert len(found[-1]) == length
            data = data[4 + length :]
        assert data == b""
        return found
    if datatype == "BF16":
        assert len(data) == 2 * number
        return [struct.unpack("<f", b"\0\0" + data[2 * i : 2 * i + 2])[0] for i in range(number)]
    return list(struct.unpack(f"<{number}{CODES[datatype]}", data))


def plain(datatype: str, flat: Sequence[Any]) -> list[Any]:
    """The elements as JSON has them."""
    return [each.decode() for each in flat] if datatype == "BYTES" else list(flat)


def from_json(datatype: str, data: Sequence[Any]) -> list[Any]:
    """The elements that JSON stands for: a number is the datatype's nearest."""
    if datatype == "FP32":
        return [struct.unpack("<f", struct.pack("<f", each))[0] for each in data]
    return [each.encode() for each in data] if datatype == "BYTES" else list(data)


def tensors_of(parts: Sequence[Any], header_length: int | None) -> dict[str, tuple[str, list[int], list[Any]]]:
    """What a client reads in an answer: by name, the datatype, the shape, and the elements, flat."""
    body = b"".join(bytes(part) for part in parts)
    head, tail = (body, b"") if header_length is None else (body[:header_length], body[header_length:])
    found = {}
    for output in json.loads(head)["outputs"]:
        number = count(output["shape"])
        if "data" in output:
            flat = from_json(output["datatype"], output["data"])
            assert len(flat) == number
        else:
            size = output["parameters"]["binary_data_size"]
            flat, tail = unpacked(output["datatype"], tail[:size], number), tail[size:]
        found[output["name"]] = (output["datatype"], output["shape"], flat)
    assert tail == b""
    return found
