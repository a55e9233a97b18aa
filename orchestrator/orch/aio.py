"""`AsyncClient`: the client for asyncio, a coat over `Client`.

On one host the event loop itself drives the connection; over ZeroMQ, `Client`'s thread does the input and output.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Self

from orch import wire
from orch.client import (
    CONNECT_S,
    MAP_RETRIES,
    Client,
    PriorityName,
    before_retry,
    check_concurrency,
    refused,
)
from orch.errors import Overloaded
from orch.looped import LoopDriver
from orch.progress import progress_bar


class _LoopClient(Client):
    """Driven by the event loop."""

    _driven_by = LoopDriver


class AsyncClient:
    """Like `Client`, with coroutines: `async with AsyncClient() as client: await client.request(...)`.

    It connects on entering the block, or with the first call, and belongs to the event loop that runs then. The same
    ownership of arrays holds: an array belongs to orch until its call is done.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        name: str | None = None,
        connect_timeout: float = CONNECT_S,
        window: int = 0,
    ) -> None:
        self._endpoint = endpoint
        self._options: dict[str, Any] = {"name": name, "connect_timeout": connect_timeout, "window": window}
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._is_looped = endpoint is None or endpoint.startswith("unix:")

    async def _connected(self) -> Client:
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    kind = _LoopClient if self._is_looped else Client
                    client = await asyncio.to_thread(kind, self._endpoint, **self._options)
                    if isinstance(client._driver, LoopDriver):  # noqa: SLF001  its other half
                        client._driver.attach()  # noqa: SLF001
                    self._client = client
        return self._client

    async def request(
        self,
        payload: Any,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  a deadline that travels with the request, not a cancellation
        model: str | None = None,
        priority: PriorityName = "normal",
        retry: bool = True,
        on_times: Callable[[float, float], None] | None = None,
    ) -> Any:
        """Run one input. Cancelling the awaiting task cancels the request.

        on_times: called, before the output is returned, with the seconds that it waited at its worker for its batch,
        and that its batch took.
        """
        client = self._client or await self._connected()
        options = (timeout, model, priority, retry)
        if not self._is_looped:
            future = client._submit(payload, options)  # noqa: SLF001  its other half, here and below
            call = future.call
            output = await asyncio.wrap_future(future)
        else:
            answer = _Answer()
            call = client._start(payload, answer.settle, options)  # noqa: SLF001
            try:
                output = await answer.future
            except asyncio.CancelledError:
                client._driver.cancel(call)  # noqa: SLF001
                raise
            finally:
                del answer  # an error refers to this frame, and so to the payload: no cycle is to keep them
        if on_times is not None and call is not None:
            on_times(*wire.read_times(call.times))
        return output

    def room(self, num_bytes: int) -> memoryview | None:
        """Memory to read so many bytes, at least 1, of a later request into. None: there is none now; use other memory.

        A request whose one large array is a view of all of it is not copied again. Do not write there once the request
        is made. To let go of it and of all its views is to give it back. In the loop's own thread.
        """
        driver = None if self._client is None else self._client._driver  # noqa: SLF001  its other half
        return driver.room(num_bytes) if isinstance(driver, LoopDriver) else None

    def map(
        self,
        inputs: Iterable[Any],
        *,
        concurrency: int = 256,
        progress: bool = False,
        timeout: float | None = None,
        model: str | None = None,
        priority: PriorityName = "normal",
        retry: bool = True,
    ) -> AsyncIterator[Any]:
        """Outputs in the order of the inputs, with at most `concurrency` calls outstanding; as `Client.map`."""
        check_concurrency(concurrency)

        def start(each: Any) -> asyncio.Future[Any]:
            return asyncio.ensure_future(
                self.request(each, timeout=timeout, model=model, priority=priority, retry=retry)
            )

        return self._map(inputs, concurrency, progress, start)

    async def _map(
        self, inputs: Iterable[Any], concurrency: int, progress: bool, start: Callable[[Any], asyncio.Future[Any]]
    ) -> AsyncIterator[Any]:
        window: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        try:
            with progress_bar(inputs, shown=progress) as advance:
                for each in inputs:
                    if len(window) >= concurrency:
                        yield await self._first(window, start)
                        advance()
                    window.append((each, start(each)))
                while window:
                    yield await self._first(window, start)
                    advance()
        finally:
            for _, future in window:
                future.cancel()

    @staticmethod
    async def _first(
        window: deque[tuple[Any, asyncio.Future[Any]]], start: Callable[[Any], asyncio.Future[Any]]
    ) -> Any:
        for attempt in range(MAP_RETRIES):
            try:
                output = await window[0][1]
            except Overloaded as err:
                under_way, wait_s = before_retry([future for _, future in window], attempt, err)
                if under_way:
                    await asyncio.wait(under_way, timeout=wait_s)
                else:
                    await asyncio.sleep(wait_s)
                for i in refused([future for _, future in window]):
                    window[i] = (window[i][0], start(window[i][0]))
            else:
                window.popleft()
                return output
        return await window.popleft()[1]

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
        parts = _AsyncParts(asyncio.get_running_loop())
        reading = client._start_stream(parts, payload, (timeout, model, priority, retry))  # noqa: SLF001  its other half
        try:
            while (item := await parts.arrived.get())[0] == "part":
                reading.acknowledge()
                yield item[1]
            reading.end()
            if item[1] is not None:
                raise item[1]
        finally:
            item = ("", None)  # as in `request`
            reading.close()

    async def close(self) -> None:
        """End the connection; calls that are not answered yet end in `Closed`."""
        if self._client is None:
            return
        if self._is_looped:
            self._client.close()
        else:
            await asyncio.to_thread(self._client.close)

    async def __aenter__(self) -> Self:
        await self._connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Answer:
    """What a coroutine waits for, settled in its own loop."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def settle(self, value: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class _AsyncParts:
    """Parts that wait for a coroutine to read them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.arrived: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._loop = loop

    def put(self, part: Any) -> None:
        self._hand_over("part", part)

    def settle(self, _value: Any, error: BaseException | None) -> None:
        self._hand_over("end", error)

    def _hand_over(self, what: str, value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads
            self._loop.call_soon_threadsafe(self.arrived.put_nowait, (what, value))
