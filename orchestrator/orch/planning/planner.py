"""How many replicas, and on which GPUs: one sum, each part of it shown.

On GPUs (architecture, part 7.3), for each card

    room  = min(total x utilization, total - reserved - what others use - 256 MiB)
    count = min(floor(room / footprint), the clients that an MPS server takes)

and over all cards no more than the host's memory holds. Without a GPU (part 7.5) no more than memory and cores allow.
Replica 0 is the probe: while nobody knows the footprint, the plan is that one. It is the probe of one kind of card:
each other kind, which it says nothing of, gets one replica more before it is filled.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from orch.errors import ConfigError, DoesNotFit
from orch.planning.cards import Gpu, utilization_for
from orch.planning.footprint import MIN_DEVICE_BYTES, Footprint
from orch.planning.sizes import MIB, format_size

# Left free on every card for what grows late: lazily loaded kernels, library workspaces, a neighbour's context.
HEADROOM_BYTES = 256 * MIB
# The share of the host's memory that replicas may have; the rest is the balancer, page cache and everyone else.
HOST_SHARE = 0.8
# Up to this many cores each has a replica; above, a replica gets four, which is where torch's CPU kernels still scale.
FEW_CORES = 4
CORES_PER_REPLICA = 4
# More processes than this on one core only take turns: beyond it an explicit count is a slip, and is refused.
MAX_REPLICAS_PER_CORE = 16

# What to change when a limit is in the way.
GPU_KNOB = "lower --replicas, --vram-per-replica or --max-batch-size, raise gpu_utilization, or free memory on the GPU"
HOST_KNOB = "lower --replicas or --max-batch-size, or give the machine or container more memory"
CLIENTS_KNOB = "lower --replicas, or use more GPUs"
CORES_KNOB = "lower --replicas, or give the machine or container more cores"


@dataclass(frozen=True, slots=True)
class Host:
    """What the host lends to orch: memory it may use in all, memory free for use now, and whole cores."""

    memory_total_bytes: int
    memory_available_bytes: int
    cores: int


Wanted = int | Literal["auto", "best"]


class Limit(enum.StrEnum):
    """What keeps a plan from being larger."""

    MEMORY = "memory"  # the GPUs', or without a GPU the host's
    HOST_MEMORY = "host memory"
    CORES = "cores"
    CLIENTS = "clients"
    ASKED = "asked"
    GAIN = "gain"  # one more would not pay, as was measured
    PROBE = "probe"  # the footprint is not known yet, or not on every kind of card


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a plan is made from. Raises ConfigError for a count below 1 or a utilization outside 0 to 1.

    gpus: the devices to use, as read just now; empty plans for the CPU.
    footprint: what a replica costs on every kind of card, and on the CPU; None where that is measured.
    measured: what a replica was found to cost, by the name of the card.
    wanted: a count; "auto" for as many as fit; "best" for as many as could be tried: on the CPU, where cores limit what
    usually pays and not what fits, that is more.
    gpu_utilization: the share of each card to plan with; None: by the card.
    max_clients_per_gpu: how many replicas one MPS server takes; None where there is no MPS server.
    ours_bytes: by GPU UUID, what our own replicas hold there already (see `held_by_us`); the rest is others'.
    """

    host: Host
    gpus: tuple[Gpu, ...] = ()
    footprint: Footprint | None = None
    measured: Mapping[str, Footprint] = field(default_factory=dict)
    wanted: Wanted = "auto"
    gpu_utilization: float | None = None
    max_clients_per_gpu: int | None = None
    ours_bytes: Mapping[str, int] = field(default_factory=dict)

    def cost_on(self, gpu: Gpu) -> Footprint | None:
        """What a replica costs on that card; None: nobody knows yet."""
        return self.footprint or self.measured.get(gpu.name)

    def __post_init__(self) -> None:
        if isinstance(self.wanted, int) and self.wanted < 1:
            raise ConfigError(f"replicas: {self.wanted} cannot be planned; allowed: auto, or a whole number above 0")
        if self.gpu_utilization is not None and not 0 < self.gpu_utilization <= 1:
            raise ConfigError(f"gpu_utilization: {self.gpu_utilization} cannot be planned; allowed: 0 < x <= 1")


