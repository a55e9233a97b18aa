"""What a worker's death means for a request that it had: run it again, alone or not, or end it."""

from __future__ import annotations

from dataclasses import dataclass

from orch import errors
from orch_balancer.entry import Entry
from orch_balancer.pool import Worker

# A suspect that ran while its group fell this often is the killer. Once could be another's deed: ordinary requests run
# on the group's other workers meanwhile.
MAX_GROUP_STRIKES = 2


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a worker is lost. counts: as an attempt of what it had. convicts: a suspect that ran alone was the killer.

    group: it fell with all that share its GPU, by the fault of one of them, and nobody says which.
    """

    text: str
    counts: bool = True
    convicts: bool = True
    group: bool = False


def verdict(
    entry: Entry, cause: Cause, was_running: bool, worker: Worker, max_attempts: int
) -> errors.RequestError | None:
    """What a worker's death means for a request it had. None: run it again.

    Notes on the entry, and on its pool, what was learned.
    """
    if not cause.counts:
        entry.attempts -= 1
    pool = worker.pool
    if not entry.may_retry:
        why = "a part of its stream was already sent" if entry.sent_parts else "it may not be retried"
        return errors.WorkerLost(f"{worker.replica} {cause.text}, and {why}")
    last = entry.attempts >= max_attempts
    if cause.group and was_running:
        entry.group_strikes += entry.is_suspect
        if entry.group_strikes >= MAX_GROUP_STRIKES:
            return errors.Poisoned(
                f"each time this input ran alone, its group fell ({worker.replica} {cause.text}); change it"
            )
        entry.is_suspect = True
        pool.one_lane = True
    if cause.counts and was_running:
        if entry.is_suspect and (cause.convicts or last):
            return errors.Poisoned(
                f"run alone, this input took {worker.replica} along ({cause.text}), as it had one before; change it"
            )
        entry.is_suspect = True
    if last and cause.counts:
        return errors.WorkerLost(f"{worker.replica} {cause.text}; that was attempt {entry.attempts}, the last")
    return None
