"""`flood.py ENDPOINT`: submits without waiting until standard input ends; says how many and what became of them."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from concurrent.futures import Future
from typing import Any

from orch import Client

ends: Counter[str] = Counter()


def ended(future: Future[Any]) -> None:
    """Count it by its kind of end."""
    error = future.exception()
    ends[type(error).__name__ if error else "answered"] += 1


client = Client(sys.argv[1])
stop = threading.Event()


def listen() -> None:
    """Until the end of standard input."""
    sys.stdin.read()
    stop.set()


threading.Thread(target=listen, daemon=True).start()
print("flooding", flush=True)  # noqa: T201
submitted = 0
while not stop.is_set():
    # Without waiting for answers; what is unsent in this process is bounded, for the sake of the machine under test.
    if submitted - ends.total() < 20_000:
        client.submit(["flood", submitted]).add_done_callback(ended)
        submitted += 1
    else:
        stop.wait(0.001)
print(submitted, dict(ends), flush=True)  # noqa: T201
client.close()
