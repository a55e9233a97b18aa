"""One frozen Config: defaults < orch.toml < environment < flags, checked once, here.

Each field of `Config` declares its setting whole: default, help, what is allowed, and the parser that says so. The
file's keys, the ORCH_… variables and the options of the command line are made from these fields: nothing is spelled
twice. A field's name carries its unit (`drain_timeout_s`), the setting's key does not (`drain_timeout`,
ORCH_DRAIN_TIMEOUT, --drain-timeout), because its values may say theirs (`30`, `30s`, `500ms`, `7GiB`).

Raises ConfigError alone. Knows no file system and no environment: whoever reads those hands in what it found.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import json
import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from orch.errors import ConfigError
from orch.planning.footprint import MIN_DEVICE_BYTES
from orch.planning.sizes import GIB, KIB, MIB, TIB, format_size, parse_size

# Read by other parts of orch, or set by the supervisor for its children: not settings, and no reason for a warning.
OTHER_VARIABLES: Final = frozenset(
    {
        "ORCH_CONFIG",
        "ORCH_DEBUG",
        "ORCH_INSTANCE_ID",
        "ORCH_RUNTIME_DIR",
        "ORCH_STATE_DIR",
        "ORCH_SUPERVISOR_PID",
        "ORCH_WORKER_ID",
    }
)
MAX_REPLICAS: Final = 4096  # what one host's process and descriptor tables bear with room to spare
IPC_PATH_MAX: Final = 107  # sun_path holds 108 bytes with its end
PORT_MAX: Final = 65535
SHOWN_MAX: Final = 80  # of a bad value in a message: it has to stay one line
SECONDS_IN: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

Parse = Callable[[object], Any]


class Refused(ValueError):
    """What a parser raises; its text, if any, is the reason that goes before the allowed range."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How one field is given from outside: its key, its parser, and the words for people."""

    key: str
    parse: Parse
    allowed: str
    help: str
    metavar: str
    repeated: bool  # given as KEY=VALUE any number of times; a table in the file

    @property
    def flag(self) -> str:
        return "TARGET" if self.key == "target" else "--" + self.key.replace("_", "-")

    @property
    def variable(self) -> str:
        return "ORCH_" + self.key.upper()


def _setting(
    default: object, parse: Parse, metavar: str, allowed: str, words: str, *, key: str = "", repeated: bool = False
) -> Any:
    setting = Setting(key, parse, allowed, words, metavar, repeated)
    if repeated:
        return field(default_factory=dict, metadata={"setting": setting})
    return field(default=default, metadata={"setting": setting})


# --- parsers: anything a file, a variable or a flag can hold -> the field's value, or Refused


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused("not a string")
    return value.strip()


def _matching(pattern: str) -> Parse:
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


def _integer(low: int, high: int) -> Parse:
    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refused
        return value

    return parse


def _replicas(value: object) -> int | Literal["auto"]:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return "auto"
    number: int = _integer(1, MAX_REPLICAS)(value)
    return number


def _fraction(value: object) -> float:
    if not 0 < (number := _number(value)) <= 1:
        raise Refused
    return number


def _seconds(low: float, high: float, *, open_low: bool = False) -> Parse:
    def parse(value: object) -> float:
        scale = 1.0
        if isinstance(value, str) and (parts := re.fullmatch(r"(.*[\d.])\s*(ms|s|min|m|h)", value.strip())):
            value, scale = parts[1], SECONDS_IN[parts[2]]
        number = _number(value) * scale
        if not low <= number <= high or (open_low and number == low):
            raise Refused
        return number

    return parse


def _size(key: str, low: int, high: int) -> Parse:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Refused("not a size")
        if isinstance(value, str):
            value = parse_size(value, key)
        if not low <= value <= high:
            raise Refused
        return value

    return parse


def _target(value: object) -> str:
    where, colon, name = _text(value).rpartition(":")
    if not colon or not name:
        raise Refused("it names no class or function")
    if not name.isidentifier():
        raise Refused(f"{name!r} is no name of a class or function")
    if not where.endswith(".py") and not all(part.isidentifier() for part in where.split(".")):
        raise Refused(f"{where!r} is neither a .py file nor a module")
    return f"{where}:{name}"


def _device(value: object) -> str:
    text = _text(value).lower().replace(" ", "")
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4}(,\d{1,4})*)?", text):
        raise Refused
    indexes = [int(index) for index in text.partition(":")[2].split(",") if index]
    if len(set(indexes)) < len(indexes):
        raise Refused("a GPU is named twice")
    return "cuda:" + ",".join(map(str, indexes)) if indexes else text


def _endpoint(value: object) -> str:
    text = _text(value)
    if text.startswith("ipc://"):
        path = text.removeprefix("ipc://")
        if not path.startswith("/"):
            # A relative path means another file in each process; an abstract one (@…) has no permissions at all.
            raise Refused("an ipc endpoint needs an absolute path")
        if len(path.encode()) > IPC_PATH_MAX:
            raise Refused(f"the path has {len(path.encode())} bytes and a socket's may have {IPC_PATH_MAX}")
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


