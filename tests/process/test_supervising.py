"""The supervisor: restarts, backoff and quarantine, scaling, rolling restarts, logs, the background."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys

import pytest

from orch.errors import Exit
from tests.process.harness import ClosedLoop, Place, eventually, moment


def test_a_killed_worker_comes_back(place: Place) -> None:
    """Under its name, as another process, and the count of restarts says so."""
    instance = place.up("plain.py:Echo", replicas=2)
    assert instance.client().request(1) == 1
    old = instance.kill("r0")
    instance.await_successor("r0", old)
    instance.await_ready(2)
    assert [each["restarts"] for each in instance.replicas().values()] == [1, 0]
    instance.await_log("SIGKILL", "supervisor")


def test_status_has_what_programs_rely_on(place: Place) -> None:
    """The documented keys, with figures that agree with what was asked."""
    instance = place.up("plain.py:Echo", replicas=2)
    client = instance.client()
    assert list(client.map(range(100))) == list(range(100))
    status = json.loads(place.orch("status", "--json").out)
    assert status["name"] == "default"
    assert status["state"] == "READY"
    assert status["endpoint"] == instance.endpoint
    assert status["model"] == "Echo"
    assert [each["id"] for each in status["replicas"]] == ["r0", "r1"]
    for each in status["replicas"]:
        assert each["state"] == "READY"
        assert each["device"] == "cpu"
        assert each["outstanding"] == 0
        assert each["footprint_bytes"] > 2**20
        assert each["pid"] in place.processes()
    assert sum(each["answered"] for each in status["replicas"]) == 100
    assert {"queued", "outstanding", "answered", "rejected", "retried"} <= set(status["queue"])
    assert status["queue"]["answered"] == 100
    assert "r0" in place.orch("status").out


@pytest.mark.timeout(60)
def test_a_flapping_replica_backs_off_and_is_quarantined_while_others_go_on(place: Place) -> None:
    """Ever longer pauses, then no more; the other one serves throughout, and a restart by hand tries again."""
    flag = place.base / "flag"
    instance = place.up("naughty.py:Flaps", f"--set=flag={flag}", replicas=2)
    flag.touch()
    with ClosedLoop(instance.client(), "a", 8) as loop:
        instance.kill("r1")
        eventually(lambda: "r1" in instance.replicas("BACKOFF"), within=10)
        eventually(lambda: "r1" in instance.replicas("QUARANTINED"), within=40)
        assert instance.status()["state"] == "DEGRADED"
        assert instance.ready() == ["r0"]
        loads = [float(line) for line in flag.with_suffix(".loads").read_text().split()]
        pauses = [later - earlier for earlier, later in itertools.pairwise(loads)]
        assert len(loads) >= 4
        assert all(later > 1.2 * earlier for earlier, later in itertools.pairwise(pauses)), pauses
        flag.unlink()
        assert place.orch("restart", "r1").code == Exit.OK
        instance.await_ready(2)
        loop.finish()
    assert instance.status()["state"] == "READY"


def test_the_last_replica_is_only_backed_off(place: Place) -> None:
    """It is all that users have: it is tried again and again, never given up, and what waits is answered."""
    flag = place.base / "flag"
    instance = place.up("naughty.py:Flaps", f"--set=flag={flag}")
    client = instance.client()
    flag.touch()
    instance.kill("r0")
    waiting = [client.submit(["a", i]) for i in range(10)]
    eventually(lambda: (instance.replicas("BACKOFF") or {"r0": {"restarts": 0}})["r0"]["restarts"] >= 3, within=15)
    assert not instance.replicas("QUARANTINED")
    flag.unlink()
    assert [future.result(timeout=15) for future in waiting] == [["answer", "a", i] for i in range(10)]


@pytest.mark.timeout(60)
def test_scaling_under_load_loses_nothing(place: Place) -> None:
    """Up to three and down to one, while requests go on."""
    instance = place.up("plain.py:Steady")
    with ClosedLoop(instance.client(), "a") as loop:
        for wanted in (3, 1, 2):
            assert place.orch("scale", str(wanted)).code == Exit.OK
            instance.await_ready(wanted)
            loop.await_more(200)
        served = loop.finish()
    queue = instance.queue()
    assert (queue["answered"], queue["rejected"], queue["lost"]) == (served, 0, 0)


@pytest.mark.timeout(60)
def test_a_rolling_restart_under_load_loses_nothing(place: Place) -> None:
    """One, then all, one after another: new processes, every request answered, and never nobody there."""
    instance = place.up("plain.py:Steady", replicas=2)
    with ClosedLoop(instance.client(), "a") as loop:
        eventually(lambda: len(loop.answered) > 100)
        for words, chosen in ((["r1"], {"r1"}), ([], {"r0", "r1"})):
            before = {each["id"]: each["pid"] for each in instance.replicas().values()}
            assert place.orch("restart", *words).code == Exit.OK

            def restarted(before: dict[str, int] = before, chosen: set[str] = chosen) -> bool:
                ready = instance.replicas("READY")
                assert ready, "nobody was READY"
                return len(ready) == 2 and {who for who in before if ready[who]["pid"] != before[who]} == chosen

            eventually(restarted, within=20)
        served = loop.finish()
    queue = instance.queue()
    assert (queue["answered"], queue["rejected"], queue["lost"]) == (served, 0, 0)
    assert loop.slowest_s < 3


def test_a_restart_of_nobody_is_refused(place: Place) -> None:
    """An unknown replica is named along with the known."""
    place.up("plain.py:Echo")
    refused = place.orch("restart", "r7")
    assert refused.code == Exit.BAD_CONFIG
    assert "there are r0" in refused.error_line()


def test_logs_are_kept_by_name_and_outlive_the_instance(place: Place) -> None:
    """`orch logs` shows all, one, the last, and what comes; also when nothing runs any more."""
    instance = place.up("naughty.py:Obedient")
    client = instance.client()
    for number in range(5):
        client.request(["print", f"line {number}"])
    instance.await_log("line 4", "r0")
    assert "r0 | " in place.orch("logs").out
    last = place.orch("logs", "r0", "-n", "1")
    assert last.out.count("\n") == 1
    assert "line 4" in last.out
    unknown = place.orch("logs", "r9")
    assert (unknown.code, "there are no logs of r9" in unknown.error_line()) == (Exit.BAD_CONFIG, True)
    with place.start("-m", "orch_cli", "logs", "-f", "-n", "1", "r0") as follower:
        assert follower.stdout is not None
        assert "line 4" in follower.stdout.readline()
        client.request(["print", "line 5"])
        while "line 5 (error)" not in (line := follower.stdout.readline()):
            assert line
        follower.terminate()
        follower.communicate()
    instance.close_clients()
    instance.stop()
    after = place.orch("logs", "r0")
    assert (after.code, "line 5" in after.out) == (Exit.OK, True)


def test_log_files_are_rotated(place: Place) -> None:
    """A model that prints without end does not fill the disk."""
    instance = place.up("naughty.py:Obedient", "--log-max-size=4KiB")
    client = instance.client()
    for _ in range(20):
        client.request(["print", "x" * 1000])
    logs = place.state / "default"
    eventually((logs / "r0.log.2").exists)
    assert all(path.stat().st_size < 8 * 1024 for path in logs.glob("r0.log*"))
    assert len(list(logs.glob("r0.log*"))) <= 4


def test_detach_returns_when_it_serves_and_down_ends_it(place: Place) -> None:
    """In the background, in a session of its own."""
    started = place.orch("up", "--detach", "--replicas=2", f"{_models(place)}:Echo")
    assert started.code == Exit.OK, started
    assert "default serves Echo with 2 replicas at" in started.err
    assert "goes on in the background" in started.err
    try:
        assert place.orch("request", "hello").out == '"hello"\n'
        assert place.orch("scale", "1").code == Exit.OK
    finally:
        stopped = place.orch("down", "--json")
    assert stopped.code == Exit.OK
    assert json.loads(stopped.out)["answered"] == 1
    eventually(lambda: not place.processes())


def _models(place: Place) -> str:
    path = place.base / "my_model.py"
    path.write_text("import orch\nclass Echo(orch.Model):\n    def predict(self, inputs): return inputs\n")
    return str(path)


def test_detach_that_fails_has_the_exit_code_and_the_reason(place: Place) -> None:
    """As in the foreground."""
    failed = place.orch("up", "--detach", f"{_models(place)}:Missing")
    assert failed.code == Exit.BAD_CONFIG
    assert "has no 'Missing'" in failed.error_line()
    eventually(lambda: not place.processes())


def test_two_instances_live_side_by_side(place: Place) -> None:
    """Each has its name, its sockets and its end."""
    one, other = place.up("plain.py:Echo", name="one"), place.up("plain.py:double", name="other")
    assert (one.client().request(4), other.client().request(4)) == (4, 8)
    one.close_clients()
    assert one.stop() == Exit.OK
    assert other.client().request(5) == 10


def test_a_slow_start_keeps_clients_waiting_not_failing(place: Place) -> None:
    """Requests that come while replicas load are queued and answered."""
    (place.base / "slow.py").write_text(
        "import time\n"
        "class Slow:\n"
        "    def load(self, device): time.sleep(1.5)\n"
        "    def predict(self, inputs): return inputs\n"
    )
    instance = place.up("slow:Slow", wait=False)
    eventually(lambda: instance.replicas("LOADING"), within=10)
    assert instance.client().request("early", timeout=10) == "early"


def test_the_balancer_comes_back_again_and_again(place: Place) -> None:
    """Three deaths in a row; a client that asks meanwhile waits, and is answered."""
    instance = place.up("plain.py:Echo")
    client = instance.client()
    for number in range(3):
        old = instance.kill("balancer")
        began = moment()
        assert client.request(number, timeout=15) == number
        assert moment() - began < 5
        instance.await_successor("balancer", old)
    assert instance.status()["balancer"]["restarts"] == 3
    assert instance.replicas()["r0"]["restarts"] == 0


def test_a_lost_device_costs_the_worker_and_not_the_request(place: Place) -> None:
    """A sticky device error: the worker ends with its own code, the request runs on the next one."""
    instance = place.up("naughty.py:LosesDevice", f"--set=flag={place.base}/flag", replicas=2)
    assert instance.client().request("hello", timeout=15) == "hello"
    instance.await_log("DEVICE_LOST", "supervisor")
    instance.await_ready(2)


@pytest.mark.parametrize("module", ["orch_worker", "orch_balancer"])
@pytest.mark.parametrize("how", ["closed link", "other parent"])
def test_a_child_without_a_supervisor_ends_by_itself(place: Place, module: str, how: str) -> None:
    """With ORPHANED: it never had one, or it died before the child could say that it wants to die with it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        environ = place.environ({"ORCH_SUPERVISOR_PID": "1"} if how == "other parent" else {})
        fd = str(theirs.fileno())
        with subprocess.Popen(
            [sys.executable, "-P", "-m", module, fd, fd], env=environ, pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as child:  # fmt: skip
            if how == "closed link":
                ours.close()
                theirs.close()
            out, _ = child.communicate(timeout=15)
    assert child.returncode == Exit.ORPHANED, out
    assert b"Traceback" not in out
