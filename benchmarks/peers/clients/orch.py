"""A client of orch, through its SDK: `submit` with a callback, and `request` where one is outstanding."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

from benchmarks.peers.clients import common
from benchmarks.peers.clients.common import Seen, is_right

from orch import Client

PAYLOAD = common.TENSOR if common.IS_TENSOR else common.BODY


class Target:
    """One orch.Client."""

    def __init__(self) -> None:
        self._client = Client(connect_timeout=1.0)

    def ask(self, timeout_s: float) -> Any:
        return self._client.request(PAYLOAD, timeout=timeout_s)

    def load(self, outstanding: int, seconds: float, patience_s: float | None) -> Seen:
        seen = Seen(began_at=time.monotonic())
        run = self._one_by_one if outstanding == 1 else self._side_by_side
        run(seen, outstanding, seen.began_at + seconds, patience_s)
        seen.took_s = time.monotonic() - seen.began_at
        return seen

    def _one_by_one(self, seen: Seen, _: int, end: float, timeout_s: float | None) -> None:
        clock, request = time.monotonic, self._client.request
        now = clock()
        while now < end:
            sent = now
            try:
                answer = request(PAYLOAD, timeout=timeout_s)
            except Exception as err:  # noqa: BLE001  every error counts
                seen.errors.append(type(err).__name__)
                now = clock()
                continue
            now = clock()
            seen.latencies_s.append(now - sent)
            if not is_right(answer):
                seen.errors.append("wrong answer")

    def _side_by_side(self, seen: Seen, outstanding: int, end: float, timeout_s: float | None) -> None:
        clock, submit = time.monotonic, self._client.submit
        begin = seen.began_at
        idle = threading.Semaphore(0)

        def send() -> None:
            sent = clock()

            def answered(future: Future[Any]) -> None:
                now = clock()
                error = future.exception()
                if error is not None:
                    seen.errors.append(type(error).__name__)
                else:
                    seen.latencies_s.append(now - sent)
                    seen.answered_at.append(now - begin)
                    if not is_right(future.result()):
                        seen.errors.append("wrong answer")
                if now < end:
                    send()
                else:
                    idle.release()

            submit(PAYLOAD, timeout=timeout_s).add_done_callback(answered)

        for _ in range(outstanding):
            send()
        for _ in range(outstanding):
            idle.acquire(timeout=max(1.0, end - clock()) + 10.0)


if __name__ == "__main__":
    common.serve(Target)
