"""When to run what has arrived, and how much of it.

Waiting for company pays only while the next rows can be expected soon enough: it delays every row that is here by the
expected gap, and saves one batch's fixed cost. Both are learned from what was seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from orch.bundles import singles, split

# A past batch counts this much less with every newer one when its cost is fitted, and a past gap when one is expected.
# The gaps of one client alone are its batches' times and more: were the two forgotten at different rates, uneven
# batches would have it wait for nobody.
FORGET = 0.95
# Row counts whose variance is below this were all the same.
SAME_SIZE = 1e-9
# Later than this many expected gaps, the next arrival is no longer expected soon.
PATIENCE = 2.0


class Item(NamedTuple):
    """Something that waits. alone: never shares a batch (a stream). is_many: it is a bundle of `rows` requests."""

    value: Any
    rows: int
    alone: bool
    arrived_at: float
    is_many: bool = False


def _apart(item: Item) -> list[Item]:
    """The requests of a bundle."""
    return [item._replace(value=each, rows=1, is_many=False) for each in singles(item.value)]


class BatchCost:
    """Seconds of a batch as fixed + per_row * rows: a weighted least-squares line through recent batches."""

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self.mean_s = 0.0  # of recent batches; 0 before the first

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of `rows` rows took `seconds`."""
        self._weight = FORGET * self._weight + 1
        self._x = FORGET * self._x + rows
        self._y = FORGET * self._y + seconds
        self._xx = FORGET * self._xx + rows * rows
        self._xy = FORGET * self._xy + rows * seconds
        self.mean_s = self._y / self._weight

    @property
    def fixed_s(self) -> float:
        """The part that does not grow with the rows; the whole mean while all batches were of one size."""
        if not self._weight:
            return 0.0
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        if variance < SAME_SIZE:
            return mean_y
        slope = (self._xy / self._weight - mean_x * mean_y) / variance
        return min(mean_y, max(0.0, mean_y - slope * mean_x))


class Gap:
    """Seconds that something takes to come: the mean of recent times, None before the first."""

    __slots__ = ("_weight", "mean_s")

    def __init__(self) -> None:
        self._weight = 0.0
        self.mean_s: float | None = None

    def observe(self, seconds: float) -> None:
        """It took so long."""
        self._weight = FORGET * self._weight + 1
        self.mean_s = seconds if self.mean_s is None else self.mean_s + (seconds - self.mean_s) / self._weight


class Batcher:
    """Owns what has arrived and does not run yet."""

    def __init__(self, max_batch_size: int, max_wait_s: float) -> None:
        self.max_batch_size = max_batch_size
        self.max_wait_s = max_wait_s
        self.cost = BatchCost()
        self._may_wait = max_wait_s > 0 and max_batch_size > 1
        self._items: deque[Item] = deque()
        self._rows = 0
        self._gap, self._return = Gap(), Gap()  # from one message to the next, and from a batch's answer
        self._last_arrival: float | None = None
        self._free_at: float | None = None  # when the last batch was answered; None: something has come since

    def __len__(self) -> int:
        return len(self._items)

    @property
    def is_full(self) -> bool:
        """Whether the next batch cannot grow."""
        return self._rows >= self.max_batch_size

    @property
    def next_is_alone(self) -> bool:
        """Whether what comes next never shares a batch."""
        return bool(self._items) and self._items[0].alone

    @property
    def oldest_at(self) -> float:
        """When the first of what is here arrived."""
        return self._items[0].arrived_at

    def clear(self) -> None:
        """Forget what has arrived, and how often; what a batch costs stays."""
        self._items.clear()
        self._rows = 0
        self._gap, self._return = Gap(), Gap()
        self._last_arrival = self._free_at = None

    def add(self, items: list[Item], now: float) -> None:
        """One message has arrived."""
        if self._may_wait:
            self._observe(now)
        self._items += items
        for item in items:
            self._rows += item.rows

    def _observe(self, now: float) -> None:
        """What an expectation is made of."""
        if self._last_arrival is not None:
            self._gap.observe(now - self._last_arrival)
        if self._free_at is not None:
            self._return.observe(now - self._free_at)
        self._last_arrival, self._free_at = now, None

    def ran(self, rows: int, seconds: float, now: float) -> None:
        """A batch of `rows` rows took `seconds`, and is answered."""
        self.cost.observe(rows, seconds)
        self._free_at = now

    def drop(self, unwanted: Callable[[Any], bool]) -> list[Any]:
        """Take out, and return, the values for which `unwanted` is true: cancelled, or past their deadline.

        A bundle for which it is true, because some of it are, is taken apart.
        """
        kept: deque[Item] = deque()
        dropped: list[Item] = []
        for item in self._items:
            if not unwanted(item.value):
                kept.append(item)
                continue
            for each in _apart(item) if item.is_many else [item]:
                (dropped if unwanted(each.value) else kept).append(each)
        if dropped:
            self._items = kept
            self._rows -= sum(item.rows for item in dropped)
        return [item.value for item in dropped]

    def holds(self, wanted: Callable[[Any], bool]) -> bool:
        """Whether `wanted` is true of something here."""
        return any(wanted(item.value) for item in self._items)

    def wait_s(self, now: float) -> float | None:
        """Seconds to wait for more before the next `take`; 0: take now; None: nothing is here."""
        if not self._items:
            return None
        if not self._may_wait:
            return 0.0
        first = self._items[0]
        if first.alone or self._rows >= self.max_batch_size:
            return 0.0
        # Those who were just answered may ask again; else somebody does, as often as before.
        waits_since, since, expected_s = first.arrived_at, self._last_arrival, self._gap.mean_s
        if self._free_at is not None:
            waits_since, since, expected_s = max(first.arrived_at, self._free_at), self._free_at, self._return.mean_s
        if since is None or expected_s is None or expected_s * self._rows >= self.cost.fixed_s:
            return 0.0
        return max(0.0, min(waits_since + self.max_wait_s, since + PATIENCE * expected_s) - now)

    def take(self) -> list[Any]:
        """The next batch: requests in order of arrival, max_batch_size rows unless one alone has more."""
        taken: list[Any] = []
        items, room = self._items, self.max_batch_size
        while items:
            value, rows, alone, _, is_many = item = items.popleft()
            if is_many and 0 < room < rows:
                value, others = split(value, room)
                items.appendleft(item._replace(value=others, rows=rows - room))
                rows = room
            elif taken and (alone or rows > room):
                items.appendleft(item)
                break
            taken.append(value)
            room -= rows
            if alone:
                break
        self._rows -= self.max_batch_size - room
        return taken
