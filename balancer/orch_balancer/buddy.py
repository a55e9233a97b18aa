"""A buddy allocator: blocks of powers of two, each aligned to its size; every step is logarithmic."""

from __future__ import annotations

# A smaller payload travels in a frame.
MIN_BYTES = 64 * 1024


class Buddy:
    """Owns which bytes of [0, total) are given out. total: bytes, of which a last piece below MIN_BYTES is not used."""

    def __init__(self, total: int) -> None:
        self._free: dict[int, dict[int, None]] = {}  # offsets by size; the last freed, whose memory is warm, goes first
        self._taken: dict[int, int] = {}  # sizes by offset
        self.total = self.num_free = 0
        size = 1 << max(0, total.bit_length() - 1)
        while size >= MIN_BYTES:
            self._free[size] = {}
            if self.total + size <= total:
                self._free[size][self.total] = None
                self.total += size
            size >>= 1
        self.num_free = self.total

    @staticmethod
    def block(num_bytes: int) -> int:
        """The size of the block that so many bytes are given."""
        return max(MIN_BYTES, 1 << (num_bytes - 1).bit_length())

    def take(self, num_bytes: int) -> tuple[int, int] | None:
        """Offset and size of a block for so many bytes, at least 1; None: there is none."""
        size = wanted = self.block(num_bytes)
        while not self._free.get(size):
            if size not in self._free:
                return None
            size <<= 1
        offset, _ = self._free[size].popitem()
        while size > wanted:
            size >>= 1
            self._free[size][offset + size] = None
        self._taken[offset] = wanted
        self.num_free -= wanted
        return offset, wanted

    def give_back(self, offset: int) -> None:
        """A block that `take` gave is free again."""
        size = self._taken.pop(offset)
        self.num_free += size
        while (buddy := offset ^ size) in self._free[size] and size * 2 in self._free:
            del self._free[size][buddy]
            offset &= ~size
            size <<= 1
        self._free[size][offset] = None
