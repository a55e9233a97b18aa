"""Any HTTP server as a replica: started, watched, drained and ended like a model's worker."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from orch.errors import Exit
from tests.process.harness import PROGRAMS, Instance, Place, a_free_port, elapse, eventually, moment

SINGLE = (sys.executable, str(PROGRAMS / "single.py"), "{port}")
MANY = (sys.executable, str(PROGRAMS / "http_server.py"), "{port}")
QUICK = "--health-interval=0.2"


@pytest.fixture(scope="module")
def two(shared_place: Place) -> Instance:
    """Two servers, each of which runs one request at a time; each test leaves two."""
    options = ("--device=cpu", f"--first-port={a_free_port()}", "--health=/", QUICK)
    return shared_place.up("", *options, replicas=2, command=SINGLE)


def addresses(instance: Instance) -> list[str]:
    """Of the servers that proxies are told."""
    return [server["address"] for server in instance.call("servers")["servers"]]


def get(address: str, path: str = "/") -> str:
    """The body of one request."""
    with urlopen(f"http://{address}{path}", timeout=20) as answer:
        body: bytes = answer.read()
    return body.decode()


def runs(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


class Slow:
    """A request that runs in a thread of its own; `answer` is its body, once there is one."""

    def __init__(self, address: str, ms: int) -> None:
        self.answer = ""
        self._thread = threading.Thread(target=self._run, args=(address, ms), daemon=True)
        self._thread.start()

    def _run(self, address: str, ms: int) -> None:
        try:
            self.answer = get(address, f"/slow?ms={ms}")
        except OSError as err:
            self.answer = f"failed: {err}"

    def wait(self) -> str:
        """Its answer."""
        self._thread.join(20)
        return self.answer


class Watcher:
    """A proxy's writer: sees every set of servers, and says that it routes by it when told to."""

    def __init__(self, instance: Instance) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(instance.directory / "control.sock"))
        self._lines = self._socket.makefile("rb")
        self._say({"call": "servers", "watch": True})
        self.last: dict[str, Any] = json.loads(self._lines.readline())["ok"]

    def _say(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def next(self) -> dict[str, Any]:
        """The next set."""
        told = json.loads(self._lines.readline())
        assert told["event"] == "servers", told
        assert told["revision"] > self.last["revision"]
        self.last = told
        return self.last

    def apply(self) -> None:
        """Its proxy routes by the last set."""
        self._say({"call": "applied", "revision": self.last["revision"]})

    def close(self) -> None:
        """Leave."""
        self._lines.close()
        self._socket.close()


def test_servers_answer_at_ports_of_their_own_and_come_back_there(two: Instance) -> None:
    """A killed server is another process at the same address; its replica says why."""
    places = addresses(two)
    first, second = (int(each.removeprefix("127.0.0.1:")) for each in places)
    assert second == first + 1
    status = two.status()
    assert [row["pid"] for row in status["replicas"]] == [int(get(place)) for place in places]
    assert status["servers"] == [{"id": f"r{n}", "address": each, "draining": False} for n, each in enumerate(places)]
    assert status["replicas"][0]["outstanding"] is None, "orch sees no requests, so it counts none"

    old = two.kill("r1")
    two.await_successor("r1", old)
    two.await_output("r1 BACKOFF: the server was killed by SIGKILL")
    two.await_ready(2)
    assert addresses(two) == places
    assert int(get(places[1])) == two.pid_of("r1") != old

    begun = Slow(places[0], 500)
    eventually(lambda: two.replicas()["r0"]["connections"])
    two.call("restart", replica="r0")
    assert begun.wait() == str(status["replicas"][0]["pid"]), "what was begun is answered by the one that leaves"
    eventually(lambda: two.replicas()["r0"]["restarts"] == 1)
    two.await_ready(2)
    assert int(get(places[0])) == two.pid_of("r0")


def test_a_server_that_is_busy_is_left_alone_and_one_that_ends_is_replaced(two: Instance) -> None:
    """Its health is asked for five times a second, and cannot be answered for the length of a request."""
    place = addresses(two)[0]
    pid = two.pid_of("r0")
    slow = Slow(place, 1500)
    eventually(lambda: slow.answer)
    assert slow.answer == str(pid)
    assert two.pid_of("r0") == pid

    # A program may write its title over its environment, and so over our marks: it is ours all the same.
    child = int(get(place, "/unmarked"))
    eventually(lambda: child in two.replicas()["r0"]["pids"])
    with pytest.raises(OSError):  # noqa: PT011  whichever way the connection ends
        get(place, "/end?code=7")
    two.await_output("r0 BACKOFF: the server exited with 7")
    eventually(lambda: not runs(child))
    two.await_ready(2)


def test_scaling_down_lets_a_request_finish_and_tells_the_proxies_first(two: Instance) -> None:
    """3 -> 1: drained servers are told as such, wait for the writer's word, then for what they have begun."""
    with closing(Watcher(two)) as watcher:
        assert [server["id"] for server in watcher.last["servers"]] == ["r0", "r1"]
        two.call("scale", replicas=3)
        assert [server["id"] for server in watcher.next()["servers"]] == ["r0", "r1", "r2"]
        watcher.apply()
        two.await_ready(3)

        slow = Slow(watcher.last["servers"][1]["address"], 2000)
        idle = socket.create_connection(("127.0.0.1", int(watcher.last["servers"][2]["address"].rpartition(":")[2])))
        eventually(lambda: two.replicas()["r1"]["connections"])
        two.call("scale", replicas=1)
        assert [server["draining"] for server in watcher.next()["servers"]] == [False, True, True]
        elapse(0.3)
        assert two.replicas("DRAINING").keys() == {"r1", "r2"}, "no word from the proxy: they stay"
        assert two.status()["state"] == "READY", "who leaves for good is not missed"
        watcher.apply()
        idle.close()
        assert slow.wait().isdigit()
        two.await_ready(1)
        while len(watcher.last["servers"]) > 1:
            watcher.next()
        assert [server["id"] for server in watcher.last["servers"]] == ["r0"]
    two.call("scale", replicas=2)
    two.await_ready(2)


def test_an_idle_connection_holds_up_no_stop(place: Place) -> None:
    """A proxy keeps connections open after the answer: they are seen to be idle, and `orch down` leaves nothing."""
    first_port = a_free_port()
    instance = place.up("", "--device=cpu", f"--first-port={first_port}", command=MANY)
    with socket.create_connection(("127.0.0.1", first_port)) as kept:
        kept.sendall(b"GET /?ms=20 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        began = moment()
        assert instance.stop() == Exit.OK, instance.output()
        assert moment() - began < 20, "the drain deadline is 30 s"
    assert not place.processes()


def test_what_cannot_start_says_so(place: Place) -> None:
    """A server that ends at once, one that cannot be run, one whose options are wrong: a sentence and an exit code."""
    first_port = a_free_port()
    options = ("--device=cpu", f"--first-port={first_port}", "--name=x")
    ended = place.orch("up", *options, "--", sys.executable, "-c", "import sys; sys.exit(3)", "{port}")
    assert ended.code == Exit.MODEL_LOAD
    assert f"the server exited with 3 before it answered at 127.0.0.1:{first_port}" in ended.error_line()

    text = place.base / "not-a-program"
    text.write_text("#!/no/such/interpreter\n")
    text.chmod(0o755)
    broken = place.orch("up", *options, "--", str(text), "{port}")
    assert (broken.code, "cannot be run" in broken.error_line()) == (Exit.BAD_CONFIG, True)

    for words, said in (
        (("--", "no-such-program", "{port}"), "no program no-such-program on PATH"),
        (("m.py:M", "--", *SINGLE), "exclude each other"),
    ):
        refused = place.orch("up", *options, *words)
        assert (refused.code, said in refused.error_line()) == (Exit.BAD_CONFIG, True), refused


def test_a_start_in_the_background_says_what_it_waits_for(place: Place) -> None:
    """A health path that is not there; told to stop before it was ready, it is no success."""
    first_port = a_free_port()
    options = ("--device=cpu", f"--first-port={first_port}", "--health=/wrong")
    web = (sys.executable, "-m", "http.server", "--bind=127.0.0.1", "{port}")
    with place.start("-m", "orch_cli", "up", "--detach", *options, "--", *web) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "r0 is not READY" in line)
        assert f"it answers 404 at 127.0.0.1:{first_port}/wrong (--health" in said
        assert place.orch("down").code == Exit.OK
        _, err = process.communicate(timeout=20)
        assert "default was told to stop before it was ready" in err
        assert process.returncode == Exit.NOT_RUNNING
    assert not place.processes()


def test_nothing_outlives_a_supervisor_that_is_killed(two: Instance) -> None:
    """Runners, servers, and what a server has started in a session of its own."""
    get(addresses(two)[0], "/children")
    assert len(two.place.processes()) >= 7  # supervisor, warden, two runners, two servers, the child of one
    two.process.send_signal(signal.SIGKILL)
    two.process.wait()
    eventually(lambda: not two.place.processes(), within=6.0)


def test_a_port_that_is_taken_is_passed_over(place: Place) -> None:
    """The next free one is used; and the commands that are for models say what else to do."""
    first_port = a_free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", first_port))
        holder.listen()
        instance = place.up("", "--device=cpu", f"--first-port={first_port}", command=SINGLE)
        assert addresses(instance) == [f"127.0.0.1:{first_port + 1}"]
    assert f"r0 listens on port {first_port + 1}: port {first_port} is taken" in instance.output()
    refused = place.orch("request", "hello")
    assert (refused.code, "runs a command" in refused.error_line()) == (Exit.BAD_CONFIG, True)
    shown = place.orch("status")
    assert f"127.0.0.1:{first_port + 1}" in shown.out
    assert "requests" not in shown.out
