"""Having a running proxy take its file, and knowing when it routes by it.

A reload of nginx or HAProxy starts new processes beside the old ones, which take no new connection from then on. The
signal itself says nothing: until the old ones have heard of it, they may still choose a server that is about to stop.
"""

from __future__ import annotations

import shlex
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

from orch.errors import ConfigError
from orch_deploy.checking import complaint, run

RELOAD_S: Final = 10.0
LOOK_EVERY_S: Final = 0.01
# After a command whose effect cannot be seen from here, as in another container.
UNSEEN_S: Final = 1.0
# HAProxy's old process hears of its end from the new one, a moment after that answers.
HANDOVER_S: Final = 0.2
ASK_S: Final = 5.0
ORDERS_AT_ONCE: Final = 32  # a line to HAProxy has to fit its buffer of 16 KiB


def reload_nginx(pid_file: Path, command: str | None = None) -> bool:
    """True once only processes with the new configuration take requests; False: no nginx runs there.

    command: does it in the place of a signal to the process that `pid_file` names.

    Raises:
        ConfigError: it cannot be told, or has not done it in time; its error log says why.
    """
    master = _master(pid_file, "nginx")
    before = _nginx_workers(master)
    if command is not None:
        _order(command)
        if not before:
            time.sleep(UNSEEN_S)
            return True
    elif master is None:
        return False
    else:
        _signal(master, signal.SIGHUP)

    def taken() -> bool:
        now = _nginx_workers(master)
        old_serve = any(serves for pid, serves in now.items() if pid in before)
        return not old_serve and any(serves for pid, serves in now.items() if pid not in before)

    _wait(taken, "nginx has not taken the new configuration")
    return True


def nginx_runs(pid_file: Path) -> bool:
    """Whether a master process of nginx is there."""
    return _master(pid_file, "nginx") is not None


def reload_haproxy(socket_path: str, pid_file: Path, command: str | None = None) -> None:
    """Returns once a new process takes the requests.

    Raises:
        ConfigError: it cannot be told, or has not done it in time.
    """
    before = haproxy_pid(socket_path)
    if command is not None:
        _order(command)
    else:
        master = _master(pid_file, "haproxy")
        if master is None or master.pid == before:
            raise ConfigError(
                f"HAProxy has to be reloaded, and {pid_file} names no master process: run it with -W, or give "
                "--reload-command"
            )
        _signal(master, signal.SIGUSR2)
    _wait(lambda: haproxy_pid(socket_path) not in (None, before), "HAProxy has not taken the new configuration")
    time.sleep(HANDOVER_S)


def haproxy_pid(socket_path: str) -> int | None:
    """The process that serves now; None: nobody answers on the socket."""
    facts = ask_haproxy(socket_path, ["show info"]) or ""
    return next((int(line.partition(":")[2]) for line in facts.splitlines() if line.startswith("Pid:")), None)


def ask_haproxy(socket_path: str, orders: Sequence[str]) -> str | None:
    """All that it answers; None: nobody is there, or has gone meanwhile."""
    said = ""
    try:
        for first in range(0, len(orders), ORDERS_AT_ONCE):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ASK_S)
                connection.connect(socket_path)
                connection.sendall(";".join(orders[first : first + ORDERS_AT_ONCE]).encode() + b"\n")
                while piece := connection.recv(65536):
                    said += piece.decode(errors="replace")
    except OSError:
        return None
    return said


# --- processes


def _master(pid_file: Path, name: str) -> psutil.Process | None:
    """The process that a pid file names, if it is one of that program."""
    try:
        found = psutil.Process(int(pid_file.read_text()))
        return found if name in found.name() else None
    except (OSError, ValueError, psutil.Error):
        return None


def _nginx_workers(master: psutil.Process | None) -> dict[int, bool]:
    """The processes below a master that serve, or (False) only finish what they have. They say so in their titles."""
    found = {}
    if master is not None:
        try:
            for child in master.children():
                title = _title(child)
                if "worker process" in title:
                    found[child.pid] = "shutting down" not in title
        except psutil.Error:
            return {}
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # gone meanwhile


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.AccessDenied:
        raise ConfigError(
            f"process {process.pid} is another user's and cannot be told to reload; run this as that user, or give "
            "--reload-command (of `orch up`: --nginx-reload), such as 'sudo systemctl reload nginx'"
        ) from None
    except psutil.Error:
        pass  # gone: the wait that follows says so


def _order(command: str) -> None:
    code, said = run(shlex.split(command))
    if code:
        raise ConfigError(f"`{command}` ended with {code}: {complaint(said)}")


def _wait(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + RELOAD_S
    while not condition():
        if time.monotonic() > deadline:
            raise ConfigError(f"{otherwise} within {RELOAD_S:g} s; see its error log")
        time.sleep(LOOK_EVERY_S)
