"""Which workers stand still: from their status pages, and from the balancer's word on what they have. Pure."""

from __future__ import annotations

from collections.abc import Iterable

# Between two looks: at least what a wake-up may cost, at most what a person would wait.
MIN_LOOK_S, MAX_LOOK_S = 0.05, 5.0


def look_s(left_s: Iterable[float]) -> float:
    """Seconds until the next look. left_s: until each worker that has a time-out could stand still for that long."""
    return min(MAX_LOOK_S, max(MIN_LOOK_S, min(left_s, default=MAX_LOOK_S)))


def hung(timeout_s: float, batch_age_s: float) -> str | None:
    """Why a worker that runs a batch counts as hung, or None. batch_age_s: since it last said that it goes on."""
    if timeout_s and batch_age_s > timeout_s:
        return f"its batch runs for {batch_age_s:.1f} s (--timeout {timeout_s:g})"
    return None


def stalled(timeout_s: float, busy_s: float) -> str | None:
    """Why a worker that runs no batch counts as stalled, or None. busy_s: since it had requests and answered none."""
    if timeout_s and busy_s > timeout_s:
        return f"it has had requests for {busy_s:.1f} s and runs none (--timeout {timeout_s:g})"
    return None
