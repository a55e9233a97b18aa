"""A generated file in its place: checked before, replaced in one step, and as readable as the one before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orch.errors import ConfigError
from orch.whole import write_whole
from orch_deploy.seal import Standing, standing, writer

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


def put(
    path: Path, text: str, check: Callable[[], None] = lambda: None, *, force: bool = False, private: bool = False
) -> None:
    """Replace the file, if it is as orch wrote it. check: looks at it in its place, together with the files around it.

    force: whatever it is. private: for this user alone; otherwise as the one before.

    Raises:
        ConfigError: it is not one of ours, or was changed, or cannot be written, or `check` refuses it; then what was
            there is there again.
    """
    before = content_of(path)
    found = Standing.ABSENT if force else standing(before, text)
    if found is Standing.FOREIGN:
        raise ConfigError(
            f"{path} was not made by `{writer(text)}`, and is left as it is; choose another --output, or replace it by "
            "--force"
        )
    if found is Standing.CHANGED:
        raise ConfigError(
            f"{path} is no longer as orch wrote it, and is left as it is; move your lines into a file of yours, and "
            f"replace this one by `{writer(text)} --output {path} --force`"
        )
    _replace(path, text, private)
    try:
        check()
    except ConfigError:
        if before:
            _replace(path, before, private)
        else:
            path.unlink(missing_ok=True)
        raise


def _replace(path: Path, text: str, private: bool) -> None:
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else MODE
        write_whole(path, text.encode())  # a new one is for this user alone until here
        path.chmod(mode & 0o600 if private else mode)
    except OSError as err:
        raise ConfigError(f"{path} cannot be written: {err.strerror}") from err
