"""`submit.py ENDPOINT COUNT SECONDS`: submits requests, says "submitted", and waits for a line before it leaves."""

from __future__ import annotations

import os
import sys

from orch import Client

endpoint, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
client = Client(endpoint)
futures = [client.submit(seconds) for _ in range(count)]
print("submitted", flush=True)  # noqa: T201
if sys.stdin.readline() == "vanish\n":
    os._exit(0)  # without a goodbye
client.close()
