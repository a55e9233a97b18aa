"""Files that are replaced in one step."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Whoever reads the file sees the old one or the new one, whenever we die.

    Only this user may read a new one; one that was there keeps its mode, and, if we may, its owner and group.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            _keep(file.fileno(), path)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _keep(fd: int, path: Path) -> None:
    with suppress(FileNotFoundError):
        was, now = path.stat(), os.fstat(fd)
        if (was.st_uid, was.st_gid) != (now.st_uid, now.st_gid):
            with suppress(PermissionError):
                os.fchown(fd, was.st_uid, was.st_gid)
        os.fchmod(fd, stat.S_IMODE(was.st_mode))
