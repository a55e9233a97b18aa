"""Which replicas exist: histories of replicas that become READY, grow, run out of memory, or find no room."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orch.config import Config
from orch.errors import ConfigError, DoesNotFit, OrchError
from orch.planning.cards import Gpu, GpuProcess
from orch.planning.footprint import Footprint, How
from orch.planning.planner import Limit
from orch.planning.sizes import GIB
from orch.supervising.events import Event
from orch.supervising.plans import Plans
from orch.supervising.replica import Death, Replica, State
from orch.supervising.roster import Roster

TOTAL = 32 * GIB  # of which 0.90 may be planned: 28.8 GiB


class Fleet:
    """Replicas without processes: their machines are real, and what the fleet knows of them is told by the history."""

    def __init__(self) -> None:
        self.replicas: dict[str, Replica] = {}
        self.running: dict[str, Any] = {}
        self.footprints: dict[str, Footprint] = {}
        self.weights: dict[str, float] = {}
        self.launcher = SimpleNamespace(threads=1, cores={})
        self.starting_allowed = True
        self.batch_s: dict[str, float] = {}

    def add(self, device: str) -> Replica:
        """Under the lowest free number."""
        slot = next(i for i in range(len(self.replicas) + 1) if f"r{i}" not in self.replicas)
        replica = self.replicas[f"r{slot}"] = Replica(f"r{slot}", slot, device, 600.0, 30.0)
        return replica

    def stop(self, replica: Replica, *, comes_back: bool) -> None:
        """One without a process is gone at once, and so, here, is one with."""
        replica.stop(0.0, comes_back=comes_back)
        if replica.state is State.DRAINING:
            replica.died(Death(0), 0.0, is_last=False, jitter=0.0)
        if replica.state is State.STOPPED:
            del self.replicas[replica.id]
            self.footprints.pop(replica.id, None)

    def staying(self) -> list[Replica]:
        """All that are to serve."""
        return [replica for replica in self.replicas.values() if replica.comes_back]

    def in_state(self, *states: State) -> list[Replica]:
        """Those in one of these states."""
        return [replica for replica in self.replicas.values() if replica.state in states]

    def served(self, replica: Replica) -> bool:
        """Whether it was READY before."""
        return replica.id in self.footprints

    def footprint(self, replica_id: str) -> Footprint | None:
        """What was measured."""
        found = self.footprints[replica_id]
        return found if found.device_bytes else None

    def unfenced(self) -> list[str]:
        """There is no MPS here."""
        return []

    def pin(self, cores: object) -> None:
        """No processes, no cores."""

    def speeds(self) -> dict[str, list[float]]:
        """Rows a second by device."""
        found: dict[str, list[float]] = {}
        for replica in self.in_state(State.READY):
            if batch_s := self.batch_s.get(replica.device):
                found.setdefault(replica.device, []).append(1 / batch_s)
        return found

    @property
    def pids(self) -> dict[str, frozenset[int]]:
        """Process 1000 is r0."""
        found: dict[str, set[int]] = {}
        for replica in self.in_state(State.LOADING, State.READY):
            found.setdefault(replica.device, set()).add(1000 + replica.slot)
        return {device: frozenset(pids) for device, pids in found.items()}


class Search:
    """What the roster tells a search, written down."""

    def __init__(self) -> None:
        self.most = 1
        self.told: list[Any] = []

    def settled(self, count: int, max_batch_size: int, batch_s: float) -> None:
        """So many run."""
        self.told.append(count)

    def cannot(self, why: str) -> None:
        """That count cannot be had."""
        self.told.append(why)

    def disturbed(self, why: str) -> None:
        """Void."""

    def tick(self, now: float) -> None:
        """No clock."""

    def close(self) -> None:
        """Over."""


@dataclass
class House:
    """A roster, its surroundings, and what it told its supervisor. cards: memory used by others, by UUID."""

    config: Config
    file: Path
    names: dict[str, str] = field(default_factory=lambda: {"GPU-a": "card A"})
    others: Counter[str] = field(default_factory=Counter)
    needs: dict[str, int] = field(default_factory=lambda: {"GPU-a": 10 * GIB})
    events: list[Event] = field(default_factory=list)
    errors: list[OrchError] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    locked: bool = False

    def __post_init__(self) -> None:
        self.fleet: Any = Fleet()
        self.search = Search()
        self.plans = Plans(self.config, self.read, self.file)
        self.roster = Roster(self.config, self.plans, self.fleet, self, self, lambda _: self.search)  # type: ignore[arg-type,return-value]
        self.roster.tick(0.0)

    def read(self, _config: Config) -> tuple[Gpu, ...]:
        """The cards as they are now."""
        found = []
        for index, (uuid, name) in enumerate(self.names.items()):
            ours = [
                GpuProcess(1000 + each.slot, self.needs[uuid])
                for each in (self.fleet.in_state(State.READY) if hasattr(self, "fleet") else [])
                if each.device == uuid
            ]
            used = self.others[uuid] + sum(each.used_bytes or 0 for each in ours)
            found.append(Gpu(index, uuid, name, "", TOTAL, TOTAL - used, 0, used, processes=tuple(ours)))
        return tuple(found)

    # --- locks, and what a supervisor is told

    def acquire(self) -> bool:
        """Nobody else wants it."""
        self.locked = True
        return True

    def release(self) -> None:
        """The next instance may plan."""
        self.locked = False

    def report(self, event: Event) -> None:
        """For people."""
        self.events.append(event)

    def printed(self, name: str, line: str) -> None:
        """Nothing prints here."""

    def failed(self, error: OrchError) -> None:
        """It cannot start."""
        self.errors.append(error)

    def changed(self) -> None:
        """The balancer would be told."""

    def all_served(self, num_ready: int) -> None:
        """Every replica has had its turn."""
        self.served.append(num_ready)

    # --- what happens

    def ready(self, *replica_ids: str, measured: int | None = None) -> None:
        """They load, and are measured at what their card says, or at this."""
        for replica_id in replica_ids:
            replica = self.fleet.replicas[replica_id]
            replica.start(0.0)
            replica.ready(0.0)
            num_bytes = self.needs[replica.device] if measured is None else measured
            self.fleet.footprints[replica_id] = Footprint(num_bytes, GIB, How.PROCESS)
            self.fleet.running[replica_id] = SimpleNamespace(max_batch_size=1, batch_s=0.01)
            self.roster.became_ready(replica)
            self.turn()

    def runs_out(self, replica_id: str, cost: Footprint | None = None) -> None:
        """It dies loading, for want of memory; after the second time it is quarantined."""
        replica = self.fleet.replicas[replica_id]
        replica.start(0.0)
        replica.died(Death(5), 0.0, is_last=False, jitter=0.0)
        self.roster.lost(replica)
        self.roster.ran_out(replica, cost)
        self.turn()

    def no_room(self, replica_id: str) -> None:
        """It has waited for memory in vain."""
        self.roster.no_room(self.fleet.replicas[replica_id], 3 * GIB)
        self.turn()

    def turn(self) -> None:
        """The supervisor's loop goes round."""
        self.roster.tick(0.0)
        self.roster.check()
        self.roster.tick(0.0)
        ready = self.fleet.in_state(State.READY)
        if ready and len(ready) == len(self.fleet.replicas) and self.roster.search is None:
            assert self.roster.served, "all are READY, nothing is measured, and yet it is not served"
            assert not self.locked, "nobody else may start for ever"
            assert self.plans.plan.total == len(ready), self.plans.plan

    @property
    def ids(self) -> list[str]:
        """The replicas there are."""
        return sorted(self.fleet.replicas)

    def warned(self) -> list[str]:
        """What was told as a warning."""
        return [event.text for event in self.events if event.kind == "warning"]


