"""A Config as text: of an orch.toml, or of ORCH_ variables. Only what differs from the defaults is written. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from orch.config import SETTINGS, Config
from orch.errors import ConfigError
from orch.planning.sizes import GIB, KIB, MIB

# What JSON leaves as it is, and YAML or TOML would not read back (YAML 1.2, 5.1 and 5.4; TOML 1.0, String).
_UNREAD: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_UNITS: Final = (("GiB", GIB), ("MiB", MIB), ("KiB", KIB))


def as_file(config: Config) -> str:
    """The text of an orch.toml (TOML 1.0, https://toml.io/en/v1.0.0) that `orch.config.resolve` reads as `config`.

    Raises:
        ConfigError: a setting of the model holds a null, which TOML has no word for.
    """
    plain, tables = [], []
    for name, value in _chosen(config):
        key = SETTINGS[name].key
        if isinstance(value, Mapping):
            tables.append(f"\n[{key}]\n" + "".join(f"{_key(each)} = {_toml(value[each])}\n" for each in value))
        else:
            plain.append(f"{key} = {_toml(_simple(name, value))}\n")
    return "".join(plain + tables)


def as_variables(config: Config) -> dict[str, str]:
    """The variables that `orch.config.resolve` reads as `config`; tables and lists are JSON."""
    return {SETTINGS[name].variable: _word(_simple(name, value)) for name, value in _chosen(config)}


def quoted(value: Any) -> str:
    """In one line that JSON, YAML and TOML read alike; of a table, JSON and YAML do."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNREAD.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _chosen(config: Config) -> Iterator[tuple[str, Any]]:
    default = Config()
    for name in SETTINGS:
        value = getattr(config, name)
        if value != getattr(default, name):
            yield name, value


def _simple(name: str, value: Any) -> Any:
    """A value as people write it: bytes with the largest unit that divides them, whole seconds without a point."""
    if name.endswith("_bytes") and value:
        unit = next(((word, size) for word, size in _UNITS if value % size == 0), None)
        return value if unit is None else f"{value // unit[1]}{unit[0]}"
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(dict(value) if isinstance(value, Mapping) else list(value), ensure_ascii=False)
    return str(value)


def _key(text: str) -> str:
    bare = text.isascii() and text.replace("_", "").replace("-", "").isalnum()
    return text if bare else _toml(text)


def _toml(value: Any) -> str:
    """A value in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_toml(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if value is None:
        raise ConfigError("a setting of the model is null, which orch.toml has no word for; leave it out")
    return quoted(value)
