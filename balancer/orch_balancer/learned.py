"""What the balancer learns about a model's speed by watching answers."""

from __future__ import annotations

import math

from orch.wire import FRAME_BYTES

# One new measurement moves an estimate by this much.
GAIN = 0.2
# Rows per second are counted over windows of at least this many seconds in which something always waited.
WINDOW_S = 0.25
# Of the recent results, the share from which on they count as large; and how fast the largest of them is forgotten.
MOST, FADE = 0.5, 0.99


class Speed:
    """Batch seconds of one model at weight 1, and rows per second of all its workers. None until measured."""

    def __init__(self) -> None:
        self.batch_s: float | None = None
        self.rows_per_s: float | None = None
        self.row_s = math.inf  # in the model, of a batch's rows
        self._window_start: float | None = None
        self._window_rows = 0

    def observe(self, rows: int, batch_s: float | None, *, queue_was_empty: bool, now: float) -> None:
        """A worker answered `rows` rows.

        batch_s: what one of weight 1 would have needed for them; None: they were no batch of their own.
        """
        if batch_s is not None:
            self.batch_s = batch_s if self.batch_s is None else self.batch_s + GAIN * (batch_s - self.batch_s)
        if queue_was_empty or self._window_start is None:
            # Nothing waited, so what was answered says how much was asked for, not how much is possible.
            self._window_start, self._window_rows = (None if queue_was_empty else now), 0
            return
        self._window_rows += rows
        elapsed = now - self._window_start
        if elapsed >= WINDOW_S:
            rate = self._window_rows / elapsed
            self.rows_per_s = rate if self.rows_per_s is None else self.rows_per_s + GAIN * (rate - self.rows_per_s)
            self._window_start, self._window_rows = now, 0

    def ran(self, rows: int, took_s: float) -> None:
        """The model took so long for a batch."""
        row_s = took_s / rows
        self.row_s = row_s if self.row_s == math.inf else self.row_s + GAIN * (row_s - self.row_s)


class ResultBytes:
    """How much of the arena the next result of a model will take."""

    def __init__(self) -> None:
        self.are_large = False  # most results
        self.expected = 0  # bytes; 0 while most results are small
        self._large_share = 0.0  # of the recent results
        self._most = 0.0  # recently

    def observe(self, num_bytes: int) -> None:
        """A result had so many bytes in frames, or in a chunk."""
        is_large = num_bytes >= FRAME_BYTES
        if not is_large and not self._large_share:
            return  # none ever was
        self._large_share += GAIN * (is_large - self._large_share)
        if is_large:
            self._most = max(num_bytes, self._most * FADE)
        self.are_large = self._large_share > MOST
        self.expected = int(self._most) if self.are_large else 0
