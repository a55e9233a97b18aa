"""`fork.py ENDPOINT`: one client in a parent and its children; says "ok" if all got their own answers."""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context

from orch import Client
from orch.errors import Closed

client = Client(sys.argv[1])


def work(number: int) -> list[int]:
    """Use the inherited client."""
    return [client.request([number, i])[0] for i in range(50)]


assert client.request("before") == "before"
pending = [client.submit(["parent", i]) for i in range(100)]  # the background thread runs while we fork
inherited = client.submit(["sleep", 0.3])
stream = client.stream(["sleep", 0.3])
pid = os.fork()
if pid == 0:
    answers = [future.result(timeout=10) for future in [client.submit(["child", i]) for i in range(100)]]
    try:
        inherited.result(timeout=5)
        closed = False
    except Closed:
        closed = True
    try:
        next(stream)
        closed = False
    except Closed:
        del stream
    client.close()
    os._exit(0 if closed and answers == [["child", i] for i in range(100)] else 1)
assert [future.result(timeout=10) for future in pending] == [["parent", i] for i in range(100)]
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert inherited.result(timeout=5) == ["sleep", 0.3]
assert list(stream) == [["sleep", 0.3]]
with get_context("fork").Pool(4) as pool:
    assert pool.map(work, range(8), chunksize=1) == [[n] * 50 for n in range(8)]
assert client.request("after") == "after"
print("ok")  # noqa: T201
