"""What a GPU is to the planner, the cards orch knows by name, and how much of a card may be planned with.

`Gpu` lives here and not beside NVML so that pure files can use it; gpu.py fills it in for cards that are there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from orch.errors import ConfigError
from orch.planning.sizes import GIB, MIB, parse_size

ComputeMode = Literal["DEFAULT", "EXCLUSIVE_PROCESS", "PROHIBITED"]


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a GPU. `used_bytes` is None where the driver does not say (containers, WSL)."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device a replica can be placed on: a whole card or a MIG instance, at one moment.

    index: the card's place in PCI bus order; every MIG instance of a card has that card's index.
    uuid: what CUDA_VISIBLE_DEVICES is set to for a replica here.
    total_bytes: None on a card that shares the host's memory and has no figure of its own; the next three are 0 then.
    reserved_bytes: held by the driver itself; 0 where the driver cannot tell it from `used_bytes`.
    used_bytes: held by processes, ours included, so that total = reserved + used + free.
    numa_node: the host's memory node nearest to the card, None where there is only one or none is known.
    compute_mode: who may hold a context here: any process, one at a time, none. None where the driver does not say.
    compute_capability: (9, 0) for an H200; None where the driver does not say.
    cpu_affinity: the numbers of the cores near the card; empty where none are known, or for a card planned for.
    """

    index: int
    uuid: str
    name: str
    bus_id: str
    total_bytes: int | None
    free_bytes: int
    reserved_bytes: int
    used_bytes: int
    numa_node: int | None = None
    mig: bool = False
    processes: tuple[GpuProcess, ...] = ()
    compute_mode: ComputeMode | None = None
    compute_capability: tuple[int, int] | None = None
    cpu_affinity: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Card:
    """A kind of card: `slug` is its name on the command line, `total_bytes` what the card itself reports."""

    slug: str
    name: str
    total_bytes: int

    @property
    def utilization(self) -> float:
        """The share of this card that orch plans with unless told otherwise."""
        return utilization_for(self.name, self.total_bytes)


def _card(slug: str, name: str, total_mib: int) -> Card:
    return Card(slug, name, total_mib * MIB)


