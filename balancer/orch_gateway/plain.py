"""JSON for people: what a model that declares no tensors takes and gives.

orjson reads it 5 to 10 times as fast as the standard library, and writes it 12 to 20 times as fast, arrays as they are.
What orjson does not do is left to the standard library: it is rare, and then somebody waits for it.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson

from orch.payload import BFLOAT16, RawTensor

OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def loads(text: bytes | memoryview) -> Any:
    """The value of a JSON text in UTF-8. NaN and Infinity are read, as tritonclient writes them.

    Integers beyond 64 bits become floats.

    Raises:
        ValueError: it is none, or is nested too deep; one line says where.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # no JSON, or NaN, or half of a surrogate pair
    try:
        return json.loads(str(text, "utf-8"))
    except json.JSONDecodeError as err:
        raise ValueError(f"{err.msg} at {err.pos}") from err
    except UnicodeDecodeError as err:
        raise ValueError(f"no UTF-8 at {err.start}") from err
    except RecursionError as err:
        raise ValueError("nested too deep") from err


def dumps(value: Any) -> bytes:
    """A payload tree as JSON in UTF-8: arrays and tuples as arrays, bytes as the text that they hold.

    Numbers that are not finite are null.

    Raises:
        ValueError: there is something in it that JSON cannot say; one line says what.
    """
    try:
        return orjson.dumps(value, _plain, OPTIONS)
    except orjson.JSONEncodeError:
        pass  # keys that are no texts, integers beyond 64 bits, half of a surrogate pair, or what JSON cannot say
    try:
        text = json.dumps(value, default=_plain, separators=(",", ":"))
        if "NaN" in text or "Infinity" in text:  # or in a text of the value, which stays as it is
            text = json.dumps(_finite(json.loads(text)), separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as err:
        raise ValueError("nested too deep" if isinstance(err, RecursionError) else str(err)) from err
    return text.encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(each) for each in value]
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return value


def floats(bits: Any) -> np.ndarray[Any, Any]:
    """The float32 values of bfloat16 bits; each is exact."""
    return (np.frombuffer(bits, "<u2").astype("<u4") << 16).view("<f4")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, RawTensor) and value.dtype == BFLOAT16:
        return floats(value.data).reshape(value.shape).tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as err:
            raise ValueError("bytes that are no UTF-8 have no JSON form") from err
    raise ValueError(f"{type(value).__name__} has no JSON form")
