"""Wrong input as a new user would give it: one clear line, no traceback, and the documented exit code."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from orch.errors import Exit
from tests.process.harness import MODELS, Finished, Place, eventually, moment

ECHO = f"{MODELS}/plain.py:Echo"
FAILS = f"{MODELS}/naughty.py:CannotLoad"

FILES = {
    "syntax.py": "def predict(inputs:\n    return inputs\n",
    "raises.py": "raise RuntimeError('at import')\n",
    "exits.py": "import sys\nsys.exit(0)\n",
    "needs.py": "import a_module_that_nobody_has\n",
    "empty.py": "",
    "wrong.py": (
        "number = 5\n"
        "class NoPredict: pass\n"
        "class BadSize:\n    max_batch_size = 0\n    def predict(self, inputs): return inputs\n"
        "class BadWait:\n    max_batch_wait = 'long'\n    def predict(self, inputs): return inputs\n"
        "class Fails:\n"
        "    def __init__(self): raise ValueError('no, thank you')\n"
        "    def predict(self, inputs): return inputs\n"
    ),
    "bad.toml": "replicas = = 2\n",
    "unknown.toml": "replica = 2\n",
    "value.toml": "replicas = -2\n",
}


@pytest.fixture
def files(place: Place) -> Path:
    """A working directory with files that are wrong, each in its own way."""
    for name, text in FILES.items():
        (place.base / name).write_text(text)
    return place.base


def refused(finished: Finished, code: Exit, *says: str) -> str:
    """It ended with that code, and said one line with these words."""
    assert finished.code == code, finished
    line = finished.error_line()
    assert finished.out == ""
    for word in says:
        assert word in line, line
    return line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.py:Model"], ["no file nowhere.py"]),
        (["no_such_module:Model"], ["no module named 'no_such_module'"]),
        (["syntax.py:Model"], ["syntax.py, line 1"]),
        (["raises.py:Model"], ["RuntimeError: at import"]),
        (["exits.py:Model"], ["SystemExit"]),
        (["needs.py:Model"], ["a_module_that_nobody_has", "not installed"]),
        (["empty.py:Model"], ["has no 'Model'"]),
        (["wrong.py:Model"], ["has no 'Model'", "NoPredict"]),
        (["wrong.py:NoPredict"], ["has no predict(self, inputs"]),
        (["wrong.py:number"], ["is a int"]),
        (["wrong.py:BadSize"], ["max_batch_size is 0"]),
        (["wrong.py:BadWait"], ["max_batch_wait is 'long'"]),
        (["wrong.py:Fails"], ["no, thank you"]),
        (["wrong.py"], ["wrong.py", "path/to/file.py:Name"]),
        ([ECHO, "--set", "colour=red"], ["colour"]),
        ([ECHO, "--replicas", "0"], ["replicas = 0", "--replicas", "from 1"]),
        ([ECHO, "--replicas", "many"], ["replicas = many"]),
        ([ECHO, "--vram-per-replica", "7XB"], ["7XB", "GiB"]),
        ([ECHO, "--listen", "tcp://0.0.0.0:5555"], ["0.0.0.0", "other machines"]),
        ([ECHO, "--listen", "http://127.0.0.1:1"], ["listen"]),
        ([ECHO, "--listen", "tcp://127.0.0.1:99999"], ["99999"]),
        ([ECHO, "--name", "a/b"], ["name = a/b"]),
        ([ECHO, "--env", "CUDA_VISIBLE_DEVICES=0"], ["--device"]),
        ([ECHO, "--config", "bad.toml"], ["bad.toml is not TOML"]),
        ([ECHO, "--config", "unknown.toml"], ["did you mean replicas"]),
        ([ECHO, "--config", "value.toml"], ["replicas = -2", "value.toml"]),
        ([ECHO, "--config", "missing.toml"], ["missing.toml", "no such file"]),
        ([], ["no target given"]),
    ],
    ids=lambda value: " ".join(value).replace(str(MODELS), "") if isinstance(value, list) else None,
)
def test_what_cannot_work_is_bad_config(place: Place, files: Path, words: list[str], says: list[str]) -> None:
    """The line names what is wrong, where it came from, or what to write instead."""
    began = moment()
    refused(place.orch("up", *words), Exit.BAD_CONFIG, *says)
    assert moment() - began < 5
    assert not place.runtime.exists() or not list(place.runtime.iterdir())


def test_a_bad_variable_is_named(place: Place) -> None:
    """A setting from the environment is checked like a flag."""
    refused(place.orch("up", ECHO, env={"ORCH_REPLICAS": "none"}), Exit.BAD_CONFIG, "replicas = none", "ORCH_REPLICAS")


def test_a_gpu_that_is_not_there_is_refused(place: Place) -> None:
    """--device cuda on a machine without a usable GPU says so, and what to do."""
    environ = {"CUDA_VISIBLE_DEVICES": ""}
    finished = place.orch("up", ECHO, "--device=cuda:63", env=environ)
    assert finished.code in (Exit.BAD_CONFIG, Exit.DOES_NOT_FIT)
    assert "NVIDIA" in finished.error_line() or "GPU" in finished.error_line()
    if not Path("/dev/nvidia0").exists():
        finished = place.orch("up", ECHO, "--device=cuda", env=environ)
        assert finished.code in (Exit.BAD_CONFIG, Exit.DOES_NOT_FIT)
        assert "--device cpu" in finished.error_line()


@pytest.mark.parametrize(
    ("how", "options", "code", "says"),
    [
        ("raise", [], Exit.MODEL_LOAD, "the weights are not there"),
        ("warmup", [], Exit.MODEL_LOAD, "not even the samples"),
        ("sys.exit", [], Exit.MODEL_LOAD, "SystemExit"),
        ("exit", [], Exit.MODEL_LOAD, "exited with code 9"),
        ("hang", ["--load-timeout=0.7"], Exit.MODEL_LOAD, "not READY within 0.7 s"),
        ("memory", [], Exit.OUT_OF_MEMORY, "no room for the weights"),
    ],
)
def test_a_model_that_cannot_load_ends_the_start(
    place: Place, how: str, options: list[str], code: Exit, says: str
) -> None:
    """After a second try; the line has the model's own words, the log the traceback."""
    refused(place.orch("up", FAILS, "--replicas=2", f"--set=how={how}", *options), code, says)
    assert not place.processes()
    assert not list(place.runtime.iterdir())
    if how in ("raise", "warmup", "memory"):
        assert "Traceback" in (place.state / "default" / "r0.log").read_text()


