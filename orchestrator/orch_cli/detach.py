"""`orch up --detach`: the same command in a session of its own, and a wait until it serves or has failed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from orch import runtime
from orch.config import SETTINGS, Config, Resolved
from orch.errors import Exit, NotRunning, OrchError, RuntimeDirError
from orch_cli.words import command_line

LOG_NAME: Final = "up.log"
POLL_S: Final = 0.1
MARGIN_S: Final = 30.0  # beyond load_timeout: the interpreter's start, the plan, and the registration


def start_detached(resolved: Resolved, options: Mapping[str, Any], config_path: str | None) -> int:
    """Start it and wait, and show what it says meanwhile. Returns the exit code: 0 once it is ready, else its own.

    Raises:
        NotRunning: it was told to stop before it was ready.
        RuntimeDirError: its log cannot be written.
    """
    config = resolved.config
    log_path = runtime.log_dir(config.name) / LOG_NAME
    command = [sys.executable, "-P", "-m", "orch_cli", *arguments(options, config_path)]
    with _opened(log_path, config.log_max_bytes) as log:
        begin = os.fstat(log.fileno()).st_size
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        with log_path.open("rb") as log:
            log.seek(begin)
            return _wait(child, config, Relay(log, known=[f"orch: warning: {each}" for each in resolved.warnings]))
    except KeyboardInterrupt:
        click.echo(f"orch: {config.name} goes on starting without you; stop it with orch down", err=True)
        raise


def arguments(options: Mapping[str, Any], config_path: str | None) -> list[str]:
    """The command line that gives these options once more."""
    words = ["up", "--detached"]
    if config_path:
        words.append(f"--config={config_path}")
    for name, value in options.items():
        if value is not None and name not in ("target", "command"):
            if value is True:
                words.append(SETTINGS[name].flag)
                continue
            texts = value if isinstance(value, tuple) else (value,)
            words += [f"{SETTINGS[name].flag}={text}" for text in texts]
    return [*words, *command_line(options)]


def _opened(path: Path, max_bytes: int) -> BinaryIO:
    """The log, to append to: an instance of the same name may be writing it. A full one makes room first."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > max_bytes:
            path.replace(path.with_name(path.name + ".1"))
        return path.open("ab")
    except OSError as error:
        raise RuntimeDirError(
            f"{path} cannot be written: {error.strerror}; set ORCH_STATE_DIR to a directory that you can write"
        ) from error


class Relay:
    """Shows the lines of a log as they are written. known: those that whoever looks on has seen already."""

    def __init__(self, log: BinaryIO, known: Collection[str] = ()) -> None:
        self._log, self._known = log, known
        self._rest = b""
        self.said_nothing = True

    def pump(self) -> None:
        """Those that are new, and whole."""
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace")
            if text not in self._known:
                self.said_nothing = False
                click.echo(text, err=True)


def _wait(child: subprocess.Popen[bytes], config: Config, relay: Relay) -> int:
    """Until ready, dead, or no replica has become ready for as long as one may take to load."""
    num_ready = -1
    deadline = 0.0
    while child.poll() is None:
        status = _status_of(config.name, child.pid)
        relay.pump()
        now_ready = sum(replica.get("state") == "READY" for replica in status.get("replicas", ()))
        if status.get("state") in ("READY", "DEGRADED"):  # every replica has had its turn
            click.echo(f"orch: {config.name} goes on in the background; {_see_and_stop(config.name)}", err=True)
            return Exit.OK
        if now_ready > num_ready:
            num_ready, deadline = now_ready, time.monotonic() + config.load_timeout_s + MARGIN_S
        if time.monotonic() > deadline:
            click.echo(
                f"orch: {config.name} is not ready after {config.load_timeout_s + MARGIN_S:g} s and goes on trying; "
                + _see_and_stop(config.name),
                err=True,
            )
            return Exit.MODEL_LOAD
        time.sleep(POLL_S)
    relay.pump()
    if child.returncode == Exit.OK:
        raise NotRunning(f"{config.name} was told to stop before it was ready")
    if relay.said_nothing:
        click.echo(f"orch: {config.name} ended at once, with exit code {child.returncode}", err=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _see_and_stop(name: str) -> str:
    return f"see orch status --name {name}, stop it with orch down --name {name}"


def _status_of(name: str, pid: int) -> dict[str, Any]:
    """The child's status; nothing while it does not answer yet, or while another process answers under its name."""
    from orch.supervising import control

    try:
        status = control.call(name, "status", timeout=1.0)
    except OrchError:
        return {}
    return status if status.get("pid") == pid else {}
