"""Whether a request is taken into the ledger, and the error that it is refused with. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orch import errors
from orch.wire import BUNDLE, NO_DEADLINE, AnyRecord, Flag, Record, error_record
from orch_balancer import policy
from orch_balancer.entry import Session
from orch_balancer.pool import Pool

NS = 1_000_000_000
# A client that reconnects may bring back what it had in its window and what the balancer had answered meanwhile.
RESEND_FACTOR = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What is admitted: requests queued in all, bytes of all that is admitted, requests of one client, attempts."""

    queue: int
    num_bytes: int
    per_client: int
    max_attempts: int


class Held(NamedTuple):
    """What the ledger holds now. admitting: it takes anything at all; num_bytes: of all that is admitted."""

    admitting: bool
    num_queued: int
    num_bytes: int


def refusal(
    request: AnyRecord, num_bytes: int, session: Session, pools: Sequence[Pool], held: Held, limits: Limits, now: float
) -> errors.RequestError | None:
    """Why this request, or bundle, is not taken; None: it is.

    num_bytes: its own. now: seconds, of the clock of its deadline.
    """
    if request.model >= len(pools):
        served = ", ".join(pool.model for pool in pools)
        return errors.NoSuchModel(f"model number {request.model}; served here: {served}")
    pool = pools[request.model]
    resent = bool(request.flags & Flag.RESEND)
    if request.deadline_ns != NO_DEADLINE:
        remaining = request.deadline_ns / NS - now
        if remaining <= 0:
            return errors.DeadlineExceeded("the deadline had passed when it arrived")
        num = request.rows if request.flags & BUNDLE else 1
        speed, ahead = pool.speed, pool.queue.rows_ahead(session.id, request.priority, num)
        can_make_it = pool.idle or policy.can_make_it(remaining, ahead, speed.rows_per_s, speed.batch_s)
        if not resent and not can_make_it:
            return errors.DeadlineExceeded(
                f"refused early: {remaining:.3g} s remain, and about {ahead} rows run before it "
                f"at {speed.rows_per_s:.3g} rows/s"
            )
    if len(session.entries) >= session.limit * (RESEND_FACTOR if resent else 1):
        count = f"this client has {len(session.entries)} requests here"
        return _overloaded(f"{count}; the limit is {session.limit} (--client-queue-limit)", pool)
    if resent:
        return None  # accepted once is accepted
    if not held.admitting:
        return errors.Overloaded("this instance is shutting down", 1.0)
    if held.num_queued >= limits.queue:
        return _overloaded(f"{held.num_queued} requests are queued; the limit is {limits.queue} (--queue-limit)", pool)
    if held.num_bytes and held.num_bytes + num_bytes > limits.num_bytes:
        return _overloaded(
            f"requests hold {held.num_bytes} bytes; the limit is {limits.num_bytes} (--queue-bytes)", pool
        )
    return None


def refused(request: AnyRecord, error: errors.RequestError) -> Record:
    """The answer that says so."""
    retry_after_s = error.retry_after_s if isinstance(error, errors.Overloaded) else 0.0
    return error_record(request.request_id, error.code, str(error), retry_after_s)


def _overloaded(text: str, pool: Pool) -> errors.Overloaded:
    return errors.Overloaded(text, policy.retry_after_s(pool.queue.rows, pool.speed.rows_per_s))
