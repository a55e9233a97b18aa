"""What a supervisor reports to whoever displays it, and the latest of it for whoever looks later. Pure."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orch.planning.sizes import format_size

# An hour of an instance that has trouble now and then; a replica that dies all the time fills it within minutes, and
# its older deaths tell nothing new.
MAX_EVENTS: Final = 60
# A model's own output is in the logs, and what a replica is on its way through is in its row of the status.
PASSING: Final = frozenset({"PLANNED", "STARTING", "LOADING"})


@dataclass(frozen=True, slots=True)
class Event:
    """kind: plan, replica, loading, balancer, mps, search, ready, restart, log, warning, drain or stopped.

    text: one line. data: the facts behind it; of a "replica" event at least its state.
    """

    kind: str
    text: str
    replica: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


class Severity(enum.StrEnum):
    """How much an event matters: information, something to know, something to do."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


# Of a replica's new state; every other one is information.
SEVERITIES: Final = {"BACKOFF": Severity.WARNING, "QUARANTINED": Severity.ERROR}


def severity_of(event: Event) -> Severity:
    """A replica that is given up needs somebody; a death that is mended by itself is to be known."""
    if event.kind == "replica":
        return SEVERITIES.get(str(event.data.get("state")), Severity.INFO)
    return Severity.WARNING if event.kind in ("warning", "balancer") else Severity.INFO


class Recent:
    """Owns the latest MAX_EVENTS events."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=MAX_EVENTS)
        self._number = 0

    def note(self, event: Event, at: float) -> None:
        """Keep it, unless it is a model's output or a step on a replica's way. at: unix seconds."""
        if event.kind == "log" or event.data.get("state") in PASSING:
            return
        self._number += 1
        self._kept.append(
            {
                "number": self._number,
                "at": at,
                "severity": str(severity_of(event)),
                "kind": event.kind,
                "replica": event.replica,
                "text": _text(event),
            }
        )

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Oldest first: number (from 1), at (unix seconds), severity, kind, replica (or None), text."""
        return list(self._kept)


def _text(event: Event) -> str:
    """The line itself; of a replica that has become READY, what it took."""
    if event.kind != "replica" or event.data.get("state") != "READY":
        return event.text
    facts = [f"on {event.data['device']}"] if event.data.get("device") else []
    if isinstance(num_bytes := event.data.get("footprint_bytes"), int):
        facts.append(format_size(num_bytes))
    if isinstance(load_s := event.data.get("load_s"), int | float):
        facts.append(f"loaded in {load_s:.1f} s")
    return " ".join([f"{event.replica} READY", ", ".join(facts)]).strip()
