"""Which workers stand still: from their status pages, and from the balancer's word on what they have. Pure."""

from __future__ import annotations

from collections.abc import Iterable

# How often running batches are looked at: often enough that a hang is noticed within 2 % of its time-out, no oftener
# than a wake-up costs, and no rarer than a person would wait.
LOOKS_PER_TIMEOUT = 50
MIN_LOOK_S, MAX_LOOK_S = 0.05, 5.0


def look_s(timeouts_s: Iterable[float]) -> float:
    """Seconds between two looks; 0 is no time-out."""
    shortest = min((each for each in timeouts_s if each), default=0.0)
    return min(MAX_LOOK_S, max(MIN_LOOK_S, shortest / LOOKS_PER_TIMEOUT)) if shortest else MAX_LOOK_S


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
