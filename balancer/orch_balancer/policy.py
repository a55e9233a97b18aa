"""Which worker, how many, which class: functions of plain numbers.

A worker's weight is its speed as a share of the fastest kind's: 1.0 for all where the GPUs are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Every this many turns the lowest waiting class goes first, so that a flood of high-priority work slows the others
# to 1/16 of the capacity but cannot stop them.
LOW_TURN = 16
# A worker is sent a batch ahead of need only if it finishes one within this: fetching takes about 0.5 ms, so from
# here on working ahead would gain less than 1 % and could leave a request behind a slow batch while others idle.
AHEAD_S = 0.05
# Clients that keep so many requests under way send as many as were answered. These are awaited for so long, as a share
# of a batch's time: what waits already is not spread over workers that will be wanted for them.
RETURN_SHARE = 0.2
# What a message costs its worker and the balancer: rows that a model runs in less are not worth another.
MESSAGE_S = 0.0002
# What a sum of floats may be off by, in rows: equal parts of equal weights must come out equal.
ROUNDING = 1e-6


def rank(outstanding_rows: int, weight: float, idle_since: float) -> tuple[float, float]:
    """The idle first, the fastest of them; then by how soon one more row would be done; of equals the longest idle.

    An idle worker comes before a busy one however slow it is: two callers that wait for their answers, one behind the
    other at a fast worker, would leave the slow one's capacity unused.
    """
    return ((outstanding_rows + 1) / weight if outstanding_rows else -weight), idle_since


def room(rows: int, max_batch_size: int, batch_s: float | None, weight: float, busy_s: float) -> int:
    """Rows a worker that has `rows` outstanding may be given: a batch, or one ahead where its batches are short.

    batch_s: what its model's batches take at weight 1; None: unknown. busy_s: how long it has been at this one, which
    may be the exception: behind it a request would wait while others idle.
    """
    if not rows:
        return max_batch_size
    if batch_s is None or max(batch_s / weight, busy_s) > AHEAD_S:
        return 0
    return max(0, 2 * max_batch_size - rows)


def share(
    waiting: int, weight: float, num_idle: int, idle_weight: float, room: int, max_batch_size: int, awaited: int = 0
) -> int:
    """Rows to give the chosen worker, of that weight, in one message, at least 1. idle_weight: of all that idle.

    While workers idle, waiting rows are shared among them by weight, and each gets one as far as they go; when none
    idles, a worker is given up to a batch. awaited: rows that may come any moment count as if they waited.
    """
    fair = waiting
    if num_idle > 1:
        fair -= max(0, num_idle - 1 - awaited)
        if fair > 1:
            fair = min(fair, math.ceil((waiting + awaited) * weight / idle_weight - ROUNDING))
    return max(1, min(fair, room, max_batch_size))


def are_worth_cutting(rows: int, row_s: float) -> bool:
    """Whether bundles are cut where less of them is wanted. rows: all that waits; row_s: the model's time for each."""
    return rows * row_s > MESSAGE_S


def suspect_lanes(num_workers: int) -> int:
    """Workers that may run suspects, alone, at one time: half of them, so that killers cannot stop the service."""
    return max(1, num_workers // 2)


def next_class(waiting: Sequence[int], turn: int) -> int:
    """The priority to serve on this turn: the highest that waits, and now and then the lowest. Something waits."""
    order = range(len(waiting))
    return next(each for each in (reversed(order) if turn % LOW_TURN == LOW_TURN - 1 else order) if waiting[each])


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
