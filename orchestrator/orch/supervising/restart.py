"""When a dead replica is started again, or that it is not: a pure policy."""

from __future__ import annotations

from collections.abc import Mapping

from orch.errors import Exit

BASE_S = 0.5
CAP_S = 30.0
# The last replica of a model is all that its users have: it is never given up, and tried at least this often.
LAST_CAP_S = 5.0
# Deaths in a row, none of them healthy in between, after which a replica flaps.
MAX_FLAPS = 5
# A replica that was READY this long, or has answered something, was healthy: its death starts a new count.
HEALTHY_S = 10.0

# Exit codes that another try would only repeat, and after how many deaths in a row that is believed.
GIVE_UP_AFTER: Mapping[int, int] = {Exit.BAD_CONFIG: 1, Exit.MODEL_LOAD: 2, Exit.OUT_OF_MEMORY: 2}


def delay_s(flaps: int, exit_code: int, *, is_last: bool, jitter: float) -> float | None:
    """Seconds until the next start, or None: quarantine it.

    flaps: deaths in a row, this one included, since the replica was last healthy; 0: it was healthy when it died.
    jitter: 0 to 1, random; replicas that died together do not come back together.
    """
    if flaps == 0:
        return 0.0
    give_up = flaps >= GIVE_UP_AFTER.get(exit_code, MAX_FLAPS)
    if give_up and not is_last:
        return None
    wait_s = BASE_S * 2.0 ** min(flaps - 1, 16) * (1 + jitter / 2)
    return float(min(wait_s, LAST_CAP_S if is_last else CAP_S))
