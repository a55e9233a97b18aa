"""What a result file was measured for. Rows of other facts are not comparable, and are never mixed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from orch.config import Config
from orch.planning import gpu, remembered
from orch.planning.devices import gpus_for
from orch.planning.host import read_host
from orch.tuning.words import SHOWN_DIGEST
from orch.version import __version__

# Settings that change how fast a model answers, beside the three that are tried out.
SETTINGS: Final = (
    "device", "vram_per_replica_bytes", "gpu_utilization", "pin_cpus", "mps_thread_percentage", "max_batch_wait_s",
)  # fmt: skip
# Of a variable's value: enough to notice a change, and too little to guess from. It may be a secret.
SHORT_DIGEST: Final = 4
SHOWN_MAX: Final = 80
# Not compared: a longer window gives the same figure, only more surely; each row says how long it was measured.
FREE: Final = ("seconds",)
# What follows from another fact, and is not told beside it.
IMPLIED: Final = {"target_digest": "target", "driver": "gpus"}


def facts_of(config: Config, window_s: float) -> dict[str, Any]:
    """Everything that the figures depend on, ready for JSON; any machine of the same kind will do."""
    gpus = gpus_for(config)
    return {
        "target": config.target,
        "target_digest": _digest_of(config.target),
        "settings": dict(config.set),
        "environment": {key: _digest(value.encode())[:SHORT_DIGEST] for key, value in config.env.items()},
        **{name: getattr(config, name) for name in SETTINGS},
        "seconds": window_s,
        "gpus": [each.name for each in gpus],
        "driver": gpu.driver_version() if gpus else None,
        "cores": read_host().cores,
        "python": platform.python_version(),
        "torch": _torch_version(),
        "orch": __version__,
    }


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, each as "cores is 2 there and 4 now"; of tables the entries that do."""
    names = [name for name in {**there, **now} if name not in FREE and there.get(name) != now.get(name)]
    return [_difference(name, there.get(name), now.get(name)) for name in names if IMPLIED.get(name) not in names]


def _difference(name: str, there: Any, now: Any) -> str:
    if name == "target_digest":
        return f"the model's file is {_short(there)} there and {_short(now)} now (SHA-256)"
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
        if name == "environment":  # digests, which say nothing
            return f"--env {', '.join(keys)} has other values"
        return "; ".join(
            f"{name}.{key} is {_shown(there.get(key))} there and {_shown(now.get(key))} now" for key in keys
        )
    return f"{name} is {_shown(there)} there and {_shown(now)} now"


def _short(digest: object) -> str:
    return str(digest)[:SHOWN_DIGEST]


def _shown(value: object) -> str:
    text = "not set" if value is None else str(value)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"


def _digest_of(target: str) -> str | None:
    """Of the file alone, wherever it lies; of a module, where it is found too."""
    path = Path(target.rpartition(":")[0])
    if path.is_file():
        return _digest(path.read_bytes())
    return remembered.key_of(
        target, settings={}, environ={}, max_batch_size=None, gpu_name=None, driver=None, versions={}
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _torch_version() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