@pytest.fixture
def build(tmp_path: Path) -> Any:
    """A house of these settings; two of them remember the same footprints."""

    def make(replicas: Any = "auto", **rest: Any) -> House:
        target = tmp_path / "m.py"
        target.write_text("")
        settings = {name: rest.pop(name) for name in ("vram_per_replica_bytes",) if name in rest}
        config = Config(target=f"{target}:M", replicas=replicas, **settings)
        return House(config, tmp_path / "footprints.json", **rest)

    return make


def test_replica_0_is_measured_and_the_others_follow(build: Any) -> None:
    """28.8 GiB hold two of 10 GiB; when both are READY it is served, and the next instance may plan."""
    house = build()
    assert (house.ids, house.locked) == (["r0"], True)
    house.ready("r0")
    assert (house.ids, house.served) == (["r0", "r1"], [])
    house.ready("r1")
    assert house.served == [2]


@pytest.mark.parametrize("replicas", ["auto", 2])
def test_the_second_start_waits_for_all_of_them_too(build: Any, replicas: Any) -> None:
    """What is remembered makes the plan known from the beginning; it is served when all are READY, not at the first."""
    build().ready("r0")
    house = build(replicas)
    assert house.plans.plan.total == 2
    house.ready("r0")
    assert (house.ids, house.served, house.locked) == (["r0", "r1"], [], True)
    house.ready("r1")
    assert house.served == [2]


