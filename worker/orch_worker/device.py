"""What torch says of the device, asked only where the model has brought torch with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def is_out_of_memory(err: BaseException) -> bool:
    """The device's allocator, or the host's, refused."""
    torch = sys.modules.get("torch")
    return isinstance(err, MemoryError) or (torch is not None and isinstance(err, torch.OutOfMemoryError))


def release_memory() -> None:
    """Give cached blocks back, so that a smaller batch finds them whole."""
    if cuda := _cuda():
        cuda.empty_cache()


def is_lost() -> bool:
    """Whether a trivial operation fails too: then every later call in this process would."""
    cuda = _cuda()
    if cuda is None:
        return False
    try:
        sys.modules["torch"].zeros(1, device="cuda").add_(1)
        cuda.synchronize()
    except Exception:  # noqa: BLE001  whatever it is, the device answered a trivial question with it
        return True
    return False


def synchronize() -> None:
    """Wait for kernels that still run, so that a late error is this batch's own."""
    if cuda := _cuda():
        cuda.synchronize()


def memory() -> dict[str, int]:
    """Torch's peak of reserved device bytes, and what the process itself can tell of the host's."""
    cuda = _cuda()
    facts = {"torch_reserved_bytes": int(cuda.max_memory_reserved()) if cuda else 0}
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    facts["resident_bytes"] = pages * os.sysconf("SC_PAGE_SIZE")
    return facts
