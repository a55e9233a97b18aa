"""Pictures for image models: numbered, alike in every process, and each unlike the others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SHAPE = (3, 224, 224)
TILE = 32


def picture(number: int) -> npt.NDArray[np.uint8]:
    """uint8 (3, 224, 224): tiles of one colour each, and some noise."""
    numbers = np.random.default_rng(number)
    colours = numbers.integers(0, 224, (SHAPE[0], SHAPE[1] // TILE, SHAPE[2] // TILE), dtype=np.uint8)
    tiles = colours.repeat(TILE, axis=1).repeat(TILE, axis=2)
    return tiles + numbers.integers(0, 32, SHAPE, dtype=np.uint8)
