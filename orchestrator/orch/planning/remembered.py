"""Footprints measured earlier, in a file, so that the same model on the same card is planned at once.

A memory and not a truth: what is recalled is compared (`agrees`) with what the new replica 0 really costs. So nothing
here is an error: a file that is gone, damaged or cannot be written only means that it is measured again. Of two
processes that write at the same moment the later one's file stays, whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from orch.planning.footprint import Footprint, How, Parts
from orch.planning.sizes import MIB
from orch.version import __version__
from orch.whole import write_whole

log = logging.getLogger(__name__)

FORMAT = 1
# A person tries out some dozens of models and batch sizes; one entry is about 400 bytes.
MAX_ENTRIES = 200
# Ten times what that comes to: a file beyond it is not one of ours.
MAX_FILE_BYTES = MIB
# Two runs of one model differ by less: an allocator's rounding, kernels loaded earlier or later. 64 MiB for the small.
TOLERANCE, TOLERANCE_BYTES = 0.05, 64 * MIB


def key_of(
    target: str,
    *,
    settings: Mapping[str, Any],
    environ: Mapping[str, str],
    max_batch_size: int | None,
    gpu_name: str | None,
    driver: str | None,
    versions: Mapping[str, str | None] | None = None,
) -> str | None:
    """A digest of all that a footprint is known to depend on; None where the target's file cannot be read.

    settings, environ: what the user hands to the model. gpu_name: None for the CPU. versions: those of orch and torch
    in this environment unless given. What the file imports and reads is not followed; `agrees` is there for that.
    """
    place, _, name = target.rpartition(":")
    path = _file_of(place)
    try:
        if path is None:
            return None
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except (OSError, ValueError):
        return None
    facts = {
        "target": [str(path), name],
        "settings": settings,
        "environ": environ,
        "max_batch_size": max_batch_size,
        "gpu": gpu_name,
        "driver": driver,
        "versions": _versions() if versions is None else versions,
    }
    digest.update(json.dumps(facts, sort_keys=True, default=_plain).encode())
    return digest.hexdigest()


def recall(path: Path, key: str) -> Footprint | None:
    """What was remembered under that key, if anything."""
    return _decoded(_read(path).get(key))


def remember(path: Path, key: str, footprint: Footprint) -> None:
    """Keep a footprint under that key, as the newest. The oldest go when there are too many."""
    entries = _read(path)
    entries.pop(key, None)
    entries[key] = {
        **asdict(footprint),
        "how": footprint.how.name,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    kept = dict(list(entries.items())[-MAX_ENTRIES:])
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, json.dumps({"format": FORMAT, "footprints": kept}, indent=1).encode())
    except OSError as err:
        log.warning("the footprint is not remembered: %s cannot be written: %s", path, err.strerror or err)


def agrees(remembered: Footprint, measured: Footprint) -> bool:
    """Whether a plan made with the one is good for the other: device memory, or the host's for replicas on the CPU."""
    if remembered.device_bytes or measured.device_bytes:
        before, now = remembered.device_bytes, measured.device_bytes
    else:
        before, now = remembered.host_bytes or 0, measured.host_bytes or 0
    return abs(now - before) <= max(before * TOLERANCE, TOLERANCE_BYTES)


def _file_of(place: str) -> Path | None:
    """The file behind `path/to/file.py` or `package.module`, found without running any of it."""
    if place.endswith(".py") or os.sep in place:
        return Path(place).absolute()
    places = [*sys.path, str(Path.cwd())]  # as a worker looks
    origin = None
    for word in place.split("."):  # importlib.util.find_spec would import the packages on the way
        found = PathFinder.find_spec(word, places)
        if found is None:
            return None
        origin, places = found.origin, list(found.submodule_search_locations or ())
    return Path(origin) if origin else None


def _versions() -> dict[str, str | None]:
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = None
    return {"orch": __version__, "torch": torch}


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else repr(value)


def _read(path: Path) -> dict[str, Any]:
    """The file's entries, oldest first; none of a file that is missing or not what `remember` writes."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        found = json.loads(text) if len(text) <= MAX_FILE_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or found.get("format") != FORMAT or not isinstance(found.get("footprints"), dict):
        return {}
    entries: dict[str, Any] = found["footprints"]
    return entries


def _decoded(entry: Any) -> Footprint | None:
    try:
        parts = None if entry["parts"] is None else Parts(**{name: _count(n) for name, n in entry["parts"].items()})
        host_bytes = None if entry["host_bytes"] is None else _count(entry["host_bytes"])
        footprint = Footprint(_count(entry["device_bytes"]), host_bytes, How[entry["how"]], parts)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return footprint if parts is None or parts.total_bytes == footprint.device_bytes else None


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a number of bytes")
    return value
