"""Parsers of settings: anything a file, a variable or a flag can hold -> the field's value, or Refused."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from orch.planning.sizes import parse_size

MAX_REPLICAS: Final = 4096  # what one host's process and descriptor tables bear with room to spare
SOCKET_PATH_MAX: Final = 107  # sun_path holds 108 bytes with its end
PORT_MAX: Final = 65535
SECONDS_IN: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

Parse = Callable[[object], Any]


class Refused(ValueError):
    """What a parser raises; its text, if any, is the reason that goes before the allowed range."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused("not a string")
    return value.strip()


def matching(pattern: str) -> Parse:
    """A text that the whole pattern matches."""

    def parse(value: object) -> str:
        if not re.fullmatch(pattern, text := _text(value)):
            raise Refused
        return text

    return parse


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Refused("not a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise Refused("not a number") from None
    if not math.isfinite(number):
        raise Refused("not a finite number")
    return number


def one_of(*words: str) -> Parse:
    """One of a few words."""

    def parse(value: object) -> str:
        if (text := _text(value).lower()) not in words:
            raise Refused
        return text

    return parse


def integer(low: int, high: int) -> Parse:
    """A whole number from low to high."""

    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refused
        return value

    return parse


def replicas(value: object) -> int | Literal["auto", "best"]:
    """A count, "auto" or "best"."""
    if isinstance(value, str) and (word := value.strip().lower()) in ("auto", "best"):
        return "auto" if word == "auto" else "best"
    number: int = integer(1, MAX_REPLICAS)(value)
    return number


def fraction(value: object) -> float:
    """A number above 0, at most 1."""
    if not 0 < (number := _number(value)) <= 1:
        raise Refused
    return number


def seconds(low: float, high: float, *, open_low: bool = False) -> Parse:
    """Seconds from low to high, with or without a unit."""

    def parse(value: object) -> float:
        scale = 1.0
        if isinstance(value, str) and (parts := re.fullmatch(r"(.*[\d.])\s*(ms|s|min|m|h)", value.strip())):
            value, scale = parts[1], SECONDS_IN[parts[2]]
        number = _number(value) * scale
        if not low <= number <= high or (open_low and number == low):
            raise Refused
        return number

    return parse


def size(key: str, low: int, high: int) -> Parse:
    """Bytes from low to high; texts as `parse_size` reads them."""

    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Refused("not a size")
        if isinstance(value, str):
            value = parse_size(value, key)
        if not low <= value <= high:
            raise Refused
        return value

    return parse


def size_or_zero(key: str, low: int, high: int) -> Parse:
    """As `size`, and 0 for none at all."""
    sized = size(key, low, high)
    return lambda value: 0 if value in (0, "0") and value is not False else sized(value)


def target(value: object) -> str:
    """A file or module, a colon, a name."""
    where, colon, name = _text(value).rpartition(":")
    if not colon or not name:
        raise Refused("it names no class or function")
    if not name.isidentifier():
        raise Refused(f"{name!r} is no name of a class or function")
    if not where.endswith(".py") and not all(part.isidentifier() for part in where.split(".")):
        raise Refused(f"{where!r} is neither a .py file nor a module")
    return f"{where}:{name}"


def command(value: object) -> tuple[str, ...]:
    """A list of words, none for no command; in a variable a JSON list, or words as a shell reads them."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.lstrip().startswith("[") else shlex.split(value)
        except ValueError as error:
            raise Refused(str(error)) from None
    if not isinstance(value, list | tuple):
        raise Refused("not a list of words")
    for word in value:
        if not isinstance(word, str) or "\0" in word:
            raise Refused(f"{word!r} is no text")
    if value and not value[0].strip():
        raise Refused("its first word names no program")
    return tuple(value)


def http_path(value: object) -> str:
    """The path of an HTTP request, perhaps with a query (RFC 9112, origin-form)."""
    text = _text(value)
    if not re.fullmatch(r"/[!-~]*", text) or "#" in text:
        raise Refused("it does not begin with /" if not text.startswith("/") else "it has a blank, a # or no ASCII")
    return text


def device(value: object) -> str:
    """auto, cpu, cuda, or cuda with indexes."""
    text = _text(value).lower().replace(" ", "")
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4}(,\d{1,4})*)?", text):
        raise Refused
    indexes = [int(index) for index in text.partition(":")[2].split(",") if index]
    if len(set(indexes)) < len(indexes):
        raise Refused("a GPU is named twice")
    return "cuda:" + ",".join(map(str, indexes)) if indexes else text


def endpoint(value: object) -> str:
    """A socket's path, or tcp on loopback."""
    text = _text(value)
    if text.startswith(("unix://", "ipc://")):
        path = text.partition("://")[2]
        if not path.startswith("/"):
            # A relative path means another file in each process; an abstract one (@…) has no permissions at all.
            raise Refused("it needs an absolute path")
        if len(path.encode()) > SOCKET_PATH_MAX:
            raise Refused(f"the path has {len(path.encode())} bytes and a socket's may have {SOCKET_PATH_MAX}")
        return text
    parts = re.fullmatch(r"tcp://(.+):(\d{1,5}|\*)", text)
    if not parts:
        raise Refused("not an endpoint")
    host, port = parts[1], parts[2]
    # Binding takes addresses only: libzmq looks no name up there.
    address = "127.0.0.1" if host == "localhost" else host
    try:
        loopback = ipaddress.IPv4Address(address).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise Refused(
            f"tcp on {host} would let other machines run the model, and orch has no keys (CURVE) to keep them out yet"
        )
    if port == "*" or not 1 <= int(port) <= PORT_MAX:
        raise Refused(f"{port} is no port")
    return f"tcp://{address}:{int(port)}"


def http_address(value: object) -> str:
    """auto, or as `listen_address`."""
    return "auto" if isinstance(value, str) and value.strip().lower() == "auto" else listen_address(value)


def listen_address(value: object) -> str:
    """off, or where to listen: HOST:PORT, [IPv6]:PORT, or :PORT for every address. Hosts are no names."""
    text = _text(value).lower()
    if text == "off":
        return text
    host, colon, port = text.rpartition(":")
    host = {"localhost": "127.0.0.1", "": "0.0.0.0", "*": "0.0.0.0"}.get(host, host)  # noqa: S104  if it is asked for
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise Refused("no address and port" if not colon else f"{host!r} is no IP address") from None
    if not colon or not re.fullmatch(r"\d{1,5}", port) or int(port) > PORT_MAX:
        raise Refused(f"{port!r} is no port")
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"  # noqa: PLR2004  IPv6


def switch(value: object) -> bool:
    """Yes or no."""
    if isinstance(value, bool):
        return value
    word = _text(value).lower()
    if word not in ("yes", "no", "true", "false", "on", "off", "1", "0"):
        raise Refused
    return word in ("yes", "true", "on", "1")


def origin(value: object) -> str:
    """A web page's origin (RFC 6454), or *."""
    text = _text(value).lower().rstrip("/")
    if text != "*" and not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", text):
        raise Refused
    return text


def file_path(value: object) -> str:
    """A path; whether it is there is for whoever opens it to find."""
    if not (text := _text(value)) or "\0" in text:
        raise Refused
    return text


def _scalar(text: str) -> object:
    """`text` as JSON or TOML would read it, else itself: --set rate=0.5 is a number, --set mode=fast a string."""

    def no_constant(name: str) -> object:
        raise ValueError(name)  # NaN and Infinity, which JSON has no word for

    try:
        return json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError):
        pass
    if "#" in text or "\n" in text:
        return text  # TOML would take the rest of such a line for a comment or another key
    try:
        value: object = tomllib.loads("value = " + text)["value"]
    except (ValueError, RecursionError):
        return text
    return value if _fits_json(value) else text


