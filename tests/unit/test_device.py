"""How a worker follows its own growth on the device, and warms up until it ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from orch.model import Model
from orch.planning.sizes import GIB, MIB
from orch_worker.device import Meter, metered
from orch_worker.engine import MAX_WARMUP_BATCHES, WARMUP_BATCHES, Engine

CONTEXT = 612 * MIB


class Card:
    """A GPU as the driver and torch tell it: 16 GiB, one process of ours, perhaps neighbours."""

    def __init__(self, *, tells_process: bool = True, tells_free: bool = True, has_torch: bool = True) -> None:
        self.tells_process, self.tells_free, self.has_torch = tells_process, tells_free, has_torch
        self.has_context = False
        self.by_torch = self.by_others = self.by_neighbours = 0
        # What torch calls torch.cuda:
        self.is_available = lambda: True
        self.init = lambda: None
        self.is_initialized = lambda: self.has_context
        self.memory_reserved = lambda: self.by_torch

    def synchronize(self) -> None:
        """The call that makes the context."""
        self.has_context = True

    def process_bytes(self) -> int | None:
        """As the driver lists it."""
        return self._ours if self.tells_process and self._ours else None

    def free_bytes(self) -> int | None:
        """What is left."""
        return 16 * GIB - self._ours - self.by_neighbours if self.tells_free else None

    def torch(self) -> Any:
        """The module, once it is imported."""
        return SimpleNamespace(cuda=self) if self.has_torch else None

    def meter(self) -> Meter:
        """A worker's meter for it."""
        return Meter(self.process_bytes, self.free_bytes, self.torch)

    @property
    def _ours(self) -> int:
        return (CONTEXT if self.has_context else 0) + self.by_torch + self.by_others


def loaded_and_warm(card: Card, meter: Meter) -> dict[str, int]:
    """The facts of a worker whose model takes 2 GiB to load and 1 GiB to run, all of it torch's."""
    meter.before_load()
    card.has_context = True
    card.by_torch += 2 * GIB
    meter.after_load()
    card.by_torch += 1 * GIB
    meter.after_warmup()
    return meter.facts()


STAGES = {
    "context_bytes": CONTEXT,
    "loaded_bytes": CONTEXT + 2 * GIB,
    "torch_loaded_bytes": 2 * GIB,
    "warm_bytes": CONTEXT + 3 * GIB,
}


def test_the_stages_are_what_the_driver_counts_for_the_process() -> None:
    """Neighbours that come meanwhile change nothing."""
    card = Card()
    meter = card.meter()
    card.by_neighbours = 5 * GIB
    assert loaded_and_warm(card, meter) == STAGES


def test_where_the_driver_does_not_know_the_process_the_fall_of_free_memory_is_taken() -> None:
    """From what was free before the context was made."""
    card = Card(tells_process=False)
    card.by_neighbours = 5 * GIB
    assert loaded_and_warm(card, card.meter()) == STAGES


def test_a_process_listed_before_it_holds_anything_is_somebody_else() -> None:
    """In a container the driver may list the host's numbers, and ours among them by chance."""
    card = Card()
    meter = Meter(lambda: 9 * GIB, card.free_bytes, card.torch)
    assert loaded_and_warm(card, meter) == STAGES


def test_a_model_without_torch_has_its_context_made_by_nobody() -> None:
    """Only what it held when loaded and when warm is known."""
    card = Card(has_torch=False)
    facts = loaded_and_warm(card, card.meter())
    assert facts == {"loaded_bytes": CONTEXT + 2 * GIB, "warm_bytes": CONTEXT + 3 * GIB}


def test_a_torch_that_cannot_use_the_device_is_left_alone() -> None:
    """The model may use something else."""
    card = Card()
    card.is_available = lambda: False
    meter = card.meter()
    meter.before_load()
    assert not card.has_context
    assert meter.facts() == {}


