"""What a crowd costs others: `python -m benchmarks.gateway.crowd`; needs wrk.

2,000 idle keep-alive connections, and 200 slow clients: heads that trickle, bodies that trickle, and readers that take
a large answer little by little. In turns, without the crowd and with it, wrk asks for echoes of 1 KiB over 16
connections of its own. Figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from benchmarks.gateway.__main__ import POST, await_port, cpu_s, free_port

MODEL = Path(__file__).resolve().parents[2] / "tests/process/models/plain.py:Echo"
CONNECTIONS, THREADS = 16, 1
START_S = 20.0
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
AT_ONCE, COME_S = 4, 60.0
LARGE = bytes(4 * 2**20)  # more than the kernel's buffers take, so that it waits for its reader
UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class Kind(NamedTuple):
    """What a client does at first, whether that is answered, and what it does for as long as it may."""

    first: bytes
    is_answered: bool
    then: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def idle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """Nothing."""
    await reader.read(1)


async def write_little(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A kilobyte a second, which is neither the end of a head nor that of a body."""
    while True:
        writer.write(b"x" * 200)
        await writer.drain()
        await asyncio.sleep(0.2)


async def read_little(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    """A kilobyte a second."""
    while await reader.read(200):  # noqa: ASYNC110  this is what a slow reader is
        await asyncio.sleep(0.2)


IDLE = Kind(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", True, idle)
SLOW = (
    Kind(HEAD + b"X-Long: ", False, write_little),
    Kind(HEAD + b"Content-Length: 1000000\r\n\r\n", False, write_little),
    Kind(HEAD + b"Content-Length: %d\r\n\r\n" % len(LARGE) + LARGE, True, read_little),
)


class Crowd:
    """Owns the connections, in a thread with a loop of its own. When it is made, all of them are there."""

    def __init__(self, port: int, idle: int, slow: int) -> None:
        self._port = port
        self._kinds = [IDLE] * idle + [SLOW[number % len(SLOW)] for number in range(slow)]
        self._coming = len(self._kinds)
        self._there = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._there.wait(COME_S):
            raise SystemExit(f"{self._coming} of the crowd could not come within {COME_S:g} s")

    def leave(self) -> None:
        """All at once."""
        self._loop.call_soon_threadsafe(self._all.cancel)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._gather())

    async def _gather(self) -> None:
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._all = asyncio.gather(*(self._again(kind) for kind in self._kinds))
        await self._all

    async def _again(self, kind: Kind) -> None:
        """One client after the other: the server gives up those that are too slow."""
        is_first = True
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                async with self._turn:  # all at once would be a load, which is not what is measured
                    reader, writer = await self._connect()
                    writer.write(kind.first)
                    if kind.is_answered:
                        await reader.readuntil(b"\r\n\r\n")
                self._coming -= is_first
                is_first = False
                if not self._coming:
                    self._there.set()
                try:
                    await kind.then(reader, writer)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.1)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """With the smallest buffer that the kernel gives: what a client does not take, its server keeps."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        sock.setblocking(False)
        await self._loop.sock_connect(sock, ("127.0.0.1", self._port))
        return await asyncio.open_connection(sock=sock, limit=1024)


def measure(port: int, seconds: int, script: Path) -> tuple[float, float, float]:
    """Answers/s, and the median and the 99th percentile of the time that one took, in milliseconds."""
    url = f"http://127.0.0.1:{port}/predict"
    words = ["wrk", f"-t{THREADS}", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", str(script), url]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise SystemExit(told)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert rate is not None
    times = {int(share): float(value) * UNITS_MS[unit] for share, value, unit in
             re.findall(r"^\s+(\d+)%\s+([\d.]+)(us|ms|s)$", told, re.MULTILINE)}  # fmt: skip
    return float(rate[1]), times[50], times[99]


def gateway_of(pid: int) -> int:
    """The process below the supervisor that serves HTTP."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"orch_gateway" in (path.parent / "cmdline").read_bytes():
                return int(path.parent.name)
    raise SystemExit("there is no gateway")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--idle", type=int, default=2000)
    parser.add_argument("--slow", type=int, default=200)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: dict[str, list[tuple[float, float, float]]] = {"nobody else": [], "the crowd": []}
    with tempfile.TemporaryDirectory(prefix="ob") as folder:
        script = Path(folder, "post.lua")
        script.write_text(POST.format(1024))
        port = free_port()
        environ = {**os.environ, "ORCH_RUNTIME_DIR": f"{folder}/r", "ORCH_STATE_DIR": f"{folder}/s"}
        words = [sys.executable, "-m", "orch_cli", "up", str(MODEL), "--replicas=2", f"--http=127.0.0.1:{port}"]
        server = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL)
        try:
            await_port(port)
            deadline = time.monotonic() + START_S
            while server.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/readyz"):
                    break
                time.sleep(0.1)
            gateway = gateway_of(server.pid)
            for _ in range(options.rounds):
                found["nobody else"].append(measure(port, options.seconds, script))
                crowd = Crowd(port, options.idle, options.slow)
                found["the crowd"].append(measure(port, options.seconds, script))
                before = cpu_s(gateway)
                time.sleep(options.seconds)
                busy = (cpu_s(gateway) - before) / options.seconds
                crowd.leave()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
    print("|beside it|answers/s|p50, ms|p99, ms|\n|---|---|---|---|")
    for name, figures in found.items():
        rate, p50, p99 = (statistics.median(each) for each in zip(*figures, strict=True))
        print(f"|{name}|{rate:,.0f}|{p50:.2f}|{p99:.2f}|")
    print(f"the crowd alone takes {busy:.1%} of a core of the gateway")


if __name__ == "__main__":
    main()
