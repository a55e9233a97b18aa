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
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from orch.command import PORT, title
from orch.command_settings import CommandSettings, check_command, check_model
from orch.errors import ConfigError
from orch.parsing import (
    MAX_REPLICAS,
    Refused,
    device,
    endpoint,
    environment,
    file_path,
    fraction,
    integer,
    matching,
    model_settings,
    one_of,
    replicas,
    seconds,
    size,
    size_or_zero,
    target,
)
from orch.planning.footprint import MIN_DEVICE_BYTES
from orch.planning.sizes import GIB, KIB, MIB, TIB, format_size
from orch.setting import Setting, declare

# Read by other parts of orch, or set by the supervisor for its children: not settings, and no reason for a warning.
OTHER_VARIABLES: Final = frozenset(
    {
        "ORCH_CONFIG",
        "ORCH_DEBUG",
        "ORCH_INSTANCE_ID",
        "ORCH_KEYS_FILE",
        "ORCH_RUNTIME_DIR",
        "ORCH_STATE_DIR",
        "ORCH_SUPERVISOR_PID",
        "ORCH_WORKER_ID",
    }
)
SHOWN_MAX: Final = 80  # of a bad value in a message: it has to stay one line


# --- the settings


@dataclass(frozen=True, slots=True)
class Config(CommandSettings):
    """Every setting of one instance. Made by `resolve`; nobody checks or changes it afterwards."""

    target: str = declare(
        "", target, "TARGET", "path/to/file.py:Name or package.module:Name", "The model: a class or a function."
    )
    name: str = declare(
        "default",
        matching(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}"),
        "NAME",
        "1 to 64 letters, digits, dots, underscores and dashes",
        "The instance's name; commands and clients find it by this.",
    )
    replicas: int | Literal["auto", "best"] = declare(
        "auto",
        replicas,
        "auto|best|N",
        f"auto, best, or a whole number from 1 to {MAX_REPLICAS}",
        "How many replicas; auto: as many as memory and cores hold, measured on the first; best: as many as pay.",
    )
    min_gain: float = declare(
        0.05,
        fraction,
        "FRACTION",
        "a number above 0, at most 1",
        "For --replicas best: what one more replica has to bring, as a share, for the search to go on from it.",
    )
    load_parallelism: int = declare(
        1,
        integer(1, 64),
        "N",
        "a whole number from 1 to 64",
        "Replicas that may load at the same time; 1: each sees what the one before has taken.",
    )
    device: str = declare(
        "auto",
        device,
        "DEVICE",
        "auto, cpu, cuda, or cuda:0,1 with the GPUs' indexes",
        "What replicas run on; auto: every GPU there is, else the CPU.",
    )
    vram_per_replica_bytes: int | None = declare(
        None,
        size("vram_per_replica", MIN_DEVICE_BYTES, 16 * TIB),
        "SIZE",
        "a size from 64MiB to 16TiB, such as 7GiB or 7GB",
        "Declares what one replica takes, instead of measuring it.",
    )
    gpu_utilization: float | None = declare(
        None,
        fraction,
        "FRACTION",
        "a number above 0, at most 1",
        "The share of each GPU's memory that may be planned; unset: by the card's size.",
    )
    mps: Literal["auto", "on", "off"] = declare(
        "auto",
        one_of("auto", "on", "off"),
        "auto|on|off",
        "auto, on or off",
        "Run a GPU's replicas at the same time (CUDA MPS), not in turns; auto: where it can be had and may help.",
    )
    pin_cpus: Literal["auto", "off"] = declare(
        "auto",
        one_of("auto", "off"),
        "auto|off",
        "auto or off",
        "Give each replica on a GPU CPU cores of its own, near its GPU, where there are enough.",
    )
    mps_thread_percentage: int | None = declare(
        None,
        integer(1, 100),
        "PERCENT",
        "a whole number from 1 to 100",
        "The part of a GPU's multiprocessors that one replica may use under MPS; unset: all.",
    )
    max_batch_size: int | None = declare(
        None,
        integer(1, 1024),
        "N",
        "a whole number from 1 to 1024",
        "Inputs in one batch; unset: what the model says.",
    )
    max_batch_wait_s: float | None = declare(
        None,
        seconds(0, 10),
        "SECONDS",
        "seconds from 0 to 10, such as 0.002 or 2ms",
        "How long a batch waits to fill; 0: never; unset: what the model says.",
    )
    queue_limit: int = declare(
        65_536,
        integer(1, 10_000_000),
        "N",
        "a whole number from 1 to 10000000",
        "Requests held queued; the next one is answered Overloaded.",
    )
    queue_bytes: int = declare(
        2 * GIB,
        size("queue_bytes", MIB, 16 * TIB),
        "SIZE",
        "a size from 1MiB to 16TiB, such as 2GiB",
        "Bytes of requests held, queued and running; the next one is answered Overloaded.",
        key="queue_bytes",
    )
    client_queue_limit: int = declare(
        1024,
        integer(1, 10_000_000),
        "N",
        "a whole number from 1 to 10000000",
        "Requests of one client at the balancer; the SDK keeps back what is beyond it.",
    )
    max_attempts: int = declare(
        3,
        integer(1, 100),
        "N",
        "a whole number from 1 to 100",
        "How often a request is tried whose workers die; then it is answered WorkerLost.",
    )
    listen: str | None = declare(
        None,
        endpoint,
        "ENDPOINT",
        "tcp://127.0.0.1:PORT, ipc:///absolute/path or unix:///absolute/path",
        "One more endpoint for clients, besides the one in the runtime directory.",
    )
    nginx: str | None = declare(
        None,
        file_path,
        "FILE",
        "the path of a file",
        "Keep this file of nginx true as servers come and go (`orch deploy nginx --output FILE` makes it).",
    )
    nginx_reload: str | None = declare(
        None,
        file_path,
        "COMMAND",
        "a command, such as sudo systemctl reload nginx",
        "What has nginx take that file, where orch may not tell nginx itself.",
    )
    timeout_s: float = declare(
        300.0,
        # Five minutes: longer than any batch that answers a person, and a hung GPU is given up the same hour.
        seconds(0, 86_400, open_low=True),
        "SECONDS",
        "more than 0 seconds, at most 86400 (24h)",
        "How long one batch may run before its worker counts as hung and is replaced.",
    )
    load_timeout_s: float = declare(
        600.0,
        seconds(0, 86_400, open_low=True),
        "SECONDS",
        "more than 0 seconds, at most 86400 (24h)",
        "How long a replica may take to load and warm up.",
    )
    drain_timeout_s: float = declare(
        30.0,
        seconds(0, 3_600),
        "SECONDS",
        "seconds from 0 to 3600 (1h)",
        "How long accepted requests may take to finish once orch is told to stop.",
    )
    max_payload_bytes: int = declare(
        GIB,
        size("max_payload", KIB, 64 * GIB),
        "SIZE",
        "a size from 1KiB to 64GiB, such as 256MiB",
        "The largest request or answer; a larger one is PayloadTooLarge.",
    )
    shared_memory_bytes: int = declare(
        256 * MIB,
        size_or_zero("shared_memory", MIB, TIB),
        "SIZE",
        "0, or a size from 1MiB to 1TiB, such as 256MiB",
        "Memory through which large arrays travel on this host; 0: they are sent through sockets.",
    )
    log_max_bytes: int = declare(
        10 * MIB,
        size("log_max_size", 4 * KIB, TIB),
        "SIZE",
        "a size from 4KiB to 1TiB, such as 10MiB",
        "How large a log file grows before it is rotated.",
        key="log_max_size",
    )
    set: Mapping[str, object] = declare(
        None,
        model_settings,
        "KEY=VALUE",
        "KEY=VALUE, the key a Python name and the value as in JSON or TOML, else a string",
        "Handed to the model as a keyword argument.",
        repeated=True,
    )
    env: Mapping[str, str] = declare(
        None, environment, "K=V", "K=V, K a variable's name", "Set in the workers' environment.", repeated=True
    )

    @property
    def title(self) -> str:
        """What runs, for people: the model's name, or a command's first words."""
        return title(self.command) if self.command else self.target.rpartition(":")[2]

    @property
    def gpu_indexes(self) -> tuple[int, ...] | None:
        """The GPUs named by `device`, or None where it names none."""
        return tuple(int(index) for index in self.device.partition(":")[2].split(",") if index) or None

    def to_json(self) -> dict[str, object]:
        """Field by field, ready for json.dumps."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _with_key(entry: dataclasses.Field[Any]) -> Setting:
    setting: Setting = entry.metadata["setting"]
    return dataclasses.replace(setting, key=setting.key or re.sub(r"_(s|bytes)$", "", entry.name))


def _fields() -> list[dataclasses.Field[Any]]:
    """Config's own first: the order in which people meet them."""
    inherited = {entry.name for entry in dataclasses.fields(CommandSettings)}
    return sorted(dataclasses.fields(Config), key=lambda entry: entry.name in inherited)


