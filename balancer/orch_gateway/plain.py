"""JSON for people: what a model that declares no tensors takes and gives."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from orch.payload import BFLOAT16, RawTensor


def loads(text: bytes | memoryview) -> Any:
    """The value of a JSON text in UTF-8. NaN and Infinity are read, as tritonclient writes them.

    Raises:
        ValueError: it is none, or is nested too deep; one line says where.
    """
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

    Raises:
        ValueError: there is something in it that JSON cannot say; one line says what.
    """
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as err:
        raise ValueError("nested too deep" if isinstance(err, RecursionError) else str(err)) from err
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only say escaped
        return json.dumps(value, default=_plain, separators=(",", ":")).encode()


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
