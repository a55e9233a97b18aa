"""Starting a child, knowing that it ended, and making sure that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orch.link import pair

# Every process of an instance, and whatever it starts, inherits this: it is how leftovers are recognised, also those
# that left their session or outlived their parent.
INSTANCE_VARIABLE = "ORCH_INSTANCE_ID"
WORKER_VARIABLE = "ORCH_WORKER_ID"


def base_environ(environ: Mapping[str, str], instance_id: str) -> dict[str, str]:
    """What every child inherits: the user's environment, our mark, and who its parent is."""
    return {**environ, INSTANCE_VARIABLE: instance_id, "ORCH_SUPERVISOR_PID": str(os.getpid())}


class Child:
    """A process in a session of its own, with a link to us, its output on a pipe, and a pidfd."""

    def __init__(self, module: str, fds: Sequence[int], environ: Mapping[str, str]) -> None:
        self.link, theirs = pair()
        self.link.socket.set_inheritable(False)
        with theirs:
            arguments = [str(theirs.fileno()), *(str(fd) for fd in fds)]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *arguments],
                env=dict(environ),
                pass_fds=[theirs.fileno(), *fds],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                bufsize=0,
            )
        assert self._process.stdout is not None
        self.output = self._process.stdout
        os.set_blocking(self.output.fileno(), False)
        self.pid = self._process.pid
        self.pidfd = os.pidfd_open(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass

    def reap(self) -> int:
        """The exit code of a process whose pidfd is readable; negative for a signal. Ends its process group too."""
        try:
            os.killpg(self.pid, signal.SIGKILL)  # while the unreaped process still reserves the group's number
        except (ProcessLookupError, PermissionError):
            pass
        return self._process.wait()

    def close(self) -> None:
        """Close our ends, after `reap`."""
        self.link.close()
        self.output.close()
        os.close(self.pidfd)


def marks(variable: str, proc: Path = Path("/proc")) -> dict[str, set[int]]:
    """Pids of this user's processes by the value that each was started with of `variable` in its environment.

    Nothing is found while no descriptor is left to look with: whoever asks looks again.
    """
    needle = f"{variable}=".encode()
    found: dict[str, set[int]] = {}
    try:
        entries = list(proc.iterdir())
    except OSError:
        return found
    for entry in entries:
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:  # gone meanwhile, or another user's
                continue
            for line in environ.split(b"\0"):
                if line.startswith(needle):
                    found.setdefault(os.fsdecode(line[len(needle) :]), set()).add(int(entry.name))
    return found


def session(leader: int, proc: Path = Path("/proc")) -> set[int]:
    """Pids of a session's processes. A program that writes its title over its environment has lost its marks."""
    found = set()
    with contextlib.suppress(OSError):  # no descriptor is left to look with
        for entry in proc.iterdir():
            with contextlib.suppress(OSError):  # gone meanwhile
                if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                    found.add(int(entry.name))
    return found


def kill_marked(variable: str, value: str) -> int:
    """SIGKILL every process so marked; how many there were."""
    return kill_all(marks(variable).get(value, set()) - {os.getpid()})


def kill_all(pids: Iterable[int]) -> int:
    """SIGKILL these; how many there were."""
    killed = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except (ProcessLookupError, PermissionError):
            pass
    return killed


def listen(path: Path) -> socket.socket:
    """A listening Unix socket that only this user can reach."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen(64)
    server.setblocking(False)
    return server
