"""Somebody's own API server as replicas of 7 GiB on a real GPU, filled by the plan and shared out by a real nginx.

It wants nginx on PATH. The shares are counted in nginx's own log of who answered.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orch.planning import gpu
from orch.planning.sizes import GIB
from tests.process.fronts import Front, make, nginx
from tests.process.harness import Instance, Place, a_free_port, eventually
from tests.process.web import Web

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(500)]

ROOT = Path(__file__).resolve().parents[2]
FOOTPRINT = 7 * GIB
SERVER = (
    sys.executable, str(ROOT / "examples" / "api_server.py"), "--listen", "127.0.0.1:{port}", "--vram", "7GiB",
)  # fmt: skip
# Four clients for each replica: a request waits at most for three others, and nobody is idle.
CLIENTS_PER_REPLICA, REQUESTS_PER_REPLICA = 4, 100
MAX_UNEVEN = 1.1
KILLED = 3


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Directories of their own, and nothing left in them."""
    place = Place()
    yield place
    place.clean()


@pytest.fixture(scope="module")
def front_file(place: Place) -> tuple[Path, str]:
    """The configuration of nginx, and where it is to listen."""
    return make(place, "nginx", "--retry-posts")


@pytest.fixture(scope="module")
def full(place: Place, front_file: tuple[Path, str]) -> Instance:
    """A card full of them, with the footprint declared; nginx's file follows them."""
    file, _ = front_file
    options = ("--device=cuda:0", "--vram-per-replica=7GiB", "--health=/v1/health", f"--first-port={a_free_port()}")
    instance = place.up(
        "", "--replicas=auto", *options, "--load-parallelism=4", f"--nginx={file}", wait=False, command=SERVER
    )

    def ready() -> bool:
        assert instance.process.poll() is None, instance.output()
        return instance.status().get("state") == "READY"

    eventually(ready, within=300)
    return instance


def show(line: str) -> None:
    """For whoever runs this with `pytest -s` to write down what was measured."""
    sys.stdout.write(line + "\n")


def generate(front: Front, seed: int) -> str:
    """One request; what its answer says."""
    body = json.dumps({"text": "The garden", "max_tokens": 48, "seed": seed}).encode()
    with Web(front.url) as web:
        answer = web.ask("POST", "/v1/generate", body)
    assert answer.status == 200, answer
    text: str = answer.json["text"]
    return text


def shares(log: str) -> Counter[str]:
    """Requests that each server has answered."""
    return Counter(json.loads(line)["server"] for line in log.splitlines())


def test_the_plan_fills_the_card(full: Instance) -> None:
    """As many as 7 GiB allow, each a client of the MPS server, and each holding about what was declared."""
    status = full.status()
    with gpu.session():
        card = gpu.read_gpus()[0]
    assert card.total_bytes
    assert card.used_bytes
    fits = int(card.total_bytes * 0.92 // FOOTPRINT)
    show(f"\n{card.name}: {len(status['replicas'])} replicas of 7 GiB, MPS {status['mps']}")
    for row in status["replicas"]:
        show(f"  {row['id']} {row['state']} {row['address']} {(row['footprint_bytes'] or 0) / GIB:.2f} GiB")
    assert len(status["replicas"]) == fits
    assert status["mps"]
    assert all(each["state"] == "READY" for each in status["replicas"])
    assert card.used_bytes < card.total_bytes * 0.93


def test_nginx_spreads_requests_evenly(place: Place, full: Instance, front_file: tuple[Path, str]) -> None:
    """The largest share is at most 1.1 times the smallest, and the same request has the same answer everywhere."""
    file, listen = front_file
    count = len(full.ready())
    with nginx(place, file, listen) as front, ThreadPoolExecutor(CLIENTS_PER_REPLICA * count) as pool:
        answers = list(pool.map(lambda number: generate(front, number % 4), range(REQUESTS_PER_REPLICA * count)))
        log = access_log(file)
        found = shares(log)
        show(f"\nshares: {dict(found)}; largest / smallest {max(found.values()) / min(found.values()):.3f}")
        show(subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False).stdout)
        assert len({*answers}) <= 4 * 2  # of one seed; another kernel choice may draw another character
        assert len(found) == count
        assert max(found.values()) <= MAX_UNEVEN * min(found.values())


def test_one_that_is_killed_fails_no_request(place: Place, full: Instance, front_file: tuple[Path, str]) -> None:
    """Its requests are passed on by nginx, and it comes back to its port within the plan."""
    file, listen = front_file
    count = len(full.ready())
    with nginx(place, file, listen) as front, ThreadPoolExecutor(2 * count) as pool:
        asked = [pool.submit(generate, front, number % 4) for number in range(60 * count)]
        full.kill(f"r{KILLED}")
        assert all(each.result() for each in asked)
    eventually(lambda: len(full.ready()) == count, within=120)


def access_log(file: Path) -> str:
    """What nginx has logged."""
    named = re.search(r"access_log (\S+) ", file.read_text())
    assert named
    return Path(named[1]).read_text()
