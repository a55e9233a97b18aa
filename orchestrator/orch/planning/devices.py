"""Which GPUs the setting `device` stands for on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping

from orch.config import Config
from orch.errors import ConfigError
from orch.planning import gpu
from orch.planning.cards import Gpu


def gpus_for(config: Config, environ: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """The GPUs to use, within CUDA_VISIBLE_DEVICES; none for the CPU.

    Raises:
        ConfigError: a GPU is asked for that is not there.
    """
    if config.device == "cpu":
        return ()
    found = gpu.read_gpus(visible=environ.get("CUDA_VISIBLE_DEVICES"))
    if config.device != "auto" and not found:
        raise ConfigError(
            f"device = {config.device}: {gpu.why_none()}; use --device cpu, or auto for whatever there is"
        )
    if config.gpu_indexes is None:
        return found
    missing = set(config.gpu_indexes) - {one.index for one in found}
    if missing:
        there = ", ".join(str(one.index) for one in found)
        raise ConfigError(
            f"device = {config.device}: there is no GPU {', '.join(map(str, sorted(missing)))}; there are: {there}"
        )
    return tuple(one for one in found if one.index in config.gpu_indexes)
