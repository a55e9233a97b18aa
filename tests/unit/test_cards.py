"""The cards orch knows, and the share of each that it plans with."""

from __future__ import annotations

import pytest

from orch.errors import ConfigError
from orch.planning.cards import CARDS, parse_card, utilization_for
from orch.planning.sizes import GIB, MIB


@pytest.mark.parametrize(
    ("name", "total_mib", "share"),
    [
        ("NVIDIA GeForce GTX 1650", 4096, 0.85),
        ("NVIDIA GeForce RTX 4060", 8188, 0.85),
        ("NVIDIA GeForce RTX 3060", 12288, 0.85),
        ("NVIDIA GeForce RTX 4080", 16376, 0.88),
        ("Tesla T4", 15109, 0.88),
        ("NVIDIA RTX 4000 Ada Generation", 20475, 0.88),
        ("NVIDIA GeForce RTX 4090", 24564, 0.90),
        ("NVIDIA L4", 23034, 0.90),
        ("NVIDIA A10G", 22731, 0.90),
        ("Tesla V100-SXM2-32GB", 32768, 0.90),
        ("NVIDIA A100-SXM4-40GB", 40536, 0.92),
        ("NVIDIA L40S", 46068, 0.92),
        ("NVIDIA H200", 143771, 0.92),
        ("NVIDIA GeForce RTX 5090", 32607, 0.95),
        ("NVIDIA GeForce RTX 5090 D", 32607, 0.95),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", 24463, 0.90),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4864, 0.85),
    ],
)
def test_a_card_is_planned_with_the_share_of_its_class(name: str, total_mib: int, share: float) -> None:
    """Cards report a little less than they are sold as; one between two classes has the smaller one's share."""
    assert utilization_for(name, total_mib * MIB) == share


def test_every_known_card_is_found_under_its_own_name() -> None:
    """The table's slugs are what the command line takes."""
    for slug, card in CARDS.items():
        gpu = parse_card(slug)
        assert (gpu.name, gpu.total_bytes, gpu.free_bytes) == (card.name, card.total_bytes, card.total_bytes)
        assert 0.85 <= card.utilization <= 0.95


@pytest.mark.parametrize("text", ["rtx-4090", "RTX 4090", "rtx_4090", "NVIDIA GeForce RTX 4090", " rtx-4090 "])
def test_a_card_is_known_however_its_name_is_written(text: str) -> None:
    """What nvidia-smi prints can be pasted."""
    assert parse_card(text).total_bytes == 24564 * MIB


def test_a_card_that_is_not_known_can_be_planned_by_its_memory() -> None:
    """Any name does, with any size."""
    gpu = parse_card("mycard:24GiB")
    assert (gpu.name, gpu.total_bytes, gpu.used_bytes) == ("mycard", 24 * GIB, 0)


def test_two_planned_cards_of_one_kind_are_two_devices() -> None:
    """Their UUIDs differ, so each has its own count."""
    assert parse_card("l4", 0).uuid != parse_card("l4", 1).uuid


@pytest.mark.parametrize(
    ("text", "near"),
    [("rtx-4909", "rtx-4090"), ("h10", "h100"), ("a100", "a100-40, a100-80"), ("l40-s", "l40s"), ("", "near: ")],
)
def test_a_name_not_known_is_answered_with_the_nearest(text: str, near: str) -> None:
    """And with the form that takes any card."""
    with pytest.raises(ConfigError) as caught:
        parse_card(text)
    assert near in str(caught.value)
    assert "mycard:24GiB" in str(caught.value)


@pytest.mark.parametrize("text", [":24GiB", "mycard:", "mycard:24XB", "mycard:0GiB"])
def test_a_card_needs_both_a_name_and_a_size(text: str) -> None:
    """Half of NAME:SIZE is a config error."""
    with pytest.raises(ConfigError, match=r"^gpu: "):
        parse_card(text)