def _model_settings(value: object) -> dict[str, object]:
    pairs = _pairs(value, _scalar)
    for key, entry in pairs.items():
        if not key.isidentifier():
            raise Refused(f"{key!r} cannot be the name of an argument")
        if not _fits_json(entry):
            raise Refused(f"{key} is no string, number, truth value, list or table")
    return pairs


def _environment(value: object) -> dict[str, str]:
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


# --- the settings


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting of one instance. Made by `resolve`; nobody checks or changes it afterwards."""

    target: str = _setting(
        "", _target, "TARGET", "path/to/file.py:Name or package.module:Name", "The model: a class or a function."
    )
    name: str = _setting(
        "default",
        _matching(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}"),
        "NAME",
        "1 to 64 letters, digits, dots, underscores and dashes",
        "The instance's name; commands and clients find it by this.",
    )
    replicas: int | Literal["auto"] = _setting(
        "auto",
        _replicas,
        "auto|N",
        f"auto, or a whole number from 1 to {MAX_REPLICAS}",
        "How many replicas; auto: as many as memory and cores hold, measured on the first.",
    )
    device: str = _setting(
        "auto",
        _device,
        "DEVICE",
        "auto, cpu, cuda, or cuda:0,1 with the GPUs' indexes",
        "What replicas run on; auto: every GPU there is, else the CPU.",
    )
    vram_per_replica_bytes: int | None = _setting(
        None,
        _size("vram_per_replica", MIN_DEVICE_BYTES, 16 * TIB),
        "SIZE",
        "a size from 64MiB to 16TiB, such as 7GiB or 7GB",
        "Declares what one replica takes, instead of measuring it.",
    )
    gpu_utilization: float | None = _setting(
        None,
        _fraction,
        "FRACTION",
        "a number above 0, at most 1",
        "The share of each GPU's memory that may be planned; unset: by the card's size.",
    )
    max_batch_size: int | None = _setting(
        None,
        _integer(1, 1024),
        "N",
        "a whole number from 1 to 1024",
        "Inputs in one batch; unset: what the model says.",
    )
    max_batch_wait_s: float | None = _setting(
        None,
        _seconds(0, 10),
        "SECONDS",
        "seconds from 0 to 10, such as 0.002 or 2ms",
        "How long a batch waits to fill; 0: never; unset: what the model says.",
    )
    queue_limit: int = _setting(
        65_536,
        _integer(1, 10_000_000),
        "N",
        "a whole number from 1 to 10000000",
        "Requests held queued; the next one is answered Overloaded.",
    )
    queue_bytes: int = _setting(
        2 * GIB,
        _size("queue_bytes", MIB, 16 * TIB),
        "SIZE",
        "a size from 1MiB to 16TiB, such as 2GiB",
        "Bytes of requests held, queued and running; the next one is answered Overloaded.",
        key="queue_bytes",
    )
    client_queue_limit: int = _setting(
        1024,
        _integer(1, 10_000_000),
        "N",
        "a whole number from 1 to 10000000",
        "Requests of one client at the balancer; the SDK keeps back what is beyond it.",
    )
    max_attempts: int = _setting(
        3,
        _integer(1, 100),
        "N",
        "a whole number from 1 to 100",
        "How often a request is tried whose workers die; then it is answered WorkerLost.",
    )
    listen: str | None = _setting(
        None,
        _endpoint,
        "ENDPOINT",
        "tcp://127.0.0.1:PORT or ipc:///absolute/path",
        "One more endpoint for clients, besides the one in the runtime directory.",
    )
    timeout_s: float = _setting(
        300.0,
        # Five minutes: longer than any batch that answers a person, and a hung GPU is given up the same hour.
        _seconds(0, 86_400, open_low=True),
        "SECONDS",
        "more than 0 seconds, at most 86400 (24h)",
        "How long one batch may run before its worker counts as hung and is replaced.",
    )
    load_timeout_s: float = _setting(
        600.0,
        _seconds(0, 86_400, open_low=True),
        "SECONDS",
        "more than 0 seconds, at most 86400 (24h)",
        "How long a replica may take to load and warm up.",
    )
    drain_timeout_s: float = _setting(
        30.0,
        _seconds(0, 3_600),
        "SECONDS",
        "seconds from 0 to 3600 (1h)",
        "How long accepted requests may take to finish once orch is told to stop.",
    )
    max_payload_bytes: int = _setting(
        GIB,
        _size("max_payload", KIB, 64 * GIB),
        "SIZE",
        "a size from 1KiB to 64GiB, such as 256MiB",
        "The largest request or answer; a larger one is PayloadTooLarge.",
    )
    log_max_bytes: int = _setting(
        10 * MIB,
        _size("log_max_size", 4 * KIB, TIB),
        "SIZE",
        "a size from 4KiB to 1TiB, such as 10MiB",
        "How large a log file grows before it is rotated.",
        key="log_max_size",
    )
    set: Mapping[str, object] = _setting(
        None,
        _model_settings,
        "KEY=VALUE",
        "KEY=VALUE, the key a Python name and the value as in JSON or TOML, else a string",
        "Handed to the model as a keyword argument.",
        repeated=True,
    )
    env: Mapping[str, str] = _setting(
        None, _environment, "K=V", "K=V, K a variable's name", "Set in the workers' environment.", repeated=True
    )

    @property
    def gpu_indexes(self) -> tuple[int, ...] | None:
        """The GPUs named by `device`, or None where it names none."""
        return tuple(int(index) for index in self.device.partition(":")[2].split(",") if index) or None

    def to_json(self) -> dict[str, object]:
        """Field by field, ready for json.dumps."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _with_key(entry: dataclasses.Field[Any]) -> Setting:
    setting: Setting = entry.metadata["setting"]
    return dataclasses.replace(setting, key=setting.key or re.sub(r"_(s|bytes)$", "", entry.name))


