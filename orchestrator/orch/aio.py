"""`AsyncClient`: the client for asyncio. A coat over `Client`, whose thread does the input and output."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

from orch.client import CONNECT_S, MAP_RETRIES, MAX_RETRY_S, MIN_RETRY_S, Client, Options, PriorityName
from orch.errors import Overloaded
from orch.stream import Stream


class AsyncClient:
    """Like `Client`, with coroutines: `async with AsyncClient() as client: await client.request(...)`.

    It connects on entering the block, or with the first call. The same ownership of arrays holds: an array belongs to
    orch until its call is done.
    """

    def __init__(
        self, endpoint: str | None = None, *, name: str = "default", connect_timeout: float = CONNECT_S
    ) -> None:
        self._arguments = (endpoint, name, connect_timeout)
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def _connected(self) -> Client:
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    endpoint, name, connect_timeout = self._arguments
                    self._client = await asyncio.to_thread(Client, endpoint, name=name, connect_timeout=connect_timeout)
        return self._client

    async def request(
        self,
        payload: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  a deadline that travels with the request, not a cancellation
        model: str | None = None,
        priority: PriorityName = "normal",
        retry: bool = True,
    ) -> Any:
        """Run one input. Cancelling the awaiting task cancels the request."""
        client = await self._connected()
        future = client.submit(payload, timeout=timeout, model=model, priority=priority, retry=retry)
        return await asyncio.wrap_future(future)

    async def map(self, inputs: Iterable[Any], *, concurrency: int = 256, **options: Any) -> AsyncIterator[Any]:
        """Outputs in the order of the inputs, with at most `concurrency` calls outstanding; options as for request."""
        window: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        try:
            for each in inputs:
                if len(window) >= concurrency:
                    yield await self._first(window, options)
                window.append((each, asyncio.ensure_future(self.request(each, **options))))
            while window:
                yield await self._first(window, options)
        finally:
            for _, future in window:
                future.cancel()

    async def _first(self, window: deque[tuple[Any, asyncio.Future[Any]]], options: dict[str, Any]) -> Any:
        for attempt in range(MAP_RETRIES):
            try:
                output = await window[0][1]
            except Overloaded as err:
                hint_s = min(MAX_RETRY_S, err.retry_after_s or MIN_RETRY_S) if attempt else 0.0
                await self._resubmit(window, options, hint_s)
            else:
                window.popleft()
                return output
        return await window.popleft()[1]

    async def _resubmit(
        self, window: deque[tuple[Any, asyncio.Future[Any]]], options: dict[str, Any], hint_s: float
    ) -> None:
        """As `Client.map` does: wait until what was accepted is done, then send the refused ones again."""
        under_way = [future for _, future in window if not future.done()]
        if under_way:
            await asyncio.wait(under_way, timeout=MAX_RETRY_S)
        else:
            await asyncio.sleep(hint_s)
        for i, (each, future) in enumerate(window):
            if future.done() and isinstance(future.exception(), Overloaded):
                window[i] = (each, asyncio.ensure_future(self.request(each, **options)))

    async def stream(
        self,
        payload: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109
        model: str | None = None,
        priority: PriorityName = "normal",
        retry: bool = True,
    ) -> AsyncIterator[Any]:
        """`async for part in client.stream(payload)`; leaving the loop early cancels the rest."""
        client = await self._connected()
        stream = _AsyncStream(asyncio.get_running_loop())
        client._start_stream(stream, payload, Options(timeout, model, priority, retry))  # noqa: SLF001  its other half
        try:
            while (item := await stream.parts.get())[0] == "part":
                stream.acknowledge()
                yield item[1]
            stream.end()
            if item[1] is not None:
                raise item[1]
        finally:
            stream.close()

    async def close(self) -> None:
        """End the connection; calls that are not answered yet end in `Closed`."""
        if self._client is not None:
            await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _AsyncStream(Stream):
    """A stream whose parts arrive in an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.parts: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._loop = loop

    def put(self, part: Any) -> None:
        self._hand_over("part", part)

    def settle(self, _value: Any, error: BaseException | None) -> None:
        self._hand_over("end", error)

    def _hand_over(self, what: str, value: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.parts.put_nowait, (what, value))