def test_a_context_made_by_the_targets_import_is_not_measured() -> None:
    """It is there already, and perhaps weights with it."""
    card = Card()
    meter = card.meter()
    card.has_context = True
    card.by_torch = 1 * GIB
    meter.before_load()
    assert meter.facts() == {}


@pytest.mark.parametrize(("before", "after"), [(CONTEXT, 0), (0, 5 * GIB)])
def test_a_context_that_no_gpu_has_is_not_noted(before: int, after: int) -> None:
    """A neighbour gave memory back, or took some, while it was made."""
    card = Card(tells_process=False)
    card.by_neighbours = before
    meter = card.meter()
    card.by_neighbours = after
    meter.before_load()
    assert card.has_context
    assert meter.facts() == {}


def test_a_device_that_tells_nothing_leaves_the_stages_unknown() -> None:
    """Torch's own figure is still there."""
    card = Card(tells_process=False, tells_free=False)
    assert loaded_and_warm(card, card.meter()) == {"torch_loaded_bytes": 2 * GIB}


@pytest.mark.parametrize("visible", [None, "", "0", "GPU-a,GPU-b"])
def test_a_worker_without_one_gpu_by_its_uuid_measures_nothing(visible: str | None) -> None:
    """On the CPU above all: nothing wakes the driver."""
    with metered({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) as meter:
        meter.before_load()
        meter.after_load()
        meter.after_warmup()
    assert meter.held_bytes() is None
    assert meter.facts() == {}


def test_a_gpu_that_the_driver_does_not_know_is_no_obstacle() -> None:
    """The model says itself what is wrong, if anything is."""
    with metered({"CUDA_VISIBLE_DEVICES": "GPU-that-is-not-there"}) as meter:
        assert meter.held_bytes() is None


# --- warm-up


class Growing(Model):
    """Holds more after each batch, as it is told."""

    def __init__(self, *held: int) -> None:
        self._coming: Iterator[int] = iter(held)
        self.held = 0
        self.batches = 0

    def warmup(self) -> list[Any]:
        return [0]

    def predict(self, inputs: list[Any]) -> list[Any]:
        self.batches += 1
        self.held = next(self._coming, self.held)
        return inputs


@pytest.mark.parametrize(
    ("held", "batches"),
    [
        ((100,), 2),
        ((100, 101), 2),
        ((100, 150, 150), 3),
        ((100, 150, 152, 153), 4),
        ((100, 90), 2),
        ((100, 102, 104, 104), 4),
    ],
)
def test_warm_up_ends_when_a_batch_adds_no_more_than_one_percent(held: tuple[int, ...], batches: int) -> None:
    """At least two: the first has nothing to be compared with."""
    model = Growing(*(each * MIB for each in held))
    assert Engine(model, 4).warmup(lambda: model.held).batches == batches
    assert model.batches == batches


def test_warm_up_ends_though_the_model_never_stops_growing(caplog: pytest.LogCaptureFixture) -> None:
    """It leaks, and the log says so."""
    model = Growing(*(2**count * MIB for count in range(20)))
    with caplog.at_level(logging.WARNING):
        assert Engine(model, 4).warmup(lambda: model.held).batches == MAX_WARMUP_BATCHES
    assert "each still takes more" in caplog.text


def test_warm_up_without_a_figure_is_the_least_there_is() -> None:
    """On the CPU, where batches are slow."""
    model = Growing(*(2**count * MIB for count in range(20)))
    assert Engine(model, 4).warmup(lambda: None).batches == WARMUP_BATCHES


class Full(Growing):
    """Runs out of memory at the third batch."""

    def predict(self, inputs: list[Any]) -> list[Any]:
        if self.batches == 2:
            raise MemoryError
        return super().predict(inputs)


def test_running_out_of_memory_in_a_later_batch_is_not_hidden() -> None:
    """It is why warm-up goes on."""
    model = Full(1 * GIB, 2 * GIB, 3 * GIB)
    with pytest.raises(MemoryError):
        Engine(model, 4).warmup(lambda: model.held)
