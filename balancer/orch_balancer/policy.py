"""Which worker, how many, which class: functions of plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

# Every this many turns the lowest waiting class goes first, so that a flood of high-priority work slows the others
# to 1/16 of the capacity but cannot stop them.
LOW_TURN = 16
# A worker is sent a batch ahead of need only if it finishes one within this: fetching takes about 0.5 ms, so from
# here on working ahead would gain less than 1 % and could leave a request behind a slow batch while others idle.
AHEAD_S = 0.05


def rank(outstanding_rows: int, weight: float, idle_since: float) -> tuple[float, float]:
    """Least outstanding per unit of capacity first; of equals the longest idle."""
    return outstanding_rows / weight, idle_since


def room(rows: int, max_batch_size: int, batch_s: float | None, busy_s: float) -> int:
    """Rows a worker that has `rows` outstanding may be given: a batch, or one ahead where batches are short.

    batch_s: what its model's batches take; None: unknown. busy_s: how long it has been at this one, which may be the
    exception: behind it a request would wait while others idle.
    """
    if not rows:
        return max_batch_size
    if batch_s is None or max(batch_s, busy_s) > AHEAD_S:
        return 0
    return max(0, 2 * max_batch_size - rows)


def share(waiting: int, idle_workers: int, room: int, max_batch_size: int) -> int:
    """Rows to give the chosen worker in one message, at least 1.

    While workers idle, waiting rows are shared among them; when none idles, a worker is given up to a batch.
    """
    fair = -(-waiting // idle_workers) if idle_workers else waiting
    return max(1, min(fair, room, max_batch_size))


def suspect_lanes(num_workers: int) -> int:
    """Workers that may run suspects, alone, at one time: half of them, so that killers cannot stop the service."""
    return max(1, num_workers // 2)


def next_class(waiting: Sequence[int], turn: int) -> int | None:
    """The priority to serve on this turn: the highest that waits, and now and then the lowest. None: nothing waits."""
    order = range(len(waiting))
    for priority in order if turn % LOW_TURN != LOW_TURN - 1 else reversed(order):
        if waiting[priority]:
            return priority
    return None


def retry_after_s(queued_rows: int, rows_per_s: float | None) -> float:
    """When the queue that is full now will be about half empty; one second while the speed is unknown."""
    if not rows_per_s:
        return 1.0
    return min(60.0, max(0.01, queued_rows / (2 * rows_per_s)))


def can_make_it(remaining_s: float, rows_ahead: int, rows_per_s: float | None, batch_s: float | None) -> bool:
    """Whether a request that has to queue may still be answered in time, by what was learned. In doubt: yes."""
    if rows_per_s is None or batch_s is None:
        return True
    return rows_ahead / rows_per_s + batch_s <= remaining_s
