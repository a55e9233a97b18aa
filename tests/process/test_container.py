"""orch as process 1, in a PID namespace of its own as a container has one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from tests.process.harness import MODELS, Place, eventually

# Without root's rights a user namespace lends them.
LENT = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
UNSHARE = ["unshare", *LENT, "--pid", "--fork", "--mount-proc", "--kill-child"]
# Where no namespace may be made: a process that orphans are given to as they are to process 1 (prctl(2), 36 is
# PR_SET_CHILD_SUBREAPER), and that steps aside though it is another.
SUBREAPER = """\
import ctypes, os, runpy, sys
from orch.supervising import first
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
del sys.argv[0]
if sys.argv[0] == "-m":
    first.step_aside()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    exec(sys.argv[1])
"""


@cache
def may_unshare() -> bool:
    """Whether this machine lets us make namespaces."""
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def as_first(place: Place, *words: str) -> subprocess.Popen[str]:
    """Start a Python process as process 1."""
    prefix = [*UNSHARE, sys.executable, "-P"] if may_unshare() else [sys.executable, "-P", "-c", SUBREAPER]
    return subprocess.Popen(
        [*prefix, *words],
        env=place.environ(), cwd=place.base, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def first_of(outer: subprocess.Popen[str]) -> int:
    """Process 1, as it is numbered outside."""
    if not may_unshare():
        return outer.pid
    (init,) = children(outer.pid)
    assert Path(f"/proc/{init}/status").read_text().split("NSpid:")[1].splitlines()[0].split()[-1] == "1"
    return init


def children(pid: int) -> list[int]:
    """Those that run, and those that nobody has reaped."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def program(*lines: str) -> Sequence[str]:
    """A Python program that steps aside first."""
    return ["-c", "\n".join(["import os, signal", "from orch.supervising import first", "first.step_aside()", *lines])]


def test_process_1_reaps_orphans_and_passes_sigterm_on(place: Place) -> None:
    """What a model leaves behind is gone when it has ended; a stop drains and ends with exit code 0."""
    with as_first(
        place, "-m", "orch_cli", "up", str(MODELS / "orphans.py:Orphans"), "--replicas=1", "--http=127.0.0.1:0"
    ) as outer:
        status = eventually(lambda: _ready(place), within=20.0)
        init = first_of(outer)
        (supervisor,) = children(init)
        for number in range(5):
            body = json.dumps(f"input {number}").encode()
            with urllib.request.urlopen(f"{status['http']}/predict", body, timeout=10) as answer:
                assert json.load(answer) == f"input {number}"
        eventually(lambda: children(init) == [supervisor])
        os.kill(init, signal.SIGTERM)
        said, _ = outer.communicate(timeout=20)
    assert outer.returncode == 0, said
    assert "SIGTERM: finishing what is accepted" in said
    assert "stopped" in said


def _ready(place: Place) -> dict[str, str]:
    checked = place.orch("status", "--check")
    assert checked.out == ""
    if checked.code != 0:
        assert checked.code == 8, checked
        return {}
    found: dict[str, str] = json.loads(place.orch("status", "--json").out)
    return found


@pytest.mark.parametrize(
    ("line", "code"),
    [("raise SystemExit(12)", 12), ("os.kill(os.getpid(), signal.SIGKILL)", 137), ("assert os.getpid() != 1", 0)],
)
def test_process_1_ends_as_its_child_does(place: Place, line: str, code: int) -> None:
    """Whoever restarts containers by their exit codes is told orch's own."""
    with as_first(place, *program(line)) as outer:
        said, _ = outer.communicate(timeout=10)
    assert outer.returncode == code, said


@pytest.mark.parametrize("number", ["SIGINT", "SIGHUP", "SIGUSR1"])
def test_signals_reach_the_child_once(place: Place, number: str) -> None:
    """The kernel drops what process 1 does not handle; it is handled, by passing it on."""
    lines = (
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [signal.{number}])",
        "print('waits', flush=True)",
        f"print(signal.sigwait([signal.{number}]).name, signal.sigpending())",
    )
    with as_first(place, *program(*lines)) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == "waits\n"
        os.kill(first_of(outer), getattr(signal, number))
        said, _ = outer.communicate(timeout=10)
    assert (outer.returncode, said) == (0, f"{number} set()\n")
