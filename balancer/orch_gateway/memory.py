"""How this process keeps memory: bodies come and go by the hundred kilobytes."""

from __future__ import annotations

import ctypes
from typing import Final

# mallopt(3). glibc takes large blocks from the kernel one by one and gives the heap's end back as soon as it is free;
# then each body is paid for in page faults, which made large ones three times as slow.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT_BYTES: Final = 128 * 2**20
PAD_BYTES: Final = 16 * 2**20
LARGEST_BYTES: Final = 32 * 2**20  # the most that it takes from its heap


def keep_memory() -> None:
    """Keep what was freed, up to KEPT_BYTES, for what comes next. Without glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_TOP_PAD, PAD_BYTES)
