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
from orch.version import __version__

# Settings that change how fast a model answers, beside the three that are tried out.
SETTINGS: Final = (
    "device", "vram_per_replica_bytes", "gpu_utilization", "pin_cpus", "mps_thread_percentage", "max_batch_wait_s",
)  # fmt: skip
# Of a variable's value: enough to notice a change, and too little to guess from. It may be a secret.
SHORT_DIGEST: Final = 4
SHOWN_MAX: Final = 80


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
    """What differs, each as "seconds is 2 there and 5 now"."""
    return [
        f"{name} is {_shown(there.get(name))} there and {_shown(now.get(name))} now"
        for name in {**there, **now}
        if there.get(name) != now.get(name)
    ]


def _shown(value: object) -> str:
    text = str(value)
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
