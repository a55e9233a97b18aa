"""`large.py ENDPOINT BYTES`: sends a large array, receives one; says by how much its memory rose for each."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from orch import Client


def resident(field: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


size = int(sys.argv[2])
rises = {}
with Client(sys.argv[1]) as client:
    array = np.ones(size, np.uint8)
    for name, payload in (("send", array), ("receive", size)):
        for _ in range(3):
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
            answer = client.request(payload, timeout=30)
            rises[name] = resident("VmHWM") - before
            assert (answer if name == "send" else int(answer.sum())) == size
            del answer
            print(name, flush=True)  # noqa: T201
            sys.stdin.readline()
print(json.dumps(rises), flush=True)  # noqa: T201
