"""A generated file in its place: checked before, replaced in one step, and as readable as the one before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orch.errors import ConfigError
from orch.whole import write_whole
from orch_deploy.proxy import STAMP

MODE = 0o644  # of a new one, like its neighbours in /etc


def content_of(path: Path) -> str:
    """What is there; "" where nothing is.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path} cannot be read: {getattr(err, 'strerror', None) or err}") from err


def put(path: Path, text: str, check: Callable[[], None] = lambda: None) -> None:
    """Replace the file. check: looks at it in its place, together with the files around it.

    Raises:
        ConfigError: it is not one of ours, or cannot be written, or `check` refuses it; then what was there is there
            again.
    """
    before = content_of(path)
    if before and STAMP not in before:
        raise ConfigError(
            f"{path} was not made by orch, and is left as it is; move it away, or choose another --output"
        )
    _replace(path, text)
    try:
        check()
    except ConfigError:
        if before:
            _replace(path, before)
        else:
            path.unlink(missing_ok=True)
        raise


def _replace(path: Path, text: str) -> None:
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else MODE
        write_whole(path, text.encode())
        path.chmod(mode)
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror}") from err
