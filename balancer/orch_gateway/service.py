"""Rows in, answers out: the one client of the balancer that a gateway has."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, cast

from orch import AsyncClient

MANY = 1 << 20
PriorityName = Literal["high", "normal", "low"]
# Told of each row that is answered, where somebody wants to know: when it was sent (nanoseconds since 1970), and the
# seconds that it waited at its worker for its batch and that its batch took.
TIMES: ContextVar[Callable[[int, float, float], None] | None] = ContextVar("times", default=None)


class Options(NamedTuple):
    """How the rows of one HTTP request are to be run. timeout_s: None: as long as it takes."""

    model: str | None = None
    timeout_s: float | None = None
    priority: str = "normal"


class Service:
    """Owns the client. Its errors are those of `orch.errors`; cancelling the caller cancels the rows."""

    def __init__(self, endpoint: str) -> None:
        # Every HTTP client's requests are this one's: who waits, waits in the balancer.
        self._client = AsyncClient(endpoint, window=MANY)

    def one(self, row: Any, options: Options) -> Awaitable[Any]:
        """The answer to one row."""
        told = TIMES.get()
        model, timeout_s, priority = options
        return self._client.request(
            row,
            timeout=timeout_s,
            model=model,
            priority=cast("PriorityName", priority),
            on_times=None if told is None else functools.partial(told, time.time_ns()),
        )

    async def many(self, rows: Sequence[Any], options: Options) -> list[Any]:
        """The answers in the order of the rows. If one row fails, its error, and the others are given up."""
        if len(rows) == 1:
            return [await self.one(rows[0], options)]
        calls = [asyncio.ensure_future(self.one(row, options)) for row in rows]
        try:
            return await asyncio.gather(*calls)
        finally:
            for call in calls:
                call.cancel()

    async def stream(self, row: Any, options: Options) -> AsyncGenerator[Any, None]:
        """The parts of one answer, as they come. Closing it early gives up the rest."""
        parts = self._client.stream(
            row,
            timeout=options.timeout_s,
            model=options.model,
            priority=cast("PriorityName", options.priority),
        )
        try:
            async for part in parts:
                yield part
        finally:
            await cast("AsyncGenerator[Any, None]", parts).aclose()

    def lend(self, num_bytes: int) -> memoryview | None:
        """Memory for the one tensor of a later row, which is not copied then; as `AsyncClient.room`."""
        return self._client.room(num_bytes)

    async def close(self) -> None:
        """End the connection."""
        await self._client.close()