SETTINGS: Final[Mapping[str, Setting]] = {entry.name: _with_key(entry) for entry in dataclasses.fields(Config)}
FIELD_OF: Final[Mapping[str, str]] = {setting.key: name for name, setting in SETTINGS.items()}


# --- the layers


@dataclass(frozen=True, slots=True)
class Resolved:
    """The configuration, where each field's value came from, and what deserves a word though it is no error."""

    config: Config
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def resolve(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, object] | None = None,
    file_name: str = "orch.toml",
    *,
    required: Collection[str] = (),
) -> Resolved:
    """Lay flags (by field name; None or () is not given) over variables over the parsed file over the defaults.

    The tables `set` and `env` are laid over each other key by key; everything else is replaced whole.
    An empty variable counts as unset, as everywhere in a shell.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = dict.fromkeys(SETTINGS, "default")
    for name, given, source in (
        *_from_file(file or {}, file_name),
        *_from_environment(environ or {}),
        *_from_flags(flags or {}),
    ):
        value = check(name, given, source)
        if SETTINGS[name].repeated and name in values:
            values[name] = {**values[name], **value}
            origins[name] += f" + {source}"
        else:
            values[name], origins[name] = value, source
    for name in required:
        if name not in values:
            setting = SETTINGS[name]
            raise ConfigError(
                f"no {setting.key} given: say {setting.allowed} on the command line, "
                f"as {setting.variable}, or as {setting.key} in {file_name}"
            )
    return Resolved(Config(**values), origins, tuple(_unknown_variables(environ or {})))


def check(name: str, value: object, source: str) -> Any:
    """The field's value that `value` means. Raises ConfigError with key, value, source and what is allowed."""
    setting = SETTINGS[name]
    try:
        return setting.parse(value)
    except Refused as refused:
        reason = f"{refused}; " if str(refused) else ""
        raise ConfigError(f"{setting.key} = {shown(value)} (from {source}): {reason}use {setting.allowed}") from None
    except ConfigError as error:
        raise ConfigError(f"{error} (from {source})") from error


def shown(value: object) -> str:
    """A bad value as one line of bounded length."""
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return (text[:SHOWN_MAX] + "…" if len(text) > SHOWN_MAX else text) or '""'


def format_value(name: str, value: object) -> str:
    """A field's value in the words it could be given in."""
    if value is None:
        return "-"
    if name.endswith("_bytes") and isinstance(value, int):
        return format_size(value)
    if name.endswith("_s") and isinstance(value, float):
        return f"{value:g}s"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={entry}" for key, entry in value.items()) or "-"
    return str(value) or "-"


def _from_file(file: Mapping[str, object], file_name: str) -> list[tuple[str, object, str]]:
    found: dict[str, tuple[str, object, str]] = {}
    for written, value in file.items():
        key = written.replace("-", "_")
        if key not in FIELD_OF:
            near = difflib.get_close_matches(key, FIELD_OF, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(FIELD_OF)}"
            raise ConfigError(f"{file_name}: unknown key {shown(written)}; {hint}")
        if key in found:
            raise ConfigError(f"{file_name}: {key} is given twice, with a dash and with an underscore")
        found[key] = (FIELD_OF[key], value, file_name)
    return list(found.values())


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, object, str]]:
    return [
        (name, environ[setting.variable], setting.variable)
        for name, setting in SETTINGS.items()
        if environ.get(setting.variable)
    ]


def _from_flags(flags: Mapping[str, object]) -> list[tuple[str, object, str]]:
    return [(name, value, SETTINGS[name].flag) for name, value in flags.items() if value is not None and value != ()]


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = {setting.variable for setting in SETTINGS.values()}
    lines = []
    for variable in sorted(environ):
        if variable.startswith("ORCH_") and variable not in known | OTHER_VARIABLES:
            near = difflib.get_close_matches(variable, known, n=1)
            lines.append(f"{variable} means nothing to orch" + (f"; did you mean {near[0]}?" if near else ""))
    return lines
