"""Whose turn to load it is."""

from __future__ import annotations

from orch.planning.sizes import GIB
from orch.supervising.turns import MAX_RELOADS, Turn, Turns, turns

ROOMY = {"GPU-a": 100 * GIB, "GPU-b": 100 * GIB}


def new(number: int, device: str = "GPU-a", cost: int | None = 10 * GIB) -> Turn:
    """A replica that has never served."""
    return Turn(f"r{number}", device, cost)


def back(number: int, device: str = "GPU-a") -> Turn:
    """One that has."""
    return Turn(f"r{number}", device, 10 * GIB, served=True)


def test_new_replicas_load_one_after_another() -> None:
    """The next when nobody loads any more."""
    assert turns([new(1), new(2)], [], ROOMY.get, parallelism=1) == Turns(("r1",), ())
    assert turns([new(2)], [new(1)], ROOMY.get, parallelism=1) == Turns((), ())
    assert turns([new(2)], [], ROOMY.get, parallelism=1) == Turns(("r2",), ())


def test_several_load_together_where_asked_for() -> None:
    """As many as that, those that load already included."""
    waiting = [new(number) for number in range(1, 8)]
    assert turns(waiting, [], ROOMY.get, parallelism=4).start == ("r1", "r2", "r3", "r4")
    assert turns(waiting[3:], [new(1), new(2), new(3)], ROOMY.get, parallelism=4).start == ("r4",)


def test_the_first_of_a_kind_loads_alone() -> None:
    """What it costs is what the device loses meanwhile."""
    assert turns([new(0, cost=None), new(1, cost=None)], [], ROOMY.get, parallelism=4).start == ("r0",)
    assert turns([new(1, "GPU-b", cost=None)], [new(0)], ROOMY.get, parallelism=4).start == ()
    assert turns([new(1)], [new(0, "GPU-b", cost=None)], ROOMY.get, parallelism=4).start == ()


def test_a_group_that_fell_comes_back_together() -> None:
    """Its members have shown that they fit."""
    group = [back(number) for number in range(12)]
    roomy = {"GPU-a": 500 * GIB}
    assert len(turns(group, [], roomy.get, parallelism=1).start) == MAX_RELOADS
    assert turns([back(1)], [new(2)], ROOMY.get, parallelism=1).start == ("r1",)
    assert turns([new(2)], [back(1)], ROOMY.get, parallelism=1).start == ()


def test_nobody_starts_where_it_would_not_fit() -> None:
    """Those that load there have not taken all of theirs yet."""
    free = {"GPU-a": 25 * GIB, "GPU-b": 5 * GIB}
    waiting = [new(1), new(2), new(3), new(4, "GPU-b")]
    assert turns(waiting, [], free.get, parallelism=8) == Turns(("r1", "r2"), ("r3", "r4"))
    assert turns([new(3)], [new(1), new(2)], free.get, parallelism=8) == Turns((), ("r3",))
    nine = {"GPU-a": 9 * GIB}
    assert turns([back(3)], [], nine.get, parallelism=1) == Turns((), ("r3",))


def test_a_device_that_tells_nothing_holds_nobody_up() -> None:
    """The CPU, and cards without a figure."""
    untold: dict[str, int | None] = {}
    assert turns([new(1, "cpu", 0), new(2, "cpu", 0)], [], untold.get, parallelism=2).start == ("r1", "r2")
