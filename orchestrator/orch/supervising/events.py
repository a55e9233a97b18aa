"""What a supervisor reports to whoever displays it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """kind: plan, replica, balancer, mps, search, ready, log, warning, drain or stopped. text: one line for people.

    data: the facts behind it; of a "replica" event at least its state.
    """

    kind: str
    text: str
    replica: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
