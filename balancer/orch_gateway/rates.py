"""When the next request of each key is due, in a file that all gateways of an instance share.

A client's connections are spread over the gateways as it happens, so a part of the rate for each would be wrong for
everybody. A record is changed under the file's lock, which ends with the process that holds it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import weakref
from pathlib import Path
from typing import Final

from orch_gateway.manners import paced

_RECORD: Final = struct.Struct("<32sd")  # a key's digest, and when its next request is due, in monotonic seconds
# Keys with a rate. One more takes the place of that which was due first.
MAX_KEYS: Final = 1024
NUM_BYTES: Final = MAX_KEYS * _RECORD.size


class SharedPaces:
    """Owns a mapping of the file, which is made if it is not there. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._fd)
        os.ftruncate(self._fd, NUM_BYTES)
        self._map = mmap.mmap(self._fd, NUM_BYTES)
        self._places: dict[str, int] = {}

    def take(self, digest: str, rate: float, now: float) -> float:
        """Count one request; seconds until one may come, 0 if this one may. digest: 64 hexadecimal digits."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            place = self._place(digest)
            known, due_at = _RECORD.unpack_from(self._map, place)
            due_at, wait_s = paced(due_at, rate, now)
            _RECORD.pack_into(self._map, place, known, due_at)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return wait_s

    def _place(self, digest: str) -> int:
        """Where the record of a key is, which is made if there is none."""
        key, place = bytes.fromhex(digest), self._places.get(digest)
        if place is not None and self._map[place : place + len(key)] == key:
            return place
        dues = {}
        for place in range(0, NUM_BYTES, _RECORD.size):
            known, dues[place] = _RECORD.unpack_from(self._map, place)
            if known == key:
                break
        else:
            place = min(dues, key=dues.__getitem__)
            _RECORD.pack_into(self._map, place, key, 0.0)
        self._places[digest] = place
        return place
