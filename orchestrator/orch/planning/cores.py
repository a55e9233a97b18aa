"""Which cores each replica of a plan is pinned to: disjoint sets, near its GPU, as equal as the machine allows.

Replicas that share cores wait for each other's host work, which is what leaves a GPU idle between kernels; a replica
on cores of the far socket pays for every copy. Pure: core numbers in, core numbers out.

The sets are planned for the whole plan at once, started or not: replica i of n has slot i of n. So the same plan
always gives the same sets, a replica that starts later or takes the place of a dead one moves nobody, and only another
plan (another n, other places) has other sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Cores = frozenset[int]


def share_cores(
    available: Sequence[int], near: Mapping[str, Sequence[int]], replicas: Sequence[tuple[str, str]]
) -> Mapping[str, tuple[int, ...]] | None:
    """The cores of each replica by its id; None where there are fewer cores than replicas, and nothing is pinned.

    available: the numbers of the cores that may be used.
    near: for a GPU's UUID the cores near it. One without any here, and "cpu", is as near to each as to any other.
    replicas: id and GPU of every replica of the plan, in the order of their slots.

    Nearness goes before size: the replicas of one GPU share the cores near it, evenly to within one core, and leave
    the others alone. Only where a GPU has more replicas than cores near it do the last of them go further away.
    """
    everywhere = frozenset(available)
    if len(everywhere) < len(replicas):
        return None
    wanted = [frozenset(near.get(device, ())) & everywhere or everywhere for _id, device in replicas]
    sizes = _sizes(wanted, everywhere)
    sets = _hand_out(wanted, sizes, everywhere)
    return {replica_id: cores for (replica_id, _device), cores in zip(replicas, sets, strict=True)}


def _sizes(wanted: list[Cores], everywhere: Cores) -> list[int]:
    """How many cores each slot gets: one more for each in turn, until nobody's places hold another.

    A slot that does not get its first core among those it wants, wants any from then on: `wanted` is changed.
    """
    # Near sets are memory nodes, which nest or are disjoint: then all fits if no set owes more cores than it has.
    owed = dict.fromkeys((*wanted, everywhere), 0)
    around = {inner: [outer for outer in owed if inner <= outer] for inner in owed}
    sizes = [0] * len(wanted)

    def grow(slot: int) -> bool:
        sets = around[wanted[slot]]
        if any(owed[each] >= len(each) for each in sets):
            return False
        for each in sets:
            owed[each] += 1
        sizes[slot] += 1
        return True

    for slot in range(len(wanted)):
        if not grow(slot):
            wanted[slot] = everywhere
            grow(slot)  # which has room: there are at least as many cores as slots
    growing = list(range(len(wanted)))
    while growing:
        growing = [slot for slot in growing if grow(slot)]
    return sizes


def _hand_out(wanted: list[Cores], sizes: list[int], everywhere: Cores) -> list[tuple[int, ...]]:
    """Runs of neighbouring numbers, which share caches; the slots with the least choice choose first."""
    left = set(everywhere)
    chosen: list[tuple[int, ...]] = [()] * len(wanted)
    for slot in sorted(range(len(wanted)), key=lambda slot: (len(wanted[slot]), slot)):
        # Near ones first. They are enough unless near sets overlap without one holding the other.
        by_choice = sorted(left, key=lambda core: (core not in wanted[slot], core))
        chosen[slot] = tuple(sorted(by_choice[: sizes[slot]]))
        left.difference_update(chosen[slot])
    return chosen