SETTINGS: Final[Mapping[str, Setting]] = {entry.name: _with_key(entry) for entry in _fields()}
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
    An empty variable counts as unset, as everywhere in a shell. required: one of these is to be given; a command is
    taken for a target, too, so that whoever has no use for it can say so.
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
    config = Config(**values)
    if config.command:
        check_command(config, origins, lambda name: _given(name, getattr(config, name), origins[name]))
    elif config.target:
        check_model(origins, lambda name: _given(name, getattr(config, name), origins[name]))
    if required and not config.command and not any(name in values for name in required):
        setting = SETTINGS["target"]
        raise ConfigError(
            f"no {setting.key} given: say {setting.allowed} on the command line, "
            f"as {setting.variable}, or as {setting.key} in {file_name}"
            + ("; or any HTTP server behind --" if "command" in required else "")
        )
    return Resolved(config, origins, tuple(_unknown_variables(environ or {})))


def _given(name: str, value: object, source: str) -> str:
    return f"{SETTINGS[name].key} = {shown(format_value(name, value))} (from {source})"


def check(name: str, value: object, source: str) -> Any:
    """The field's value that `value` means. Raises ConfigError with key, value, source and what is allowed."""
    setting = SETTINGS[name]
    try:
        return setting.parse(value)
    except Refused as refused:
        reason = f"{refused}; " if str(refused) else ""
        if PORT in str(value) and name not in ("command", "env", "set"):
            reason += (
                f"{PORT} is filled in behind -- only, where a command stands: orch up -- python server.py {PORT}; "
            )
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
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={entry}" for key, entry in value.items()) or "-"
    if isinstance(value, tuple):
        return shlex.join(value) or "-"
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
