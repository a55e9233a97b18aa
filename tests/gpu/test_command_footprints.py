"""What API servers cost on a real GPU, measured through their process trees; and one that uses no GPU at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.planning.sizes import GIB
from tests.process.harness import PROGRAMS, Instance, Place, a_free_port, eventually

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

SERVER = Path(__file__).resolve().parents[2] / "examples" / "api_server.py"


@pytest.fixture
def place() -> Iterator[Place]:
    """Directories of their own, and nothing left in them."""
    place = Place()
    yield place
    place.clean()


def up(place: Place, *options: str, command: tuple[str, ...]) -> Instance:
    """An instance on the GPU, all of it served."""
    instance = place.up("", f"--first-port={a_free_port()}", *options, "--device=cuda:0", wait=False, command=command)

    def settled() -> bool:
        assert instance.process.poll() is None, instance.output()
        return instance.status().get("settled") is True

    eventually(settled, within=200)
    return instance


def test_what_a_server_in_a_shell_costs_is_measured(place: Place) -> None:
    """The runner's child is a shell, and its child holds the memory; the plan is made from what that holds."""
    line = f"{sys.executable} {SERVER} --listen 127.0.0.1:{{port}} --vram 5GiB; exit $?"
    instance = up(place, "--replicas=3", "--health=/v1/health", command=("sh", "-c", line))
    rows = instance.status()["replicas"]
    assert len(rows) == 3
    assert all(4 * GIB < row["footprint_bytes"] < 6 * GIB for row in rows), rows
    assert all(row["fence_bytes"] for row in rows), rows


def test_a_command_that_uses_no_gpu_is_told_so(place: Place) -> None:
    """It is not killed: it may use the GPU with its first request."""
    command = (sys.executable, str(PROGRAMS / "single.py"), "{port}")
    instance = up(place, "--replicas=2", "--vram-per-replica=1GiB", "--health=/", command=command)
    assert len(instance.ready()) == 2
    assert "uses nothing of its GPU yet" in instance.output()
