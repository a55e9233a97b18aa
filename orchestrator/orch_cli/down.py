"""`orch down`: asks an instance to stop, and waits until its process is gone."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import click

from orch.errors import Exit, NotRunning, OrchError
from orch_cli.options import instance_name, json_option, name_option, seconds

POLL_S: Final = 0.2
CALL_TIMEOUT_S: Final = 2.0  # for a status while it stops: it may end between our question and its answer


@click.command()
@click.option("--timeout", metavar="SECONDS", help="How long accepted requests may take.  [default: --drain-timeout's]")
@name_option
@json_option
def down(timeout: str | None, name: str | None, as_json: bool) -> None:
    """Stop the instance, and say how it went.

    What was accepted is finished first. Exit code 12: not all of it was, before the time was up.
    """
    from orch.supervising import control

    timeout_s = seconds("drain_timeout_s", timeout, "--timeout")
    instance = instance_name(name)
    before = control.call(instance, "status")
    watched = Watched.of(before.get("pid"))
    began = time.monotonic()
    answer = control.call(instance, "down", drain_timeout_s=timeout_s)
    last = _wait_until_gone(instance, watched) or before
    outcome = Outcome.of(instance, answer, last, time.monotonic() - began)
    click.echo(json.dumps(outcome.to_json(), indent=2) if as_json else outcome.text)
    raise SystemExit(outcome.exit_code)


@dataclass(frozen=True, slots=True)
class Watched:
    """The supervisor's process, by a descriptor that no later process of the same number can take."""

    pidfd: int | None

    @classmethod
    def of(cls, pid: object) -> Watched:
        try:
            return cls(os.pidfd_open(pid) if isinstance(pid, int) else None)
        except OSError:
            return cls(None)  # gone already, or in another pid namespace: then the socket alone tells

    def gone_within(self, wait_s: float) -> bool:
        if self.pidfd is None:
            time.sleep(wait_s)
            return True
        return bool(select.select([self.pidfd], [], [], wait_s)[0])


def _wait_until_gone(instance: str, watched: Watched) -> dict[str, Any]:
    """The last status seen before the instance stopped answering.

    Has no deadline of its own: the supervisor's ladder of stops has, and Ctrl-C leaves it at work.
    """
    from orch.supervising import control

    last: dict[str, Any] = {}
    while True:
        gone = watched.gone_within(POLL_S)
        try:
            if not gone or watched.pidfd is None:
                last = control.call(instance, "status", timeout=CALL_TIMEOUT_S)
                continue
        except NotRunning:
            gone = gone or watched.pidfd is None
        except OrchError:
            gone = False  # it is busy stopping
        if gone:
            return last


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a stop went. Requests that were still unanswered at the end are the one thing that can be wrong."""

    instance: str
    seconds: float
    num_answered: int
    num_unanswered: int

    @classmethod
    def of(cls, instance: str, answer: Mapping[str, Any], last: Mapping[str, Any], seconds_taken: float) -> Outcome:
        queue = last.get("queue", {})
        unanswered = answer.get("unanswered", 0)
        return cls(instance, seconds_taken, queue.get("answered", 0), int(unanswered))

    @property
    def exit_code(self) -> Exit:
        return Exit.DRAIN_INCOMPLETE if self.num_unanswered else Exit.OK

    @property
    def text(self) -> str:
        how = f"{self.num_unanswered} accepted requests unanswered" if self.num_unanswered else "nothing left behind"
        return f"{self.instance} stopped after {self.seconds:.1f} s: {self.num_answered:,} requests answered, {how}"

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.instance,
            "stopped_in_s": round(self.seconds, 3),
            "answered": self.num_answered,
            "unanswered": self.num_unanswered,
        }
