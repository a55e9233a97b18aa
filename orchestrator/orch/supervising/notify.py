"""What the service manager is told, and when: the lines of sd_notify(3). Pure.

A service of Type=notify counts as started with its first READY=1, may be at work on a reload between RELOADING=1 and
the next READY=1, and announces its end with STOPPING=1. WATCHDOG=1 is owed at least every WATCHDOG_USEC, else the
service is killed and started again; so it is said for progress that was seen, not because time has passed.
EXTEND_TIMEOUT_USEC asks for patience, and is asked for again as long as that is due.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# sd_notify(3) advises to notify every half of WATCHDOG_USEC: one answer may be late, and none is missed.
WATCHDOG_SHARE: Final = 0.5
# A question to the balancer that was put to one that died meanwhile is asked again.
ASK_AGAIN_S: Final = 2.0
# Patience is asked for so often, each time for so long: a supervisor that hangs is noticed soon.
EXTEND_EVERY_S, EXTEND_S = 5.0, 15.0
# Beyond the deadline of what is waited for: killing what missed it, and starting anew.
MARGIN_S: Final = 15.0
# What happens beyond a deadline for longer is stuck: each of them is looked at more often (liveness.MAX_LOOK_S).
STUCK_S: Final = 15.0
# A rate of requests is the mean of so long.
RATE_S: Final = 10.0
# Between two looks for no other reason than the time: what is due and cannot be said must not keep us busy.
MIN_LOOK_S: Final = 0.25
MAX_STATUS_CHARS: Final = 300


class Phase(enum.Enum):
    """Of the instance's life: before its first replica was READY, from then on, and after it was told to stop."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Seen:
    """The instance at one moment.

    states: of the replicas, by id. until: monotonic seconds at which what goes on now must have ended. stuck: what
    should have been ended long ago. restarting: a rolling restart of all goes on. Counts are the balancer's; before a
    command, whose requests nobody counts, num_answered is None.
    """

    phase: Phase
    states: Mapping[str, str]
    until: float | None = None
    stuck: tuple[str, ...] = ()
    restarting: bool = False
    num_answered: int | None = 0
    num_unanswered: int = 0
    waits_for: str = ""


class Notices:
    """Owns what was said. watchdog_s: how long the manager waits for WATCHDOG=1; None: it does not wait for it."""

    def __init__(self, watchdog_s: float | None, pid: int) -> None:
        self._every_s = None if watchdog_s is None else watchdog_s * WATCHDOG_SHARE
        self._pid = pid
        self._is_ready = self._is_reloading = self._is_stopping = False
        self._status = ""
        self._looked_at = 0.0
        self._extend_at = 0.0
        self._feed_at = 0.0
        self._ask_at = 0.0
        self._answered = False  # since the last WATCHDOG=1 was due
        self._counted: tuple[float, int] | None = None
        self._rate: float | None = None

    def look(self, seen: Seen, now: float) -> list[str]:
        """The lines that are due, of one datagram; often none."""
        self._looked_at = now
        lines = self._steps(seen, now)
        status = status_of(seen, self._rate_of(seen, now))
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        waits = self._is_reloading or seen.phase is not Phase.SERVING
        if waits and seen.until is not None and now < seen.until + MARGIN_S and now >= self._extend_at:
            self._extend_at = now + EXTEND_EVERY_S
            lines.append(f"EXTEND_TIMEOUT_USEC={_usec(min(EXTEND_S, seen.until + MARGIN_S - now))}")
        if self._may_feed(seen, now):
            assert self._every_s is not None
            self._answered, self._feed_at, self._ask_at = False, now + self._every_s, now + self._every_s
            lines.append("WATCHDOG=1")
        return lines

    def asks(self, now: float) -> bool:
        """Whether the balancer is to be asked now; `answered` follows when it lives."""
        if self._every_s is None or now < self._ask_at or self._answered:
            return False
        self._ask_at = now + min(ASK_AGAIN_S, self._every_s)
        return True

    def answered(self, now: float) -> None:
        """The balancer has answered a question, of whoever."""
        self._answered = self._answered or now >= self._feed_at

    def next_deadline(self) -> float | None:
        """When `asks` or `look` may have something to do, though nothing happens."""
        waits = self._is_reloading or not self._is_ready or self._is_stopping
        times = [self._extend_at] if waits else []
        if self._every_s is not None:
            times.append(self._feed_at if self._is_stopping else self._ask_at)
        if self._counted is not None:
            times.append(self._counted[0] + RATE_S)
        return max(min(times), self._looked_at + MIN_LOOK_S) if times else None

    def _steps(self, seen: Seen, now: float) -> list[str]:
        if seen.phase is Phase.STOPPING:
            first, self._is_stopping, self._is_reloading = not self._is_stopping, True, False
            return ["STOPPING=1"] if first else []
        if seen.phase is Phase.SERVING and not self._is_ready:
            self._is_ready = True
            return ["READY=1", f"MAINPID={self._pid}"]
        if self._is_ready and seen.restarting != self._is_reloading:
            self._is_reloading = seen.restarting
            return ["RELOADING=1", f"MONOTONIC_USEC={_usec(now)}"] if seen.restarting else ["READY=1"]
        return []

    def _may_feed(self, seen: Seen, now: float) -> bool:
        if self._every_s is None or now < self._feed_at or seen.stuck:
            return False
        return self._answered or seen.phase is Phase.STOPPING  # whose end has a deadline of its own

    def _rate_of(self, seen: Seen, now: float) -> float | None:
        """Requests answered in a second; None: not known yet."""
        if seen.phase is not Phase.SERVING or seen.num_answered is None:
            self._counted = self._rate = None
        elif self._counted is None or seen.num_answered < self._counted[1]:  # a new balancer counts from 0
            self._counted = now, seen.num_answered
        elif now - self._counted[0] >= RATE_S:
            self._rate = (seen.num_answered - self._counted[1]) / (now - self._counted[0])
            self._counted = now, seen.num_answered
        return self._rate


def status_of(seen: Seen, rate: float | None) -> str:
    """What happens, in one line: `systemctl status` shows it."""
    loading = [each for each, state in seen.states.items() if state in ("STARTING", "LOADING")]
    ready = sum(state == "READY" for state in seen.states.values())
    parts = [f"{ready} of {len(seen.states)} replicas READY"]
    if seen.phase is Phase.STOPPING:
        parts = [f"draining: {seen.num_unanswered} requests unanswered" if ready else "stopping"]
    elif seen.restarting:
        parts.insert(0, "restarting one after another")
    if loading and seen.phase is not Phase.STOPPING:
        parts.append(f"loading {', '.join(loading)}")
    down = [f"{each} {state}" for each, state in seen.states.items() if state in ("BACKOFF", "QUARANTINED")]
    parts += down if seen.phase is not Phase.STOPPING else []
    if seen.waits_for:
        parts.append(seen.waits_for)
    if seen.stuck:
        parts.append(f"stuck: {', '.join(seen.stuck)}")
    if rate is not None:
        parts.append(f"{rate:,.0f} requests/s")
    text = ", ".join(parts)
    return text if len(text) <= MAX_STATUS_CHARS else text[: MAX_STATUS_CHARS - 1] + "…"


def one_line(text: str) -> str:
    """A value that cannot be taken for another line of the datagram."""
    return " ".join(text.split())[:MAX_STATUS_CHARS]


def _usec(seconds: float) -> int:
    return round(seconds * 1_000_000)
