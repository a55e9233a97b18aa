"""What children print: split into lines, kept in rotated files, passed on with the replica's name."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
from collections.abc import Callable
from pathlib import Path

from orch.errors import RuntimeDirError

BACKUPS = 3
MAX_DRAIN_READS = 16
READ_BYTES = 64 * 1024
# A line longer than this is cut into several: a progress bar that never ends its line must not fill memory.
MAX_LINE_BYTES = 16 * 1024


class LogFiles:
    """One rotated file per name. Owns the handlers.

    Raises:
        RuntimeDirError: the directory cannot be made or written.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self._max_bytes = max_bytes
        self._handlers: dict[str, logging.handlers.RotatingFileHandler] = {}
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handler("supervisor")
        except OSError as err:
            raise RuntimeDirError(
                f"the log directory {directory} cannot be written ({err.strerror}); "
                "set ORCH_STATE_DIR to a directory that you can write"
            ) from err

    def of(self, name: str) -> Path:
        """Where its lines are; the directory, as long as there are none."""
        path = self.directory / f"{name}.log"
        return path if path.exists() else self.directory

    def write(self, name: str, line: str) -> None:
        """Append a line with the time. What no file can be opened for is in no file."""
        record = logging.LogRecord(name, logging.INFO, "", 0, "%s", (line,), None)
        with contextlib.suppress(OSError):
            self._handler(name).handle(record)

    def _handler(self, name: str) -> logging.handlers.RotatingFileHandler:
        handler = self._handlers.get(name)
        if handler is None:
            path = self.directory / f"{name}.log"
            handler = logging.handlers.RotatingFileHandler(
                path, maxBytes=self._max_bytes, backupCount=BACKUPS, encoding="utf-8", errors="backslashreplace"
            )
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._handlers[name] = handler
        return handler

    def close(self) -> None:
        """Close every file."""
        for handler in self._handlers.values():
            handler.close()


class Lines:
    """Turns a child's pipe into lines. `on_line` gets each without its end."""

    def __init__(self, read: Callable[[int], bytes | None], on_line: Callable[[str], None]) -> None:
        self._read = read
        self._on_line = on_line
        self._rest = b""

    def drain(self) -> None:
        """Pass on what is there, but not for ever: somebody else may still be writing."""
        for _ in range(MAX_DRAIN_READS):
            if not self.pump(end_on_empty=True):
                return

    def pump(self, *, end_on_empty: bool = False) -> bool:
        """Pass on what has arrived. False: end of file, or, if so asked, nothing more for now."""
        piece = self._read(READ_BYTES)
        if piece is None:
            return not end_on_empty
        self._rest += piece.replace(b"\r", b"\n")
        *lines, self._rest = self._rest.split(b"\n")
        while len(self._rest) > MAX_LINE_BYTES:
            lines.append(self._rest[:MAX_LINE_BYTES])
            self._rest = self._rest[MAX_LINE_BYTES:]
        if not piece and self._rest:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            for start in range(0, len(line), MAX_LINE_BYTES):
                self._on_line(line[start : start + MAX_LINE_BYTES].decode("utf-8", "backslashreplace"))
        return bool(piece)
