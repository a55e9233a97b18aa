"""A client process of vit.py: pictures to an orch instance, and a look at every answer.

`python vit_client.py NAME EXPECTED` connects to the instance; EXPECTED is an .npy file with the right scores, one row
for each picture. For {"outstanding": n, "begin": t, "ramp_s": s, "seconds": s} (t in monotonic seconds) it keeps n
requests under way from then on, each answer sending the next, and says what came back in the window after the ramp.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import Future
from typing import Any

import children
import numpy as np
import numpy.typing as npt
from pictures import picture

from orch import Client

ANSWER_S = 60.0


class Load:
    """One closed loop; its callbacks run in the client's own thread, one at a time."""

    def __init__(self, client: Client, expected: npt.NDArray[np.float32], outstanding: int) -> None:
        self._client, self._expected, self._outstanding = client, expected, outstanding
        self._pictures = [picture(n) for n in range(len(expected))]
        self._ended = threading.Semaphore(0)
        self._sent = 0
        self.latencies: list[tuple[float, float]] = []  # when it came, how long it took
        self.off = 0.0  # the largest difference of a score from the expected one
        self.errors: list[str] = []

    def run(self, begin: float, until: float) -> None:
        """Returns when everything is answered."""
        self._until = until
        time.sleep(max(0.0, begin - time.monotonic()))
        for _ in range(self._outstanding):
            self._send()
        for _ in range(self._outstanding):
            if not self._ended.acquire(timeout=max(0.0, until - time.monotonic()) + ANSWER_S):
                self.errors.append(f"not answered within {ANSWER_S:.0f} s")

    def _send(self) -> None:
        number = self._sent % len(self._pictures)
        self._sent += 1
        sent = time.monotonic()

        def answered(future: Future[Any]) -> None:
            now = time.monotonic()
            error = future.exception()
            if error is None:
                self.latencies.append((now, now - sent))
                self.off = max(self.off, float(np.abs(future.result() - self._expected[number]).max()))
            else:
                self.errors.append(repr(error))
            if error is None and now < self._until:
                self._send()
            else:
                self._ended.release()

        self._client.submit(self._pictures[number]).add_done_callback(answered)


def main(argv: list[str]) -> None:
    """Connect, and follow orders."""
    orders, say = children.orders()
    name, expected = argv[0], np.load(argv[1])
    with Client(name=name) as client:
        say({})
        for order in orders:
            load = Load(client, expected, order["outstanding"])
            begin = order["begin"] + order["ramp_s"]
            end = begin + order["seconds"]
            load.run(order["begin"], end)
            took = [took for moment, took in load.latencies if begin <= moment < end]
            p50, p99 = np.quantile(took, (0.5, 0.99)) if took else (0.0, 0.0)
            say({"answers": len(took), "off": load.off, "errors": load.errors[:3], "p50_s": p50, "p99_s": p99})


if __name__ == "__main__":
    main(sys.argv[1:])
