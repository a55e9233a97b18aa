"""`arrays.py ENDPOINT WHAT BYTES COUNT`: warms up, says so, then sends large arrays until it is killed."""

from __future__ import annotations

import sys
import time

import numpy as np

from orch import Client

endpoint, what, size, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with Client(endpoint) as client:
    for turn in range(8):
        array = np.full(size, turn, np.uint8)
        assert np.array_equal(client.request(["echo", array]), array)
    print("warm", flush=True)  # noqa: T201
    futures = []
    end = time.monotonic() + 60
    while time.monotonic() < end:
        rest = [1.0] if what == "slow" else []
        futures = [client.submit([what, np.full(size, turn, np.uint8), *rest]) for turn in range(count)]
        for future in futures:
            future.result()