def test_more_than_fits_is_refused_with_the_sum(place: Place) -> None:
    """500 replicas: the line says how many fit, and which limit it was; nothing is left."""
    finished = place.orch("up", ECHO, "--replicas=500")
    line = refused(finished, Exit.DOES_NOT_FIT, "500")
    assert any(char.isdigit() for char in line.replace("500", ""))
    assert not place.processes()


def test_a_name_that_runs_is_already_running(place: Place) -> None:
    """The second instance of a name is refused, with the first one's process, which goes on."""
    instance = place.up("plain.py:Echo")
    refused(place.orch("up", ECHO), Exit.ALREADY_RUNNING, "already running", str(instance.process.pid), "orch down")
    refused(place.orch("up", "--detach", ECHO), Exit.ALREADY_RUNNING, "already running")
    assert instance.client().request(1) == 1


@pytest.mark.parametrize(
    "words", [["status"], ["down"], ["scale", "2"], ["restart"], ["request", "hello"], ["logs"]], ids=" ".join
)
def test_commands_for_nobody_are_not_running(place: Place, words: list[str]) -> None:
    """The line says how to start one."""
    refused(place.orch(*words), Exit.NOT_RUNNING, "orch up")


def test_a_taken_port_is_address_in_use(place: Place) -> None:
    """--listen on a port of somebody else."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        refused(place.orch("up", ECHO, f"--listen={endpoint}"), Exit.ADDRESS_IN_USE, endpoint)
    assert not place.processes()


@pytest.mark.parametrize("runtime", ["/proc/orch", "/dev/null/orch", "{base}/file/orch"])
def test_an_unusable_runtime_directory_is_named(place: Place, runtime: str) -> None:
    """Read-only, or below something that is no directory: the line has the path, the reason, and the variable."""
    (place.base / "file").touch()
    path = runtime.format(base=place.base)
    refused(place.orch("up", ECHO, env={"ORCH_RUNTIME_DIR": path}), Exit.RUNTIME_DIR, path, "ORCH_RUNTIME_DIR")


def test_an_unusable_log_directory_is_named(place: Place) -> None:
    """The same for logs."""
    refused(
        place.orch("up", ECHO, env={"ORCH_STATE_DIR": "/proc/orch"}), Exit.RUNTIME_DIR, "/proc/orch", "ORCH_STATE_DIR"
    )
    assert not place.runtime.exists() or not list(place.runtime.iterdir())


def test_a_runtime_path_that_is_too_long_is_shortened(place: Place) -> None:
    """Over 107 bytes: a short directory is used instead, by the instance, its clients and its commands alike."""
    place.runtime = place.base / ("x" * 110)
    instance = place.up("plain.py:Echo")
    assert "too long" in instance.output()
    assert not str(instance.directory).startswith(str(place.runtime))
    assert place.orch("request", "hello").out == '"hello"\n'
    assert place.orch("status").code == Exit.OK
    refused(place.orch("up", ECHO), Exit.ALREADY_RUNNING)
    instance.stop()
    assert not instance.directory.exists()
    refused(place.orch("status"), Exit.NOT_RUNNING)


def test_a_request_that_fails_says_why(place: Place) -> None:
    """`orch request` ends with REQUEST_FAILED for whatever the client raised."""
    instance = place.up("naughty.py:Obedient", "--max-payload=64KiB")
    refused(place.orch("request", "--json", '["raise", "no luck"]'), Exit.REQUEST_FAILED, "ValueError: no luck")
    refused(place.orch("request", "--json", '["sleep", 0.5]', "--timeout=0.1"), Exit.REQUEST_FAILED, "timeout")
    large = place.base / "large.bin"
    large.write_bytes(b"\xff" * 100_000)
    refused(place.orch("request", "--file", str(large)), Exit.REQUEST_FAILED, "100", "65536", "--max-payload")
    refused(place.orch("request", "--json", "{"), Exit.BAD_CONFIG, "not JSON")
    refused(place.orch("request", "--file", "missing.txt"), Exit.BAD_CONFIG, "missing.txt")
    assert instance.client().request("hello") == "hello"


def test_a_stop_that_leaves_requests_unanswered_says_so(place: Place) -> None:
    """`orch down --timeout` passes before they are done: 12, for the command and for the instance."""
    instance = place.up("plain.py:Sleeper")
    client = instance.client()
    futures = [client.submit(1.0) for _ in range(5)]
    eventually(lambda: instance.queue()["outstanding"] >= 1)
    down = place.orch("down", "--timeout=0.2")
    assert down.code == Exit.DRAIN_INCOMPLETE, down
    assert "unanswered" in down.out
    assert instance.wait() == Exit.DRAIN_INCOMPLETE
    assert all(eventually(future.done) for future in futures)


def test_a_wrong_word_is_a_usage_error(place: Place) -> None:
    """An unknown command or option is click's own line, and 2."""
    for words in (["fly"], ["up", "--wings=2"], ["scale"]):
        finished = place.orch(*words)
        assert finished.code == Exit.USAGE
        assert "Error: " in finished.err


def test_plan_says_what_up_would_do(place: Place) -> None:
    """Also for a card that is not there."""
    planned = place.orch("plan", "--gpu=rtx-4090", "--vram-per-replica=7GiB")
    assert planned.code == Exit.OK, planned
    assert "3" in planned.out
    assert os.linesep in planned.out
    refused(place.orch("plan", "--gpu=abacus"), Exit.BAD_CONFIG, "abacus")
