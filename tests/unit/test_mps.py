"""Whether MPS can be used, and what makes a worker its client."""

from __future__ import annotations

import dataclasses

import pytest

from orch.planning.cards import Gpu, parse_card
from orch.supervising import mps

H200 = dataclasses.replace(parse_card("h200"), compute_mode="DEFAULT", compute_capability=(9, 0))


def found(binary: str) -> str:
    """Every binary is there."""
    return f"/usr/bin/{binary}"


def test_a_card_of_today_can_be_shared() -> None:
    """Binaries, the default compute mode, Volta or newer."""
    assert mps.why_not([H200], which=found) is None


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (dataclasses.replace(H200, compute_mode="PROHIBITED"), "compute mode PROHIBITED"),
        (dataclasses.replace(H200, compute_capability=(6, 1)), "older than Volta"),
        (dataclasses.replace(H200, mig=True), "MIG"),
    ],
)
def test_a_card_that_cannot_be_shared_says_why(card: Gpu, reason: str) -> None:
    """The reason is what the status and the warning show."""
    assert reason in (mps.why_not([H200, card], which=found) or "")


def test_a_driver_that_says_nothing_of_modes_is_given_the_benefit() -> None:
    """Attachment is proven later, worker by worker."""
    quiet = dataclasses.replace(H200, compute_mode=None, compute_capability=None)
    assert mps.why_not([quiet], which=found) is None


def test_missing_binaries_are_named() -> None:
    """What to install, or to put on PATH."""
    assert "nvidia-cuda-mps-control and nvidia-cuda-mps-server" in (mps.why_not([H200], which=lambda _: None) or "")


def test_the_daemons_lists_are_numbers_one_a_line() -> None:
    """An empty list is no server, or no client, yet."""
    assert mps.numbers("1234\n5678\n") == [1234, 5678]
    assert mps.numbers("\n") == []
