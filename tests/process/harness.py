"""A real instance under test: started by the command line, watched from outside, and gone afterwards."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from orch import Client, runtime
from orch.errors import Exit

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
PROGRAMS = HERE / "programs"
# A slow machine multiplies every deadline of these tests.
FACTOR = float(os.environ.get("TEST_TIME_FACTOR", "1"))
POLL_S = 0.02
START_S, STOP_S, COMMAND_S = 20.0, 20.0, 30.0
# Every process that comes from a test carries this, whatever orch itself puts into environments.
MARK = "TEST_MARK"


def eventually(condition: Callable[[], T], within: float = 5.0) -> T:
    """The first true value of `condition`. Nothing but this and `elapse` sleeps."""
    deadline = time.monotonic() + within * FACTOR
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not so within {within * FACTOR:g} s"
        time.sleep(POLL_S)
    return value


def elapse(seconds: float, turn: Callable[[], object] = lambda: None) -> None:
    """Let time pass, and take a turn of something with each look at the clock."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        turn()
        time.sleep(POLL_S)


def moment() -> float:
    """Now, in seconds of an arbitrary beginning."""
    return time.monotonic()


def a_free_port() -> int:
    """One whose successors are most likely free too: below those that the kernel gives away (ip(7))."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
    return 10_000 + port % 20_000


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    def error_line(self) -> str:
        """The last line, which says in clear words what was wrong. No traceback, but those of a model in its worker."""
        said = [line for line in self.err.splitlines() if not re.match(r"r\d+ \| ", line)]
        assert not any("Traceback" in line for line in said), self
        assert said, f"it said nothing: {self}"
        assert said[-1].startswith(("orch: ", "Error: ")), self
        return said[-1]


class Process(subprocess.Popen[str]):
    """A child that does not outlive a test that fails."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)


class Place:
    """A runtime and a state directory of their own, and the instances in them."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="o", dir="/tmp"))
        self.runtime, self.state = self.base / "r", self.base / "s"
        self.mark = self.base.name
        self.instances: list[Instance] = []

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """For a child: this place, the packages under test, and no settings of whoever runs the tests."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith("ORCH_")}
        environ |= {"ORCH_RUNTIME_DIR": str(self.runtime), "ORCH_STATE_DIR": str(self.state), MARK: self.mark}
        environ["ORCH_HTTP"] = "off"  # a test that wants HTTP asks for a port of its own
        environ.pop("PYTHONPATH", None)
        if roots := _source_roots():
            environ["PYTHONPATH"] = os.pathsep.join(roots)
        return environ | dict(extra or {})

    def up(
        self,
        target: str = "",
        *options: str,
        replicas: int = 1,
        name: str = "default",
        env: Mapping[str, str] | None = None,
        wait: bool = True,
        http: bool = False,
        command: Sequence[str] = (),
    ) -> Instance:
        """Start an instance of a model in tests/process/models, or of any other target, and wait until it is READY.

        command: in a target's place; a free --first-port is for the options to say.
        http: serve it at a free port of this host; otherwise not at all (`environ`), unless the options say so.
        """
        known = (MODELS / target.partition(":")[0]).is_file()
        target = str(MODELS / target) if known else target
        if http:
            options = ("--http=127.0.0.1:0", *options)
        words = (f"--replicas={replicas}", *options, *(("--", *command) if command else ()))
        instance = Instance(self, name, target, words, env)
        self.instances.append(instance)
        if wait:
            instance.wait_ready()
        return instance

    def orch(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        within: float = COMMAND_S,
        text: str | None = None,
    ) -> Finished:
        """Run one command to its end."""
        with self.start("-m", "orch_cli", *words, env=env, cwd=cwd) as process:
            try:
                out, err = process.communicate(text, timeout=within * FACTOR)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"`orch {' '.join(words)}` did not end: {out}{err}") from None
        return Finished(process.returncode, out, err)

    def program(self, name: str, *words: str) -> Process:
        """Start one of tests/process/programs."""
        return self.start(str(PROGRAMS / name), *words)

    def start(self, *words: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Process:
        """Start a Python process with pipes."""
        pipe = subprocess.PIPE
        return Process(
            [sys.executable, "-P", *words],
            env=self.environ(env), cwd=cwd or self.base, stdin=pipe, stdout=pipe, stderr=pipe, text=True,
        )  # fmt: skip

    def processes(self) -> list[int]:
        """Pids of everything that was started from here and still runs."""
        needle = f"{MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != str(os.getpid()):
                try:
                    environ = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if needle in environ.split(b"\0"):
                    found.append(int(entry.name))
        return found

    def clean(self) -> None:
        """Stop what runs, and see that it leaves nothing: no process, no socket."""
        try:
            for instance in self.instances:
                instance.leave()
            eventually(lambda: not self.processes(), within=6.0)
            places = {self.runtime, *(instance.directory for instance in self.instances)}
            left = [path.name for place in places if place.is_dir() for path in place.iterdir()]
            assert not left, f"left in the runtime directory: {left}"
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.base, ignore_errors=True)


