"""Starting a child, knowing that it ended, and making sure that nothing of it is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
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


def marked(variable: str, value: str, proc: Path = Path("/proc")) -> Iterator[int]:
    """Pids of this user's processes that were started with `variable=value` in their environment."""
    needle = f"{variable}={value}".encode()
    for entry in proc.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:  # gone meanwhile, or another user's
                continue
            if needle in environ.split(b"\0"):
                yield int(entry.name)


def kill_marked(variable: str, value: str) -> int:
    """SIGKILL every process so marked; how many there were."""
    killed = 0
    for pid in marked(variable, value):
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