@dataclass(frozen=True, slots=True)
class Plan:
    """How many replicas are to exist and where, and the sum that says so.

    placement: (GPU UUID, replicas) for every GPU that gets any, the one with most room first; empty on the CPU.
    used_bytes: by GPU UUID, what is used there of the device once the plan is carried out: others, and our replicas.
    threads_per_replica: cores shared out evenly, at least one; for the probe, its share once the others are there.
    because: sentences for people, the last of which names the limit that binds.
    """

    total: int
    placement: tuple[tuple[str, int], ...]
    threads_per_replica: int
    limit: Limit
    because: tuple[str, ...]
    used_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Bound:
    """A limit, the replicas it allows over all GPUs, what raises it, and its sum."""

    limit: Limit
    count: int
    knob: str
    because: str = ""


@dataclass(frozen=True, slots=True)
class _Card:
    """One GPU's part of the sum: bytes of others and to plan with, what a replica costs there, how many it takes.

    known: that cost was declared or measured; where not, `count` is the most that it could be.
    """

    gpu: Gpu
    others_bytes: int
    room_bytes: int
    cost_bytes: int
    count: int
    by_clients: bool
    known: bool
    because: str


def plan(request: PlanRequest) -> Plan:
    """The replicas that should exist.

    Raises DoesNotFit, with the sum and what to change, if not one fits or not as many as were asked for.
    """
    return _plan_gpus(request) if request.gpus else _plan_cpu(request)


def held_by_us(gpu: Gpu, pids: frozenset[int], footprint_bytes: int) -> int:
    """Bytes that our worker processes hold on a GPU: what the driver says of each, else the footprint."""
    told = {process.pid: process.used_bytes for process in gpu.processes}
    return sum(told.get(pid) or footprint_bytes for pid in pids)


def pick_gpu(planned: Mapping[str, int], running: Mapping[str, int], free_bytes: Mapping[str, int]) -> str | None:
    """The UUID of the GPU that the next replica goes to; None when every GPU has what is planned for it.

    Of those with fewer replicas running than planned, the one with most free bytes; of equals the one with the
    fewest running, then the first planned.
    """
    short = [uuid for uuid, count in planned.items() if running.get(uuid, 0) < count]
    return min(short, key=lambda uuid: (-free_bytes.get(uuid, 0), running.get(uuid, 0)), default=None)