def _fits_json(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_fits_json, value))
    if isinstance(value, dict):
        return all(map(_fits_json, value.values()))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _pairs(value: object, read: Callable[[str], object]) -> dict[str, object]:
    """A table of the file; KEY=VALUE texts of flags; or one variable: a JSON object or KEY=VALUE between blanks."""
    if isinstance(value, Mapping):
        return {str(key): entry for key, entry in value.items()}
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                return dict(json.loads(value))
            except ValueError as error:
                raise Refused(f"not a JSON object ({error})") from None
        value = value.split()
    if not isinstance(value, list | tuple):
        raise Refused("not a table of keys and values")
    pairs: dict[str, object] = {}
    for text in value:
        key, equals, entry = str(text).partition("=")
        if not equals:
            raise Refused(f"{text!r} has no =")
        pairs[key.strip()] = read(entry)
    return pairs


def model_settings(value: object) -> dict[str, object]:
    """Keyword arguments of a model."""
    pairs = _pairs(value, _scalar)
    for key, entry in pairs.items():
        if not key.isidentifier():
            raise Refused(f"{key!r} cannot be the name of an argument")
        if not _fits_json(entry):
            raise Refused(f"{key} is no string, number, truth value, list or table")
    return pairs


def environment(value: object) -> dict[str, str]:
    """Environment variables of workers."""
    pairs: dict[str, str] = {}
    for key, entry in _pairs(value, str).items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise Refused(f"{key!r} cannot be the name of a variable")
        if key == "CUDA_VISIBLE_DEVICES":
            raise Refused("orch sets CUDA_VISIBLE_DEVICES for each replica; choose GPUs with --device cuda:0,1")
        if isinstance(entry, bool) or not isinstance(entry, str | int | float) or "\0" in str(entry):
            raise Refused(f"the value of {key} is no string or number")
        pairs[key] = str(entry)
    return pairs
