"""Asking the supervisor, over its control socket, what `orch status` shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final

from orch.link import MAX_LINE_BYTES
from orch_gateway.refusals import NOT_RUNNING, Refused

ANSWER_S: Final = 5.0
# Several pages and scrapers that look at the same time get the same answer.
FRESH_S: Final = 0.5


class Supervisor:
    """Owns the latest status, which any number of askers share. path: of the control socket."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self._path, self._clock = path, clock
        self._asking: asyncio.Task[dict[str, Any]] | None = None
        self._asked_at = 0.0

    async def status(self) -> dict[str, Any]:
        """All there is to tell, the latest events and minutes included; at most FRESH_S old.

        Raises:
            Refused: 503, the supervisor does not answer.
        """
        asking = self._asking
        if asking is None or (asking.done() and self._clock() - self._asked_at > FRESH_S):
            self._asked_at = self._clock()
            asking = self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(asking)  # one asker who leaves does not take it from the others

    async def _ask(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._path, limit=MAX_LINE_BYTES)
                try:
                    writer.write(b'{"call":"status","recent":true}\n')
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, ValueError, TimeoutError) as err:
            raise Refused(503, "the supervisor does not answer", NOT_RUNNING) from err
        if "ok" not in answer:
            raise Refused(503, str(answer.get("error")), NOT_RUNNING)
        status: dict[str, Any] = answer["ok"]
        return status