@pytest.mark.parametrize("declared", [{}, {"vram_per_replica_bytes": 10 * GIB}])
def test_a_search_begins_whether_or_not_the_cost_was_known(build: Any, declared: Any) -> None:
    """It is told what runs until it is over; then the kept ones are served."""
    build().ready("r0")
    house = build("best", **declared)
    house.ready("r0")
    assert (house.search.told[-1:], house.search.most, house.served) == ([1], 2, [])
    house.roster.wants(2)
    house.ready("r1")
    assert house.search.told[-1] == 2
    house.roster.found(1, ("one is enough",))
    house.turn()
    assert (house.ids, house.served, house.plans.plan.limit) == (["r0"], [1], Limit.GAIN)


def test_a_search_on_unequal_cards_probes_each_kind_and_begins_with_one(build: Any) -> None:
    """Two probes, not a full card; then the search adds."""
    house = build("best", names={"GPU-a": "A", "GPU-b": "B"}, needs={"GPU-a": 10 * GIB, "GPU-b": 5 * GIB})
    house.ready("r0")
    assert [each.device for each in house.fleet.replicas.values()] == ["GPU-a", "GPU-b"]
    house.ready("r1")
    assert (house.ids, house.search.most, house.search.told[-1:]) == (["r0"], 7, [1])


def test_unequal_cards_are_filled_kind_by_kind_and_weighted(build: Any) -> None:
    """Each by what it costs there; the slower card counts for less."""
    house = build(names={"GPU-a": "A", "GPU-b": "B"}, needs={"GPU-a": 10 * GIB, "GPU-b": 14 * GIB})
    house.fleet.batch_s = {"GPU-a": 0.01, "GPU-b": 0.02}
    house.ready("r0")
    assert Counter(each.device for each in house.fleet.replicas.values()) == {"GPU-a": 2, "GPU-b": 1}
    house.ready("r1", "r2")
    assert Counter(each.device for each in house.fleet.replicas.values()) == {"GPU-a": 2, "GPU-b": 2}
    house.ready("r3")
    assert (house.served, house.fleet.weights) == ([4], {"GPU-a": 1.0, "GPU-b": 0.5})


def test_a_model_that_holds_nothing_on_the_gpu_is_served_alone(build: Any) -> None:
    """Nobody can say how many fit; the way out is named, and no other instance waits for ever."""
    house = build()
    house.ready("r0", measured=0)
    assert (house.ids, house.served) == (["r0"], [1])
    assert "--vram-per-replica" in house.warned()[0]


def test_a_count_that_the_second_kind_cannot_hold_keeps_what_runs(build: Any) -> None:
    """Refused at the start is one thing; taken down while it serves another."""
    house = build(8, names={"GPU-a": "A", "GPU-b": "B"}, needs={"GPU-a": 10 * GIB, "GPU-b": 14 * GIB})
    house.ready("r0", "r1", "r2", "r3")
    assert (house.errors, house.served, house.plans.plan.total) == ([], [4], 4)
    assert any("8 replicas do not fit" in text for text in house.warned())


def test_no_room_for_replica_0_is_an_error(build: Any) -> None:
    """Somebody took the memory between the plan and the start: it says so and ends."""
    build().ready("r0")
    house = build()
    house.no_room("r0")
    assert isinstance(house.errors[0], DoesNotFit)
    assert "3.0 GiB free" in str(house.errors[0])


def test_a_tenant_that_comes_meanwhile_shrinks_the_plan(build: Any) -> None:
    """The replica that finds no room is left out; what runs is served."""
    house = build(needs={"GPU-a": 7 * GIB})
    house.ready("r0", "r1")
    assert house.ids == ["r0", "r1", "r2", "r3"]
    house.others["GPU-a"] = 14 * GIB
    house.no_room("r2")
    assert (house.ids, house.served) == (["r0", "r1"], [2])


