"""`careless.py ENDPOINT HOW`: ends without closing its client."""

from __future__ import annotations

import gc
import sys

from orch import Client

endpoint, how = sys.argv[1:]
client = Client(endpoint)
assert client.request("hello") == "hello"
if how == "thread":
    assert client.submit("hello").result(timeout=5) == "hello"
if how == "pending":
    futures = [client.submit(["sleep", 0.1]) for _ in range(10)]
if how == "collected":
    del client
    gc.collect()
    with Client(endpoint) as another:
        assert another.request("hello") == "hello"
if how == "interrupted":
    print("asking", flush=True)  # noqa: T201
    try:
        client.request(["sleep", 30])
    except KeyboardInterrupt:
        assert client.request("hello", timeout=40) == "hello"
        print("interrupted", flush=True)  # noqa: T201
if how == "streaming":
    for _ in client.stream("hello"):
        break
print("ended", flush=True)  # noqa: T201
