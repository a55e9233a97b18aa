"""`orch gpus`: what the GPUs of this machine hold and do, and which of their processes are replicas of whom.

Everything shown comes out of `report`, which is also what --json prints: one place says what is known.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import psutil
from rich.console import Console
from rich.live import Live

from orch import runtime
from orch.errors import OrchError
from orch.planning import gpu
from orch.planning.cards import utilization_for
from orch_cli.options import json_option
from orch_cli.show import console, gpus_view, print_out

REFRESH_S: Final = 1.0
# A supervisor answers in milliseconds. One that does not is stopped or stuck, and its socket holds only so many
# callers that never get an answer: a view that is left open lets it be for a while.
ANSWER_S: Final = 1.0
SILENCE_S: Final = 60.0
HISTORY: Final = 30  # readings: as many as fit beside the bars on 80 columns

Status = Mapping[str, Any]
Report = dict[str, Any]


@click.command()
@click.option("--watch", is_flag=True, help="Refresh each second until Ctrl-C.")
@json_option
def gpus(watch: bool, as_json: bool) -> None:
    """Show the GPUs, what is free, and who uses them.

    A GPU is busy while anything runs on it, however little of it that fills.
    """
    instances = Instances()
    if not watch:
        show(report(instances), as_json=as_json)
        return
    logging.getLogger(gpu.__name__).setLevel(logging.CRITICAL)  # the view itself says which GPU is gone
    with contextlib.suppress(KeyboardInterrupt), gpu.session():  # the way to end it, not a failure
        follow(lambda: report(instances), as_json=as_json)


def report(instances: Instances) -> Report:
    """The driver, and for each device its memory, its work, its processes and which replica each of them is."""
    readings = gpu.read_live()
    statuses = instances.statuses() if readings else {}
    return {
        "driver_version": gpu.driver_version(),
        "why_none": None if readings else gpu.why_none(),
        "gpus": [facts(reading, statuses) for reading in readings],
    }


def facts(
    reading: gpu.GpuReading,
    statuses: Mapping[str, Status],
    command: Callable[[int], str | None] | None = None,
) -> Report:
    """One device as --json prints it. statuses: what each running instance says of itself, by its name."""
    found = dataclasses.asdict(reading)
    device = found.pop("gpu")
    total = device["total_bytes"]
    return {
        **device,
        **found,
        "planned_share": None if total is None else utilization_for(device["name"], total),
        "processes": processes(device, statuses, command or command_of),
    }


def processes(device: Report, statuses: Mapping[str, Status], command: Callable[[int], str | None]) -> list[Report]:
    """Who is on this device: what the driver lists, and the replicas that it does not list by a number of ours.

    In a container the driver may list the host's process ids, which here name other processes or none. So commands
    are told only where every one of them is a process here.
    """
    listed = {process["pid"]: process["used_bytes"] for process in device["processes"]}
    replicas = {
        pid: {"instance": status.get("name") or name, "replica": row.get("id"), "state": row.get("state")}
        | {"footprint_bytes": row.get("footprint_bytes")}
        for name, status in statuses.items()
        for row in status.get("replicas", ())
        if row.get("pid") and row.get("gpu") == device["uuid"]
        for pid in {row["pid"], *(each for each in row.get("pids") or () if each in listed)}
    }
    nobody = dict.fromkeys(("instance", "replica", "state", "footprint_bytes"))
    commands = {pid: command(pid) for pid in listed}
    ours = None not in commands.values()
    return [
        {"pid": pid, "used_bytes": used, "command": commands[pid] if ours else None, **replicas.get(pid, nobody)}
        for pid, used in listed.items()
    ] + [
        {"pid": pid, "used_bytes": None, "command": None, **replica}
        for pid, replica in replicas.items()
        if pid not in listed
    ]


def command_of(pid: int) -> str | None:
    """The command line of a process, its program without the path; None where there is no such process."""
    try:
        process = psutil.Process(pid)
        with contextlib.suppress(psutil.AccessDenied):
            if line := process.cmdline():
                return " ".join([Path(line[0]).name, *line[1:]])
        return process.name()
    except psutil.Error:
        return None


class Instances:
    """Asks the running instances how they are. Owns: which of them are not asked for now, because they did not answer.

    ask: returns the status of the instance of that name, or raises OrchError.
    """

    def __init__(
        self,
        bases: Callable[[], Sequence[Path]] = runtime.bases,
        ask: Callable[[str], Status] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bases = bases
        self._ask = ask or _status
        self._clock = clock
        self._silent_until: dict[str, float] = {}

    def statuses(self) -> dict[str, Status]:
        """What each says of itself, by name; those that say nothing are left out."""
        return {name: status for name in self._names() if (status := self._status_of(name)) is not None}

    def _names(self) -> Iterator[str]:
        """Each once: a name that is in two places is the one that clients would find first."""
        names: dict[str, None] = {}
        for base in self._bases():
            with contextlib.suppress(OSError):  # not there, or of another user
                names |= {path.name: None for path in sorted(base.iterdir()) if (path / runtime.CONTROL).exists()}
        yield from names

    def _status_of(self, name: str) -> Status | None:
        asked = self._clock()
        if asked < self._silent_until.get(name, asked):
            return None
        try:
            return self._ask(name)
        except OrchError:
            if self._clock() - asked >= ANSWER_S:
                self._silent_until[name] = asked + SILENCE_S
            return None


def _status(name: str) -> Status:
    from orch.supervising import control

    return control.call(name, "status", timeout=ANSWER_S)


class Memory:
    """What the view keeps between readings: how busy each GPU was, and those that were there and are gone."""

    def __init__(self) -> None:
        self.busy: dict[str, deque[int | None]] = {}
        self.gone: list[Report] = []
        self._seen: dict[str, Report] = {}

    def add(self, found: Report) -> None:
        """Take in the next reading."""
        there = {each["uuid"]: each for each in found["gpus"]}
        self._seen |= there
        self.gone = [each for uuid, each in self._seen.items() if uuid not in there]
        for uuid, each in there.items():
            self.busy.setdefault(uuid, deque(maxlen=HISTORY)).append(each["utilization_percent"])


def follow(
    look: Callable[[], Report],
    *,
    as_json: bool,
    out: Console | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Show what `look` returns, again and again; where there is no GPU there is nothing to wait for."""
    found = look()
    out = out or console()
    if not found["gpus"]:
        show(found, as_json=as_json)
        return
    if as_json or not out.is_terminal:
        while True:
            if as_json:
                click.echo(json.dumps(found))
            else:
                show(found, as_json=False)
            pause(REFRESH_S)
            found = look()
    memory = Memory()
    with Live(console=out, auto_refresh=False) as live:
        while True:
            memory.add(found)
            live.update(gpus_view(found, memory.busy, memory.gone), refresh=True)
            pause(REFRESH_S)
            found = look()


def show(found: Report, *, as_json: bool) -> None:
    """Print one reading."""
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif found["gpus"]:
        print_out(gpus_view(found))
    else:
        click.echo(f"{found['why_none']}; replicas run on the CPU")
