"""Where an instance keeps its sockets and its logs.

Runtime directories are sought under, in this order: $ORCH_RUNTIME_DIR, $XDG_RUNTIME_DIR/orch, /run/orch,
/tmp/orch-UID. Each holds one directory per instance (sockets; mode 0700; gone when the instance is) and NAME.lock
beside it. A supervisor takes the first it can write; a client takes the first that has a running instance.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from orch.errors import AlreadyRunning, NotRunning, RuntimeDirError

# sun_path holds 108 bytes with its terminating zero (unix(7)).
MAX_SOCKET_PATH_BYTES = 107
FRONT, BACK, CONTROL, ARENA = "front.sock", "back.sock", "control.sock", "arena.sock"
LONGEST_FILE = "/" + CONTROL


def front_endpoint(directory: Path) -> str:
    """Where clients of the instance connect."""
    return f"unix://{directory / FRONT}"


def back_path(directory: Path) -> str:
    """Where workers of the instance connect."""
    return str(directory / BACK)


def bases(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """The places to look, in order. $ORCH_RUNTIME_DIR, where set, is the only one."""
    if chosen := environ.get("ORCH_RUNTIME_DIR"):
        return [Path(chosen).absolute()]
    xdg = environ.get("XDG_RUNTIME_DIR")
    return [*([Path(xdg) / "orch"] if xdg else []), Path("/run/orch"), short_base()]


def short_base() -> Path:
    """The last resort, short enough for any instance name."""
    return Path(f"/tmp/orch-{os.getuid()}")  # noqa: S108  checked for owner and mode before use


def meeting_base() -> Path:
    """Where this user's instances meet, whatever their runtime directories are.

    A service's own /tmp is private: under systemd that is /run/orch, which belongs to the user of all services.
    """
    common = Path("/run/orch")
    return common if common.is_dir() and common.stat().st_uid == os.getuid() else short_base()


def directory_in(base: Path, name: str) -> Path:
    """The instance's directory under `base`, or a short hashed one where a socket path would be too long."""
    path = base / name
    if len(os.fsencode(str(path) + LONGEST_FILE)) <= MAX_SOCKET_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return short_base() / f"long-{digest}"


def find(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The runtime directory of the running instance `name`.

    Raises:
        NotRunning: none of the places has one.
    """
    places = [directory_in(base, name) for base in bases(environ)]
    for place in places:
        if (place / CONTROL).exists() or (place / FRONT).exists():
            return place
    looked = ", ".join(str(place) for place in places)
    raise NotRunning(
        f"no instance {name!r} is running (looked in {looked}); start one with `orch up TARGET --name {name}`"
    )


def log_dir(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the instance's logs are kept; they outlive it."""
    if chosen := environ.get("ORCH_STATE_DIR"):
        return Path(chosen).absolute() / name
    state = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "orch" / name


class RuntimeDir:
    """One instance's directory and the lock on its name, held from creation to `remove`.

    Raises:
        AlreadyRunning: another supervisor holds the lock.
        RuntimeDirError: no place could be used; the message has the reason of each.
    """

    def __init__(self, name: str, environ: Mapping[str, str] = os.environ) -> None:
        self.name = name
        refusals = []
        for base in bases(environ):
            try:
                self.path = directory_in(base, name)
                _own_directory(self.path.parent)
                self._lock_path = self.path.parent / f"{self.path.name}.lock"
                self._lock = _lock(self._lock_path, name)
                _empty(self.path)
            except OSError as err:
                refusals.append(f"{self.path}: {err.strerror or err}")
            else:
                self.moved_from = base / name if self.path != base / name else None
                return
        raise RuntimeDirError(
            f"no runtime directory can be used ({'; '.join(refusals)}); "
            "set ORCH_RUNTIME_DIR to a directory that you own and can write"
        )

    def remove(self) -> None:
        """Unlink everything and let go of the name."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)  # before the lock is let go: see _lock
        os.close(self._lock)


def _own_directory(base: Path) -> None:
    """Make `base`, or check that nobody else could have planted it."""
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.getuid(), 0):
        raise PermissionError(1, "is not a directory of this user")


def _lock(path: Path, name: str) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "?"
            os.close(fd)
            raise AlreadyRunning(
                f"an instance named {name!r} is already running (pid {holder}); "
                f"`orch down --name {name}` stops it, or choose another --name"
            ) from None
        # The holder before us may have unlinked the file between our open and our lock.
        if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
            return fd
        os.close(fd)


def _empty(path: Path) -> None:
    """A directory of ours, without what a killed predecessor left."""
    if path.is_symlink() or path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    # A directory around it that one group may pass, and nobody else, was made so for that group's sake: systemd's
    # RuntimeDirectoryMode=0750. The sockets in it have modes of their own; a proxy reaches those of the gateways.
    if path.parent.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH) == stat.S_IXGRP:
        path.chmod(0o710)
