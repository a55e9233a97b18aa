"""orch as a service: told to a manager that speaks systemd's protocol, ended by its watchdog, started again."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
from collections import Counter
from pathlib import Path

from orch import Client, runtime
from orch.errors import Exit
from tests.process.harness import FACTOR, MODELS, Place, elapse, eventually
from tests.process.manager import Manager

ECHO, STEADY = f"{MODELS}/plain.py:Echo", f"{MODELS}/plain.py:Steady"
CLIENTS = 3
# Those of the manager, which nobody else may take for theirs.
VARIABLES = (b"NOTIFY_SOCKET=", b"WATCHDOG_USEC=", b"LISTEN_FDS=", b"LISTEN_PID=")


def directory(place: Place) -> Path:
    """The instance's."""
    return runtime.directory_in(place.runtime, "default")


def over(path: str, body: str) -> tuple[int, str]:
    """One request over a gateway's Unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10.0)
        connection.connect(path)
        request = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        connection.sendall(request.encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, answer.read().decode()


def test_a_service_tells_its_life(place: Place) -> None:
    """Patience while it loads, READY=1, reloads that end, STOPPING=1: all from the main process, with priorities."""
    words = ("up", ECHO, "--replicas=2", "--gateways=2", "--http=127.0.0.1:0")
    with Manager(place, *words, abstract=True) as manager:
        manager.await_running()
        assert manager.lines("MAINPID") == [f"MAINPID={manager.pid}"]
        assert manager.lines("EXTEND_TIMEOUT_USEC")
        eventually(lambda: "STATUS=2 of 2 replicas READY" in manager.lines("STATUS"))
        status = json.loads(place.orch("status", "--json").out)
        assert [over(each["address"].removeprefix("unix:"), '"hi"') for each in status["gateways"]] == [
            (200, '"hi"')
        ] * 2
        for child in [*status["replicas"], *status["gateways"], status["balancer"]]:
            environ = Path(f"/proc/{child['pid']}/environ").read_bytes().split(b"\0")
            assert not [each for each in environ if each.startswith(VARIABLES)]
        before = {each["pid"] for each in status["replicas"]}
        done = place.orch("restart", "--wait")
        assert (done.code, done.out.strip()) == (Exit.OK, "2 replicas restarted")
        after = {each["pid"] for each in json.loads(place.orch("status", "--json").out)["replicas"]}
        assert not before & after, "when it returns, every replica is another process"
        manager.signal(signal.SIGHUP)
        eventually(lambda: len(manager.lines("RELOADING")) == 2)
        eventually(lambda: len(manager.lines("READY")) == 3)
        assert len(manager.lines("MONOTONIC_USEC")) == 2
        assert manager.stop() == Exit.OK
        assert manager.lines("STOPPING") == ["STOPPING=1"]
        assert {each.pid for each in manager.notices} == {manager.pid}, "no child has notified"
        lines = manager.output().splitlines()
        assert "<6>orch: SIGHUP: restarting r0, then r1; see orch status" in lines
        assert "<7>orch: r0 LOADING: loading" in lines


def test_a_supervisor_that_hangs_is_ended_and_the_service_comes_back(place: Place) -> None:
    """Stopped, it feeds no watchdog: it is aborted within the watchdog's time, and another serves."""
    with Manager(place, "up", ECHO, watchdog_s=2.0) as manager:
        manager.await_running()
        elapse(2.6 * FACTOR)
        assert manager.aborted == 0, "it feeds the watchdog while it works"
        manager.signal(signal.SIGSTOP)
        eventually(lambda: manager.aborted == 1, within=6.0)
        manager.await_running(starts=2)
        assert manager.exit_codes == [-signal.SIGABRT]
        with Client(runtime.front_endpoint(directory(place))) as client:
            assert client.request("back", timeout=5.0) == "back"
        assert manager.aborted == 1


class Load:
    """Requests one after the other, of several clients; what became of each."""

    def __init__(self, port: int, *, keep_alive: bool) -> None:
        self._port, self._keep_alive = port, keep_alive
        self.found: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[who]) for who in range(CLIENTS)]
        for each in self._threads:
            each.start()

    def _run(self, who: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20.0)
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                connection.request("POST", "/predict", json.dumps([who, number]))
                answer = connection.getresponse()
                good = json.loads(answer.read()) == ["answer", who, number]
                self.found["good" if good else f"{answer.status}"] += 1
            except (OSError, http.client.HTTPException) as err:
                self.found[repr(err)] += 1
                connection.close()
            if not self._keep_alive:
                connection.close()
        connection.close()

    def finish(self) -> None:
        """Every request was answered rightly."""
        self._stop.set()
        for each in self._threads:
            each.join()
        assert set(self.found) == {"good"}, self.found


def test_no_request_is_lost_while_the_supervisor_starts_anew(place: Place) -> None:
    """The manager holds the port: what comes meanwhile waits there, on new connections and on kept ones."""
    with Manager(place, "up", STEADY, "--gateways=2", holds_port=True) as manager:
        manager.await_running()
        assert manager.listener is not None
        port = manager.listener.getsockname()[1]
        loads = [Load(port, keep_alive=False), Load(port, keep_alive=True)]
        try:
            eventually(lambda: all(load.found["good"] > 20 for load in loads))
            status = json.loads(place.orch("status", "--json").out)
            assert [each["address"] for each in status["gateways"]] == [f"127.0.0.1:{port}"] * 2
            manager.signal(signal.SIGTERM)
            manager.await_running(starts=2)
            seen = [load.found["good"] for load in loads]
            eventually(lambda: all(load.found["good"] > before + 20 for load, before in zip(loads, seen, strict=True)))
        finally:
            for load in loads:
                load.finish()
        assert manager.exit_codes == [Exit.OK]
