"""API keys of an instance: what `orch keys` writes and gateways read. Only digests are kept.

The file is keys.json beside the instance's logs, or what $ORCH_KEYS_FILE names, such as a secret of a container:
{"keys": [{"name", "digest", "rate", "made_at"}]}. rate: requests in a second, or null for any number; made_at: seconds
since 1970.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orch import runtime
from orch.errors import ConfigError
from orch.whole import write_whole

FILE = "keys.json"
PREFIX = "orch_"  # by which people, and tools that look for leaked secrets, know one
TOKEN_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def path_of(instance: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the keys of an instance are kept."""
    if chosen := environ.get("ORCH_KEYS_FILE"):
        return Path(chosen).absolute()
    return runtime.log_dir(instance, environ) / FILE


def digest_of(token: str) -> str:
    """What is kept of a token. It has 256 random bits, so there is nothing that a slow hash would protect."""
    return hashlib.sha256(token.encode()).hexdigest()


def read(path: Path) -> list[dict[str, Any]]:
    """The keys of a file; none where there is no file.

    Raises:
        ConfigError: it cannot be read, or was not written by `add`.
    """
    try:
        rows = json.loads(path.read_bytes())["keys"]
        return [
            {
                "name": str(row["name"]),
                "digest": str(row["digest"]),
                "rate": None if row["rate"] is None else float(row["rate"]),
                "made_at": float(row["made_at"]),
            }
            for row in rows
        ]
    except FileNotFoundError:
        return []
    except OSError as err:
        raise ConfigError(f"{path} cannot be read: {err.strerror}") from err
    except (ValueError, TypeError, KeyError) as err:
        raise ConfigError(
            f"{path} holds no keys of orch ({type(err).__name__}); move it away and add them anew"
        ) from err


def add(path: Path, name: str, rate: float | None) -> str:
    """Make a key; its token, which is kept nowhere.

    Raises:
        ConfigError: the name is none, or is taken; or the file cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"key {name[:80]!r}: use 1 to 64 letters, digits, dots, underscores and dashes")
    rows = read(path)
    if any(row["name"] == name for row in rows):
        raise ConfigError(f"there is a key {name!r} already; `orch keys remove {name}` takes it away")
    token = PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
    _write(path, [*rows, {"name": name, "digest": digest_of(token), "rate": rate, "made_at": time.time()}])
    return token


def remove(path: Path, name: str) -> None:
    """Take a key away; running gateways refuse it within seconds.

    Raises:
        ConfigError: there is none of that name; or the file cannot be read or written.
    """
    rows = read(path)
    left = [row for row in rows if row["name"] != name]
    if len(left) == len(rows):
        known = ", ".join(row["name"] for row in rows) or "none"
        raise ConfigError(f"there is no key {name[:80]!r}; there are: {known}")
    _write(path, left)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, json.dumps({"keys": rows}, indent=2).encode())
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror}; ORCH_STATE_DIR chooses another place") from err
