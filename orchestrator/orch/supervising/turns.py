"""Which of the replicas that wait may start loading now: a pure decision.

A new replica loads when the one before it is READY and free memory was read again; `--load-parallelism` lets more of
them load together. Those that have served before load together anyway: their places were planned and are known to
hold them, and after a fault that took a whole group along one after another would only take longer. No replica starts
on a GPU whose free memory does not hold it beside those that load there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Replicas that have served before and load at the same time: more only wait for the same disk and cores.
MAX_RELOADS = 8


@dataclass(frozen=True, slots=True)
class Turn:
    """A replica that waits to load, or loads.

    cost_bytes: of its device, 0 on the CPU; None: not measured yet. served: it was READY before.
    """

    replica: str
    device: str
    cost_bytes: int | None
    served: bool = False


@dataclass(frozen=True, slots=True)
class Turns:
    """Who may start, and who of the others waits for memory only."""

    start: tuple[str, ...]
    short: tuple[str, ...]


def turns(
    waiting: Sequence[Turn], loading: Sequence[Turn], free_bytes: Callable[[str], int | None], *, parallelism: int
) -> Turns:
    """Decide for all that wait, in their order. free_bytes: of a device, read now; None: not told, or the CPU.

    A replica whose cost nobody knows loads alone: what it costs is what the device loses meanwhile.
    """
    loading = list(loading)
    start: list[str] = []
    short: list[str] = []
    for each in waiting:
        limit = max(parallelism, MAX_RELOADS) if each.served else parallelism
        probing = any(other.cost_bytes is None for other in (*loading, each))
        if len(loading) >= (1 if probing else limit):
            continue
        free = free_bytes(each.device)
        taken = sum(other.cost_bytes or 0 for other in loading if other.device == each.device)
        if free is not None and free - taken < (each.cost_bytes or 0):
            short.append(each.replica)
            continue
        start.append(each.replica)
        loading.append(each)
    return Turns(tuple(start), tuple(short))