def test_a_new_replica_without_room_goes_though_the_sum_says_otherwise(build: Any) -> None:
    """The declared cost was too small: the sum cannot know."""
    house = build(vram_per_replica_bytes=9 * GIB)
    house.ready("r0", "r1")
    house.no_room("r2")
    assert (house.ids, house.served) == (["r0", "r1"], [2])


def test_a_replica_that_has_served_waits_for_room(build: Any) -> None:
    """And says so once."""
    house = build()
    house.ready("r0", "r1")
    house.fleet.replicas["r1"].died(Death(1), 0.0, is_last=False, jitter=0.0)
    house.no_room("r1")
    house.no_room("r1")
    assert house.ids == ["r0", "r1"]
    assert len([text for text in house.warned() if "it waits" in text]) == 1


def test_the_replica_that_ran_out_of_memory_is_the_one_that_goes(build: Any) -> None:
    """Not an innocent younger one."""
    house = build(4, needs={"GPU-a": 7 * GIB})
    house.ready("r0")
    house.runs_out("r1")
    house.ready("r2")
    house.runs_out("r1")
    assert house.ids == ["r0", "r2", "r3"]
    house.ready("r3")
    assert (house.served, house.plans.plan.total) == ([3], 3)


def test_a_larger_cost_shrinks_what_has_not_run(build: Any) -> None:
    """What was seen at the death of one is planned with from then on, until a replica shows what it really costs."""
    house = build(4, needs={"GPU-a": 7 * GIB})
    house.ready("r0")
    house.runs_out("r1", Footprint(12 * GIB, GIB, How.OUT_OF_MEMORY))
    assert house.ids == ["r0", "r2"]
    house.ready("r2")
    assert house.plans.costs["card A"].device_bytes == 7 * GIB
    assert house.served == [2]


def test_a_larger_replica_keeps_what_runs(build: Any) -> None:
    """Two fit by the new sum, and three run: none is killed, and the plan says three."""
    house = build(3, needs={"GPU-a": 7 * GIB})
    house.ready("r0", "r1")
    house.needs["GPU-a"] = 12 * GIB
    house.ready("r2")
    assert (house.ids, house.served, house.plans.plan.total) == (["r0", "r1", "r2"], [3], 3)


@pytest.mark.parametrize("how", ["no room", "out of memory", "quarantined"])
def test_a_count_that_cannot_be_had_ends_the_search(build: Any, how: str) -> None:
    """It is told why, and the replica is not waited for."""
    house = build("best")
    house.ready("r0")
    house.roster.wants(2)
    if how == "no room":
        house.no_room("r1")
    elif how == "out of memory":
        house.runs_out("r1")
    else:
        replica = house.fleet.replicas["r1"]
        while replica.state is not State.QUARANTINED:
            replica.start(0.0)
            replica.died(Death(4), 0.0, is_last=False, jitter=0.0)
        house.turn()
    assert any("r1" in str(told) for told in house.search.told)
    house.roster.found(1, ())
    house.turn()
    assert (house.ids, house.served, house.plans.plan.limit) == (["r0"], [1], Limit.MEMORY)


def test_scaling_down_needs_no_room(build: Any) -> None:
    """A tenant has come, and the user gives it space."""
    house = build(needs={"GPU-a": 7 * GIB})
    house.ready("r0", "r1", "r2", "r3")
    house.others["GPU-a"] = 25 * GIB
    assert house.roster.scale(2) == 4
    house.turn()
    assert (house.ids, house.plans.plan.limit) == (["r0", "r1"], Limit.ASKED)


def test_scaling_up_is_served_when_the_new_ones_are(build: Any) -> None:
    """And refused where they do not fit, with nothing changed."""
    house = build(1, needs={"GPU-a": 7 * GIB})
    house.ready("r0")
    house.roster.scale(2)
    assert (house.ids, house.roster.settled, house.locked) == (["r0", "r1"], False, True)
    house.ready("r1")
    assert (house.served, house.locked) == ([1, 2], False)
    with pytest.raises(DoesNotFit):
        house.roster.scale(9)
    house.turn()
    assert (house.ids, house.roster.settled) == (["r0", "r1"], True)


def test_a_model_without_samples_cannot_be_searched(build: Any) -> None:
    """The error is the instance's."""
    house = build("best")
    house.ready("r0")
    house.roster.unsearchable(ConfigError("no samples"))
    assert [str(error) for error in house.errors] == ["no samples"]