# The MiB that nvidia-smi shows as the card's total with a driver of the R535 line or newer.
_TABLE = (
    _card("rtx-2060", "NVIDIA GeForce RTX 2060", 6144),
    _card("rtx-2070", "NVIDIA GeForce RTX 2070", 8192),
    _card("rtx-2080", "NVIDIA GeForce RTX 2080", 8192),
    _card("rtx-2080-ti", "NVIDIA GeForce RTX 2080 Ti", 11264),
    _card("titan-rtx", "NVIDIA TITAN RTX", 24576),
    _card("rtx-3060", "NVIDIA GeForce RTX 3060", 12288),
    _card("rtx-3060-ti", "NVIDIA GeForce RTX 3060 Ti", 8192),
    _card("rtx-3070", "NVIDIA GeForce RTX 3070", 8192),
    _card("rtx-3070-ti", "NVIDIA GeForce RTX 3070 Ti", 8192),
    _card("rtx-3080", "NVIDIA GeForce RTX 3080", 10240),
    _card("rtx-3080-ti", "NVIDIA GeForce RTX 3080 Ti", 12288),
    _card("rtx-3090", "NVIDIA GeForce RTX 3090", 24576),
    _card("rtx-3090-ti", "NVIDIA GeForce RTX 3090 Ti", 24564),
    _card("rtx-4060", "NVIDIA GeForce RTX 4060", 8188),
    _card("rtx-4060-ti", "NVIDIA GeForce RTX 4060 Ti", 8188),
    _card("rtx-4060-ti-16gb", "NVIDIA GeForce RTX 4060 Ti", 16380),
    _card("rtx-4070", "NVIDIA GeForce RTX 4070", 12282),
    _card("rtx-4070-super", "NVIDIA GeForce RTX 4070 SUPER", 12282),
    _card("rtx-4070-ti", "NVIDIA GeForce RTX 4070 Ti", 12282),
    _card("rtx-4070-ti-super", "NVIDIA GeForce RTX 4070 Ti SUPER", 16376),
    _card("rtx-4080", "NVIDIA GeForce RTX 4080", 16376),
    _card("rtx-4080-super", "NVIDIA GeForce RTX 4080 SUPER", 16376),
    _card("rtx-4090", "NVIDIA GeForce RTX 4090", 24564),
    _card("rtx-5060", "NVIDIA GeForce RTX 5060", 8151),
    _card("rtx-5060-ti", "NVIDIA GeForce RTX 5060 Ti", 8151),
    _card("rtx-5060-ti-16gb", "NVIDIA GeForce RTX 5060 Ti", 16311),
    _card("rtx-5070", "NVIDIA GeForce RTX 5070", 12227),
    _card("rtx-5070-ti", "NVIDIA GeForce RTX 5070 Ti", 16303),
    _card("rtx-5080", "NVIDIA GeForce RTX 5080", 16303),
    _card("rtx-5090", "NVIDIA GeForce RTX 5090", 32607),
    _card("rtx-a4000", "NVIDIA RTX A4000", 16376),
    _card("rtx-a5000", "NVIDIA RTX A5000", 24564),
    _card("rtx-a6000", "NVIDIA RTX A6000", 49140),
    _card("rtx-6000-ada", "NVIDIA RTX 6000 Ada Generation", 49140),
    _card("rtx-pro-6000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887),
    _card("t4", "Tesla T4", 15360),
    _card("v100-16", "Tesla V100-SXM2-16GB", 16384),
    _card("v100-32", "Tesla V100-SXM2-32GB", 32768),
    _card("a10", "NVIDIA A10", 23028),
    _card("a30", "NVIDIA A30", 24576),
    _card("a40", "NVIDIA A40", 46068),
    _card("a100-40", "NVIDIA A100-SXM4-40GB", 40960),
    _card("a100-80", "NVIDIA A100-SXM4-80GB", 81920),
    _card("l4", "NVIDIA L4", 23034),
    _card("l40", "NVIDIA L40", 46068),
    _card("l40s", "NVIDIA L40S", 46068),
    _card("h100", "NVIDIA H100 80GB HBM3", 81559),
    _card("h100-nvl", "NVIDIA H100 NVL", 95830),
    _card("h200", "NVIDIA H200", 143771),
    _card("b200", "NVIDIA B200", 183359),
)
CARDS: Mapping[str, Card] = {card.slug: card for card in _TABLE}

# What the driver, the display and fragmentation take is nearly a fixed amount, so a larger card can spare less of
# itself. Each row: sold as this many GiB or more, this share. A card between two rows has the smaller row's share.
UTILIZATION_BY_CLASS_GIB = ((40, 0.92), (24, 0.90), (16, 0.88))
UTILIZATION_SMALLEST = 0.85  # 8 GB, and anything smaller
UTILIZATION_RTX_5090 = 0.95
# With ECC on, a card reports up to 8 % less than it is sold as: a T4 15,109 MiB, an A10 22,731 MiB.
CLASS_TOLERANCE = 0.92


def utilization_for(name: str, total_bytes: int) -> float:
    """The share of a card's memory that orch plans with unless told otherwise, 0 to 1.

    By size (architecture, part 7): 8 GB 0.85, 16 GB 0.88, 24 GB 0.90, 40 GB and more 0.92; the desktop RTX 5090 0.95.
    """
    if "RTX 5090" in name.upper() and "LAPTOP" not in name.upper():
        return UTILIZATION_RTX_5090
    for class_gib, share in UTILIZATION_BY_CLASS_GIB:
        if total_bytes >= class_gib * GIB * CLASS_TOLERANCE:
            return share
    return UTILIZATION_SMALLEST


def parse_card(text: str, index: int = 0) -> Gpu:
    """An empty card to plan for though it is not there: a known name ("rtx-4090") or any name with a size ("x:24GiB").

    `index` tells several of them apart. A card in use has also some memory reserved, which is not known here.

    Raises ConfigError with the nearest known names, or for a size that cannot be read.
    """
    name, colon, size = text.partition(":")
    if colon:
        if not name.strip():
            raise ConfigError(f"gpu: {text!r} has no name; allowed: NAME:SIZE, for example mycard:24GiB")
        return _empty(index, _slug(name), name.strip(), parse_size(size, key="gpu"))
    slug = _slug(text)
    card = CARDS.get(slug)
    if card is None:
        raise ConfigError(
            f"gpu: {text!r} is not a card that orch knows; near: {', '.join(_nearest(slug))};"
            " for any other give its memory, for example mycard:24GiB"
        )
    return _empty(index, card.slug, card.name, card.total_bytes)


def _empty(index: int, slug: str, name: str, total_bytes: int) -> Gpu:
    return Gpu(index, f"planned-{index}-{slug}", name, "", total_bytes, total_bytes, 0, 0)


def _slug(name: str) -> str:
    """A name as the table writes it: "NVIDIA GeForce RTX 4090" and "rtx_4090" are both "rtx-4090"."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "geforce", "tesla"))


def _nearest(slug: str) -> list[str]:
    """Three known names: those that begin with `slug`, then those that share most pairs of neighbouring characters."""

    def pairs(word: str) -> set[str]:
        return {word[i : i + 2] for i in range(len(word) - 1)}

    def likeness(known: str) -> float:
        return len(pairs(slug) & pairs(known)) / len(pairs(slug) | pairs(known))

    return sorted(CARDS, key=lambda known: (not known.startswith(slug), -likeness(known), known))[:3]