def _plan_gpus(request: PlanRequest) -> Plan:
    host = request.host
    cards = [_on_card(request, gpu) for gpu in request.gpus]
    cards.sort(key=lambda card: -card.room_bytes)  # stable: of equals the first on the bus
    costs = {card.gpu.name: request.cost_on(card.gpu) for card in cards}
    if len(set(costs.values())) == 1:
        costs = {"": next(iter(costs.values()))}
    because = []
    for name, footprint in costs.items():
        because.append(_cost(footprint, f"on {name} " if name else ""))
        if footprint is not None and footprint.device_bytes < MIN_DEVICE_BYTES:
            because.append(f"warning: that counts as {format_size(MIN_DEVICE_BYTES)}; is the model on the GPU at all?")
    because += [card.because for card in cards]
    on_cards = sum(card.count for card in cards)
    if any(card.by_clients for card in cards):
        bounds = [_Bound(Limit.CLIENTS, on_cards, CLIENTS_KNOB)]
    else:
        bounds = [_Bound(Limit.MEMORY, on_cards, GPU_KNOB)]
    host_bytes = max((each.host_bytes or 0 for each in costs.values() if each is not None), default=0)
    if host_bytes:
        bounds.append(_by_host_memory(Limit.HOST_MEMORY, host, host_bytes))
    because += [bound.because for bound in bounds if bound.because]
    sure = _sure(cards)
    total, limit = _settle(request, bounds, because, sure=None if all(card.known for card in cards) else sum(sure))
    threads = _threads(request, total, limit, likely=host.cores // CORES_PER_REPLICA)
    placement = _place(cards, sure, total)
    placed = dict(placement)
    used = {card.gpu.uuid: card.others_bytes + placed.get(card.gpu.uuid, 0) * card.cost_bytes for card in cards}
    return Plan(total, placement, threads, limit, tuple(because), used)


def _sure(cards: Sequence[_Card]) -> list[int]:
    """Replicas that each card takes for sure: of an unmeasured kind one, the probe, on the card with most room.

    While no kind is measured at all one probe is enough: what it costs refuses a model that fits nowhere.
    """
    if not any(card.known for card in cards):
        return [1, *(0 for _ in cards[1:])]
    probed: set[str] = set()
    counts = []
    for card in cards:
        counts.append(card.count if card.known else int(card.count > 0 and card.gpu.name not in probed))
        probed.add(card.gpu.name)
    return counts


def _plan_cpu(request: PlanRequest) -> Plan:
    host, footprint = request.host, request.footprint
    host_bytes = None if footprint is None else footprint.host_bytes
    bounds = [] if host_bytes is None else [_by_host_memory(Limit.MEMORY, host, host_bytes)]
    bounds.append(_by_cores(host, request.wanted))
    because = [_cost(footprint), *(bound.because for bound in bounds)]
    if footprint is not None and footprint.device_bytes:
        because.append("there is no GPU, so a replica's device memory is not counted")
    if isinstance(request.wanted, int) and request.wanted > host.cores:
        because.append(f"warning: {request.wanted} replicas share {host.cores} cores, and will wait for each other")
    total, limit = _settle(request, bounds, because, sure=None if host_bytes is not None else 1)
    return Plan(total, (), _threads(request, total, limit, likely=bounds[-1].count), limit, tuple(because))


def _on_card(request: PlanRequest, gpu: Gpu) -> _Card:
    """The sum for one card, at the least cost that a replica can have while its footprint is not known."""
    ours = request.ours_bytes.get(gpu.uuid, 0)
    footprint = request.cost_on(gpu)
    cost = MIN_DEVICE_BYTES if footprint is None else max(MIN_DEVICE_BYTES, footprint.device_bytes)
    if gpu.total_bytes is None:
        # Device memory is the host's memory here: what a replica holds on either side comes out of the same total,
        # and filling it ends in the kernel's out-of-memory killer, not in an error from the driver.
        total, share = request.host.memory_total_bytes, HOST_SHARE
        others = max(0, total - request.host.memory_available_bytes - ours)
        cost += 0 if footprint is None else footprint.host_bytes or 0
    else:
        total, share = gpu.total_bytes, utilization_for(gpu.name, gpu.total_bytes)
        others = max(0, gpu.used_bytes - ours)
    share = request.gpu_utilization or share
    planned = math.floor(total * share)
    empty = total - gpu.reserved_bytes - others - HEADROOM_BYTES
    room = min(planned, empty)
    count = max(0, room // cost)
    sentence = (
        f"gpu {gpu.index} ({gpu.name}): the smaller of {format_size(total)} x {share:g} = {format_size(planned)}"
        f" and {format_size(total)} - {format_size(gpu.reserved_bytes)} reserved - {format_size(others)} of others"
        f" - {format_size(HEADROOM_BYTES)} headroom = {format_size(empty)};"
        f" {format_size(room)} / {format_size(cost)} = {_quotient(room, cost)}, so {count}"
    )
    clients = request.max_clients_per_gpu
    by_clients = clients is not None and clients < count
    if clients is not None and by_clients:
        count, sentence = clients, f"{sentence}, and an MPS server takes {clients}"
    return _Card(gpu, others, room, cost, count, by_clients, footprint is not None, sentence)


def _by_host_memory(limit: Limit, host: Host, host_bytes: int) -> _Bound:
    allowed = math.floor(host.memory_total_bytes * HOST_SHARE)
    cost = max(1, host_bytes)
    count = allowed // cost
    return _Bound(
        limit,
        count,
        HOST_KNOB,
        f"host memory: {format_size(host.memory_total_bytes)} x {HOST_SHARE:g} = {format_size(allowed)};"
        f" {format_size(allowed)} / {format_size(cost)} = {_quotient(allowed, cost)}, so {count}",
    )


def _by_cores(host: Host, wanted: Wanted) -> _Bound:
    """Without a GPU: what pays if orch chooses, what is still sane if the user does."""
    if wanted != "auto":
        count = host.cores * MAX_REPLICAS_PER_CORE
        share = f"at most {MAX_REPLICAS_PER_CORE} replicas on each"
    elif host.cores <= FEW_CORES:
        count = host.cores
        share = "one for each replica"
    else:
        count = max(FEW_CORES, host.cores // CORES_PER_REPLICA)
        share = f"{CORES_PER_REPLICA} for each replica but at least {FEW_CORES} replicas"
    return _Bound(Limit.CORES, count, CORES_KNOB, f"cores: {host.cores}, {share}, so {count}")


def _settle(request: PlanRequest, bounds: list[_Bound], because: list[str], *, sure: int | None) -> tuple[int, Limit]:
    """The count and the limit that binds, whose sentence is added to `because`; or DoesNotFit.

    sure: replicas that fit whatever is measured next; None: everything is known.
    """
    tightest = min(bounds, key=lambda bound: bound.count)  # of equals the first
    fits = tightest.count
    asked = request.wanted if isinstance(request.wanted, int) else 1
    if asked > fits:
        what = "not one replica fits" if fits < 1 else f"{asked} replicas do not fit, {fits} would"
        raise DoesNotFit(f"{what} (limit: {tightest.limit}): {'; '.join(because)}. To change it: {tightest.knob}")
    if sure is not None and (not isinstance(request.wanted, int) or asked > sure):
        count = min(sure, fits)
        because.append(f"{_replicas(count)} {'is' if count == 1 else 'are'} started and measured")
        return count, Limit.PROBE
    if not isinstance(request.wanted, int):
        because.append(f"the limit is {tightest.limit}: {_replicas(fits)}")
        return fits, tightest.limit
    because.append(f"asked for: {_replicas(asked)}, where {fits} would fit")
    return asked, Limit.ASKED


def _place(cards: list[_Card], counts: Sequence[int], total: int) -> tuple[tuple[str, int], ...]:
    """`total` replicas one by one, each to the card with most room left; no card more than its count."""
    planned = {card.gpu.uuid: count for card, count in zip(cards, counts, strict=True)}
    left = {card.gpu.uuid: card.room_bytes for card in cards}
    cost = {card.gpu.uuid: card.cost_bytes for card in cards}
    placed = dict.fromkeys(planned, 0)
    for _ in range(total):
        uuid = pick_gpu(planned, placed, left)
        if uuid is None:  # cannot be: no more is settled than the cards have in all
            break
        placed[uuid] += 1
        left[uuid] -= cost[uuid]
    return tuple((uuid, count) for uuid, count in placed.items() if count)


def _threads(request: PlanRequest, total: int, limit: Limit, *, likely: int) -> int:
    """The cores shared out evenly. Replica 0 stays, so as the probe it starts with its share among those to come."""
    if limit is Limit.PROBE:
        total = request.wanted if isinstance(request.wanted, int) else max(1, likely)
    return max(1, request.host.cores // total)


def _cost(footprint: Footprint | None, where: str = "") -> str:
    if footprint is None:
        return f"what a replica costs {where}is not known yet"
    parts = [f"{format_size(footprint.device_bytes)} of device memory"] if footprint.device_bytes else []
    parts += [f"{format_size(footprint.host_bytes)} of host memory"] if footprint.host_bytes else []
    return f"a replica costs {where}{' and '.join(parts) or 'no memory'} ({footprint.how})"


def _quotient(room: int, cost: int) -> str:
    """The quotient with two decimals, never rounded up to a whole: 2.999 must not read as 3.00, so 2."""
    return f"{min(max(0, room) / cost, max(0, room) // cost + 0.99):.2f}"


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"
