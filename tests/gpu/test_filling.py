"""`--replicas auto` on a real card: it ends as full as planned, and another tenant keeps what it has.

Larger cases, and what one H200 made of them: benchmarks/gpu/filling.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.errors import DoesNotFit
from orch.planning import gpu
from orch.planning.cards import Gpu
from orch.planning.sizes import GIB, MIB
from tests.process.harness import Instance, Place, eventually

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

FILLER = str(Path(__file__).resolve().parents[2] / "benchmarks" / "gpu" / "models" / "filler.py") + ":Filler"
TENANT = """
import torch
held = torch.ones(int({gib} * 2**30), dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("held", flush=True)
input()
print(int(held[:1000].sum()))
"""


@pytest.fixture
def place() -> Iterator[Place]:
    """Directories of their own, and nothing left in them."""
    place = Place()
    yield place
    place.clean()


def fill(place: Place, gib: float) -> Instance:
    """An instance with as many replicas of that size as the card takes, all of them READY."""
    options = (f"--set=gib={gib}", "--replicas=auto", "--load-parallelism=8", "--mps=auto", "--device=cuda:0")
    instance = place.up(FILLER, *options, wait=False)

    def settled() -> bool:
        assert instance.process.poll() is None, instance.output()
        return instance.status().get("settled") is True

    eventually(settled, within=200)
    return instance


def the_card() -> Gpu:
    """The first GPU, read now."""
    return gpu.read_gpus()[0]


def gib_of(share: float) -> float:
    """A share of the card; of an H200 a seventh is 20 GiB."""
    return (the_card().total_bytes or 0) * share / GIB


def check_full(instance: Instance, before: Gpu) -> int:
    """All planned are there, the card is as full as the plan says, and one more is refused. How many there are."""
    status, card = instance.status(), the_card()
    rows, plan = status["replicas"], status["plan"]
    cost = max(row["footprint_bytes"] for row in rows)
    planned = before.used_bytes + before.reserved_bytes + len(rows) * cost
    used = card.used_bytes + card.reserved_bytes
    facts = {"plan": plan, "mps": status["mps"], "cost": cost, "planned": planned, "used": used}
    sys.stdout.write(f"MEASURED {json.dumps(facts)}\n")  # seen with pytest -s
    assert [row["state"] for row in rows] == ["READY"] * plan["total"]
    assert used == pytest.approx(planned, rel=0.02)
    assert "out of memory" not in "".join(instance.log(row["id"]) for row in rows).lower()
    refused = instance.place.orch("scale", str(len(rows) + 1), "--name", instance.name)
    assert refused.code == DoesNotFit.exit_code, refused
    return len(rows)


@pytest.mark.parametrize("share", [1 / 7, 2 / 7])
def test_auto_fills_the_card_as_planned(place: Place, share: float) -> None:
    """As many as the sum says become READY; used memory ends within 2 % of it; one more is refused."""
    before = the_card()
    instance = fill(place, gib_of(share))
    count = check_full(instance, before)
    with instance.client() as client:
        assert [answer[1] for answer in client.map([{"n": n} for n in range(20 * count)])] == list(range(20 * count))
    assert instance.stop() == 0
    eventually(lambda: the_card().used_bytes < before.used_bytes + 64 * MIB, within=15)


def test_another_tenant_keeps_what_it_has(place: Place) -> None:
    """With two sevenths of the card held by somebody else fewer are planned, and nobody runs out of memory."""
    card = the_card()
    with place.start("-c", TENANT.format(gib=gib_of(2 / 7))) as tenant:
        assert tenant.stdout is not None
        assert tenant.stdout.readline() == "held\n"
        before = the_card()
        assert before.used_bytes - card.used_bytes > gib_of(2 / 7) * GIB
        instance = fill(place, gib_of(1 / 7))
        count = check_full(instance, before)
        assert 3 <= count <= 5  # an empty card takes 6
        assert instance.stop() == 0
        out, err = tenant.communicate("\n", timeout=30)
        assert (out, tenant.returncode) == ("1000\n", 0), err
