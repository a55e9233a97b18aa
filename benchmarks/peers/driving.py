"""The load: client processes that are told what to do, or wrk where HTTP is spoken."""

from __future__ import annotations

import json
import resource
import selectors
import subprocess
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

import psutil
from benchmarks.peers.bodies import answer_bytes_of, body_of, wrapped
from benchmarks.peers.figures import Sample, figures_of, merged, wrk_sample
from benchmarks.peers.rows import HTTP
from benchmarks.peers.serving import ROOT, Server, ServerFailed, cpu_s
from benchmarks.peers.workloads import PATIENCE_S, Point

READY_S = 60.0
# Beyond the seconds of a load: the last answers, and what a client computes of what it saw.
MARGIN_S = 30.0
WRK_TIMEOUT_S = 10


class Client:
    """One client process."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.peers.clients.{server.row.client}"],
            cwd=ROOT,
            env=server.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.processes = [psutil.Process(self._process.pid)]

    def say(self, **words: Any) -> None:
        """Tell it what to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()

    def hear(self, within_s: float) -> dict[str, Any]:
        """Its answer. Raises ServerFailed if there is none."""
        out = self._process.stdout
        assert out is not None
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            line = out.readline() if selector.select(within_s) else b""
        if not line:
            raise self._server.failed(f"its client (code {self._process.poll()}) said nothing within {within_s:g} s")
        told: dict[str, Any] = json.loads(line)
        return told

    def check(self, within_s: float = READY_S) -> None:
        """See that the server gives right answers. Raises ServerFailed."""
        self.say(do="check", within_s=within_s)
        wrong = self.hear(within_s + MARGIN_S)["wrong"]
        if wrong is not None:
            raise self._server.failed(wrong)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class Clients:
    """Owns the client processes of one server. The first checks answers, whoever drives the load."""

    def __init__(self, server: Server, most: int) -> None:
        self.server = server
        self._clients: list[Client] = []
        # wrk takes its own connections, so of an HTTP server's clients there is only the one that checks.
        self._most = 1 if server.row.client == HTTP else most

    def __enter__(self) -> Self:
        self._clients = [Client(self.server) for _ in range(self._most)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()

    def check(self) -> None:
        """All connected, all with a right answer."""
        for client in self._clients:
            client.check()

    def load(self, point: Point, seconds: int) -> dict[str, float | None]:
        """One run: figures of `figures_of`."""
        drive = self._wrk if self.server.row.client == HTTP else self._tell
        before = _Usage(self.server)
        sample, clients_s = drive(point, seconds)
        return before.figures(sample, clients_s)

    def start_kill(self, point: Point, seconds: float) -> Client:
        """The load of the kill workload, under way; its client will tell the moment of each answer."""
        client = self._clients[0]
        client.say(do="load", outstanding=point.outstanding, seconds=seconds, patience_s=PATIENCE_S)
        return client

    def _tell(self, point: Point, seconds: int) -> tuple[Sample, float]:
        clients = self._clients[: point.clients]
        processes = [process for client in clients for process in client.processes]
        used_s = sum(map(cpu_s, processes))
        for client in clients:
            client.say(do="load", outstanding=point.outstanding, seconds=seconds, patience_s=None)
        told = [client.hear(seconds + MARGIN_S) for client in clients]
        return merged([sample_of(each) for each in told]), sum(map(cpu_s, processes)) - used_s

    def _wrk(self, point: Point, seconds: int) -> tuple[Sample, float]:
        used_s = _children_s()
        headers, body = wrapped(self.server.environ["BENCH_FORM"], body_of(self.server.workload))
        path = self.server.folder / "body"
        path.write_bytes(body)
        environ = {"BENCH_BODY": str(path), "BENCH_HEADERS": "\n".join(f"{k}: {v}" for k, v in headers.items())}
        runs = [self._start_wrk(environ, point, seconds) for _ in range(point.clients)]
        texts = [run.communicate(timeout=seconds + MARGIN_S)[0] for run in runs]
        answer_bytes = answer_bytes_of(self.server.workload)
        samples = [wrk_sample(text, point.outstanding, answer_bytes) for text in texts]
        return merged(samples), _children_s() - used_s

    def _start_wrk(self, environ: dict[str, str], point: Point, seconds: int) -> subprocess.Popen[str]:
        words = ["wrk", "-t1", f"-c{point.outstanding}", f"-d{seconds}s", "--timeout", f"{WRK_TIMEOUT_S}s"]
        url = f"http://127.0.0.1:{self.server.port}{self.server.environ['BENCH_PATH']}"
        return subprocess.Popen(
            [*words, "-s", str(ROOT / "benchmarks/peers/clients/wrk.lua"), url],
            env={**self.server.environ, **environ},
            stdout=subprocess.PIPE,
            text=True,
        )


class _Usage:
    """The processor's time at the beginning of a run."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._at = time.monotonic()
        self._server_s = server.cpu_s()
        self._machine_s = machine_s()

    def figures(self, sample: Sample, clients_s: float) -> dict[str, float | None]:
        """Of the run that ends now. elsewhere_cores: what neither the server nor its clients took of the machine."""
        if not sample.answered:
            raise ServerFailed(f"{self._server.row.name}: no request was answered")
        took_s = time.monotonic() - self._at
        server_s = self._server.cpu_s() - self._server_s
        others_s = machine_s() - self._machine_s - server_s - clients_s
        return {
            **figures_of(sample),
            "server_us": server_s / sample.answered * 1e6,
            "server_cores": server_s / took_s,
            "client_cores": clients_s / took_s,
            "elsewhere_cores": max(0.0, others_s / took_s),
        }


def sample_of(told: dict[str, Any]) -> Sample:
    """What a client told: see clients/common.py."""
    latencies_us = Counter({int(us): count for us, count in told["latencies_us"].items()})
    return Sample(told["answered"], told["took_s"], told["errors"], latencies_us)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine_s() -> float:
    """Seconds that all processors were busy so far, or taken away by the host of this machine."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)
