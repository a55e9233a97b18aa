"""`orch down`: asks an instance to stop, and waits until its process is gone."""

from __future__ import annotations

import json
import os
import select
import time
from contextlib import closing
from typing import Any, Final

import click

from orch.errors import Exit
from orch_cli.options import instance_name, json_option, name_option, seconds

GONE_S: Final = 10.0  # after its answer, which is its last deed but for unlinking its files


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
    began = time.monotonic()
    pidfd = _pidfd(control.call(instance, "status").get("pid"))
    with closing(pidfd):
        # Answered when everything has stopped. No deadline of our own: the supervisor's ladder of stops has its own.
        answer = control.call(instance, "down", timeout=None, drain_timeout_s=timeout_s)
        pidfd.wait(GONE_S)
    facts = outcome(instance, answer, time.monotonic() - began)
    click.echo(json.dumps(facts, indent=2) if as_json else sentence(facts))
    raise SystemExit(Exit.DRAIN_INCOMPLETE if facts["unanswered"] else Exit.OK)


class _pidfd:  # noqa: N801  a descriptor that can be closed
    """The supervisor's process, which no later process of the same number can be taken for."""

    def __init__(self, pid: object) -> None:
        try:
            self._fd = os.pidfd_open(pid) if isinstance(pid, int) else None
        except OSError:
            self._fd = None  # gone already, or in another pid namespace

    def wait(self, timeout_s: float) -> None:
        """Until it is gone."""
        if self._fd is not None:
            select.select([self._fd], [], [], timeout_s)

    def close(self) -> None:
        """Let go."""
        if self._fd is not None:
            os.close(self._fd)


def outcome(instance: str, answer: dict[str, Any], seconds_taken: float) -> dict[str, Any]:
    """How a stop went. Requests that were still unanswered at the end are the one thing that can be wrong."""
    return {
        "name": instance,
        "stopped_in_s": round(seconds_taken, 3),
        "answered": answer.get("queue", {}).get("answered"),  # of a command nobody has counted
        "unanswered": answer.get("unanswered", 0),
    }


def sentence(facts: dict[str, Any]) -> str:
    """The outcome for people."""
    count = facts["unanswered"]
    left = f"{count} accepted request{'s' if count > 1 else ''} unanswered" if count else "nothing left behind"
    took = f"{facts['name']} stopped after {facts['stopped_in_s']:.1f} s"
    answered = "" if facts["answered"] is None else f"{facts['answered']:,} requests answered, "
    return f"{took}: {answered}{left}"