class Instance:
    """One `orch up`, seen from outside."""

    def __init__(
        self, place: Place, name: str, target: str, options: Sequence[str], env: Mapping[str, str] | None = None
    ) -> None:
        self.place = place
        self.name = name
        self.directory = runtime.directory_in(place.runtime, name)
        self._output = (place.base / f"{name}.{len(place.instances)}.out").open("w+b")
        self._clients: list[Client] = []
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orch_cli", "up", *([target] if target else []), f"--name={name}", *options],
            env=place.environ(env), cwd=place.base, stdin=subprocess.DEVNULL,
            stdout=self._output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    # --- facts

    @property
    def endpoint(self) -> str:
        """Where clients connect."""
        return runtime.front_endpoint(self.directory)

    @property
    def url(self) -> str:
        """Where HTTP is served."""
        found: str = self.status()["http"]
        return found

    def output(self) -> str:
        """All that `orch up` has printed."""
        return Path(self._output.name).read_text(errors="replace")

    def log(self, source: str) -> str:
        """A log file: of r0, balancer, supervisor."""
        path = self.place.state / self.name / f"{source}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One call to the control socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10.0 * FACTOR)
            connection.connect(str(self.directory / "control.sock"))
            connection.sendall(json.dumps({"call": command, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline() or b'{"error": "it ended"}')
        assert "ok" in answer, answer
        result: dict[str, Any] = answer["ok"]
        return result

    def status(self) -> dict[str, Any]:
        """What `orch status --json` shows; nothing while there is nobody to ask."""
        try:
            return self.call("status")
        except (OSError, ValueError):
            return {}

    def replicas(self, state: str | None = None) -> dict[str, dict[str, Any]]:
        """Replicas by id: all, or those in a state."""
        found = self.status().get("replicas", ())
        return {each["id"]: each for each in found if state in (None, each["state"])}

    def ready(self) -> list[str]:
        """Ids of the replicas that are READY."""
        return list(self.replicas("READY"))

    def pid_of(self, who: str) -> int | None:
        """Process of a replica, or of "balancer"."""
        status = self.status()
        if who == "balancer":
            pid: int | None = status.get("balancer", {}).get("pid")
            return pid
        return next((each["pid"] for each in status.get("replicas", ()) if each["id"] == who), None)

    def queue(self) -> dict[str, int]:
        """The balancer's figures."""
        figures: dict[str, int] = self.status().get("queue", {})
        return figures

    # --- waiting

    def await_output(self, text: str, within: float = 5.0) -> None:
        """Until `orch up` has printed it."""
        eventually(lambda: text in self.output(), within)

    def await_log(self, text: str, *sources: str, within: float = 5.0) -> None:
        """Until one of these logs has it."""
        eventually(lambda: any(text in self.log(source) for source in sources), within)

    def await_successor(self, who: str, old: int, within: float = 10.0) -> None:
        """Until a replica, or the balancer, is another process."""
        eventually(lambda: self.pid_of(who) not in (None, old), within)

    def await_ready(self, count: int, within: float = 15.0) -> None:
        """Until there are so many replicas, all of them READY."""
        eventually(lambda: len(self.ready()) == count == len(self.replicas()), within)

    # --- deeds

    def wait_ready(self) -> None:
        """Until every replica serves; an instance that ends instead fails the test with its last words."""

        def ready() -> bool:
            code = self.process.poll()
            assert code is None, f"orch up ended with {code}:\n{self.output()}"
            return self.status().get("state") == "READY"

        eventually(ready, within=START_S)

    def client(self, **options: Any) -> Client:
        """A client that is closed when the test ends."""
        client = Client(self.endpoint, **options)
        self._clients.append(client)
        return client

    def kill(self, who: str) -> int:
        """SIGKILL to a replica, or to the balancer."""
        pid = self.pid_of(who)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return pid

    def send(self, number: signal.Signals) -> None:
        """To the supervisor."""
        self.process.send_signal(number)

    def wait(self, within: float = STOP_S) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(within * FACTOR)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {within * FACTOR:g} s:\n{self.output()}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        self.send(number)
        return self.wait()

    def close_clients(self) -> None:
        """Close them; one that hangs here, as a ZeroMQ context may, fails the test instead."""
        for client in self._clients:
            closing = threading.Thread(target=client.close, daemon=True)
            closing.start()
            closing.join(5.0 * FACTOR)
            assert not closing.is_alive(), "a client could not be closed"
        self._clients.clear()

    def leave(self) -> None:
        """At the end of a test: what still runs is told to stop, and does so without complaint."""
        try:
            self.close_clients()
            if self.process.poll() is None:
                code = self.stop()
                assert code == Exit.OK, f"stopping ended with {code}:\n{self.output()}"
            elif self.process.returncode == -signal.SIGKILL:
                # Whoever comes next locks this file anew; to unlink it without holding it would be a race.
                (self.place.runtime / f"{self.name}.lock").unlink(missing_ok=True)
        finally:
            self.process.kill()
            self.process.wait()
            self._output.close()


@dataclass
class ClosedLoop:
    """Keeps `outstanding` requests under way until `finish`; remembers every answer that was not the right one.

    The model answers [WHO, n] with ["answer", WHO, n].
    """

    client: Client
    who: str
    outstanding: int = 64
    num_sent: int = 0
    answered: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    _stopping: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> Self:
        for _ in range(self.outstanding):
            self._next()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True

    def _next(self) -> None:
        with self._lock:
            number, self.num_sent = self.num_sent, self.num_sent + 1
        began = moment()
        try:
            future = self.client.submit([self.who, number])
        except Exception as err:  # noqa: BLE001  whatever it is, it is a finding
            self.wrong.append(f"{number} could not be submitted: {err!r}")
            return
        future.add_done_callback(lambda done: self._ended(number, began, done))

    def _ended(self, number: int, began: float, done: Any) -> None:
        error = done.exception()
        if error is not None:
            self.wrong.append(f"{number}: {error!r}")
        elif done.result() != ["answer", self.who, number]:
            self.wrong.append(f"{number} got {done.result()!r}")
        with self._lock:
            if number in self.answered:
                self.wrong.append(f"{number} ended twice")
            self.answered.add(number)
            self.slowest_s = max(self.slowest_s, moment() - began)
        if not self._stopping:
            self._next()

    def await_more(self, count: int) -> None:
        """Until so many more were answered."""
        seen = len(self.answered)
        eventually(lambda: len(self.answered) >= seen + count or self.wrong)

    def finish(self, within: float = 20.0) -> int:
        """Send no more, wait for the rest; how many were answered, all of them rightly."""
        self._stopping = True
        eventually(lambda: len(self.answered) == self.num_sent or self.wrong, within)
        assert not self.wrong, f"{len(self.wrong)} went wrong, such as {self.wrong[:5]}"
        return len(self.answered)


def resident_bytes(pid: int, *, peak: bool = False) -> int:
    """Resident memory of a process, now or at its highest since `reset_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def reset_peak(pid: int) -> None:
    """Let the peak begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _source_roots() -> list[str]:
    """Where our packages are, unless they are installed: a child finds installed ones by itself."""
    roots = []
    for package in ("orch", "orch_cli", "orch_worker", "orch_balancer", "orch_gateway", "orch_deploy"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parents[1]
        if root.name != "site-packages" and str(root) not in roots:
            roots.append(str(root))
    return roots
