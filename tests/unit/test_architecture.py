"""Who may import whom. Read from the sources, so that a slip is seen before it is felt."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("orchestrator", "worker", "balancer", "deploy")

# Files that only decide: what they need of the world arrives as an argument. So do all of ours that they import.
PURE = (
    "orchestrator/orch/bundles.py",
    "orchestrator/orch/chunk.py",
    "orchestrator/orch/command.py",
    "orchestrator/orch/command_settings.py",
    "orchestrator/orch/config.py",
    "orchestrator/orch/errors.py",
    "orchestrator/orch/http_settings.py",
    "orchestrator/orch/planning/cards.py",
    "orchestrator/orch/planning/cores.py",
    "orchestrator/orch/planning/footprint.py",
    "orchestrator/orch/planning/paying.py",
    "orchestrator/orch/planning/planner.py",
    "orchestrator/orch/planning/sizes.py",
    "orchestrator/orch/planning/weights.py",
    "orchestrator/orch/setting.py",
    "orchestrator/orch/steady.py",
    "orchestrator/orch/supervising/events.py",
    "orchestrator/orch/supervising/history.py",
    "orchestrator/orch/supervising/liveness.py",
    "orchestrator/orch/supervising/notify.py",
    "orchestrator/orch/supervising/replica.py",
    "orchestrator/orch/supervising/restart.py",
    "orchestrator/orch/supervising/servers.py",
    "orchestrator/orch/supervising/turns.py",
    "orchestrator/orch/tuning/choice.py",
    "orchestrator/orch/tuning/grid.py",
    "orchestrator/orch/tuning/plot.py",
    "orchestrator/orch/tuning/report.py",
    "orchestrator/orch/tuning/style.py",
    "orchestrator/orch/tuning/summary.py",
    "orchestrator/orch/tuning/words.py",
    "orchestrator/orch/wire.py",
    "worker/orch_worker/batching.py",
    "worker/orch_worker/health.py",
    "balancer/orch_balancer/admission.py",
    "balancer/orch_balancer/buddy.py",
    "balancer/orch_balancer/deadlines.py",
    "balancer/orch_balancer/fairqueue.py",
    "balancer/orch_gateway/counts.py",
    "balancer/orch_gateway/metrics.py",
    "benchmarks/peers/figures.py",
    "benchmarks/peers/targets.py",
    "benchmarks/peers/workloads.py",
    "balancer/orch_balancer/heard.py",
    "balancer/orch_balancer/leases.py",
    "balancer/orch_balancer/policy.py",
    "balancer/orch_balancer/router.py",
    "balancer/orch_balancer/verdict.py",
    "balancer/orch_gateway/answers.py",
    "balancer/orch_gateway/facts.py",
    "balancer/orch_gateway/encoding.py",
    "balancer/orch_gateway/faults.py",
    "balancer/orch_gateway/generate.py",
    "balancer/orch_gateway/inference.py",
    "balancer/orch_gateway/instances.py",
    "balancer/orch_gateway/manners.py",
    "balancer/orch_gateway/messages.py",
    "balancer/orch_gateway/models.py",
    "balancer/orch_gateway/openapi.py",
    "balancer/orch_gateway/plain.py",
    "balancer/orch_gateway/reading.py",
    "balancer/orch_gateway/refusals.py",
    "balancer/orch_gateway/routes.py",
    "balancer/orch_gateway/schemas.py",
    "balancer/orch_gateway/tensors.py",
    "balancer/orch_gateway/tracing.py",
    "balancer/orch_gateway/v2.py",
    "deploy/orch_deploy/containers.py",
    "deploy/orch_deploy/inside.py",
    "deploy/orch_deploy/installing.py",
    "deploy/orch_deploy/kubernetes.py",
    "deploy/orch_deploy/layout.py",
    "deploy/orch_deploy/settings_text.py",
    "deploy/orch_deploy/haproxy.py",
    "deploy/orch_deploy/nginx.py",
    "deploy/orch_deploy/proxy.py",
    "deploy/orch_deploy/render.py",
    "deploy/orch_deploy/seal.py",
    "deploy/orch_deploy/site.py",
    "deploy/orch_deploy/steps.py",
    "deploy/orch_deploy/systemd.py",
)
IMPURE_MODULES = {
    "asyncio",
    "multiprocessing",
    "os",
    "pynvml",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "torch",
    "zmq",
}

# For each of our packages, those of ours that it may import. orch starts the others by name instead.
MAY_IMPORT = {
    "orch": {"orch"},
    "orch_worker": {"orch", "orch_worker"},
    "orch_balancer": {"orch", "orch_balancer"},
    "orch_gateway": {"orch", "orch_gateway"},
    "orch_deploy": {"orch", "orch_deploy"},
    "orch_cli": {"orch", "orch_worker", "orch_balancer", "orch_gateway", "orch_deploy", "orch_cli"},
}
NVML_READER = "orchestrator/orch/planning/gpu.py"

# What `import orch` may load beside the standard library.
CLIENT_NEEDS = {"zmq", "msgpack", "numpy"}
MAX_PUBLIC_NAMES = 12


def sources() -> list[Path]:
    """Every source file of the distribution."""
    return sorted(path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py"))


def dotted_name(path: Path) -> str:
    """`orchestrator/orch/wire.py` as `orch.wire`."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """The dotted names a file imports anywhere in it, `from a import b` as `a.b`."""
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in _names(node, path)}


def _names(node: ast.AST, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = [*dotted_name(path).split("."), *(["__init__"] if path.name == "__init__.py" else [])]
        base = [*parents[: -node.level], node.module or ""] if node.level else [node.module or ""]
        yield from (".".join(filter(None, [*base, alias.name])) for alias in node.names)


def file_of(name: str) -> Path | None:
    """The file of ours behind an imported name: a module, or what holds a name imported from one."""
    for dotted in (name, name.rpartition(".")[0]):
        for folder in SOURCE_FOLDERS:
            stem = ROOT / folder / dotted.replace(".", "/")
            for path in (stem.with_suffix(".py"), stem / "__init__.py"):
                if dotted and path.is_file():
                    return path
    return None


def closure(name: str) -> set[Path]:
    """A file, and every file of ours that it imports, directly or not."""
    reached: set[Path] = set()
    waiting = [ROOT / name]
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(found for imported in imports_of(path) if (found := file_of(imported)))
    return reached


def top(name: str) -> str:
    """The package that a dotted name begins with."""
    return name.partition(".")[0]


def id_of(path: Path) -> str:
    """How a test names the file it is about."""
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("name", PURE)
def test_a_pure_file_cannot_do_io(name: str) -> None:
    """A file that decides reaches no clock, socket, process or device, not even through another of our files."""
    assert (ROOT / name).is_file(), "the list of pure files names it"
    slips = {id_of(path): {top(imported) for imported in imports_of(path)} & IMPURE_MODULES for path in closure(name)}
    assert {path: modules for path, modules in slips.items() if modules} == {}


def test_imports_point_one_way() -> None:
    """Worker and balancer may lean on orch, never on each other, and orch on none of them."""
    slips = {
        id_of(path): ours - MAY_IMPORT[top(dotted_name(path))]
        for path in sources()
        if (ours := {top(imported) for imported in imports_of(path)} & MAY_IMPORT.keys())
    }
    assert {path: packages for path, packages in slips.items() if packages} == {}


def test_only_one_file_talks_to_the_driver() -> None:
    """NVML is read in one place, so a machine without it is handled in one place."""
    readers = {id_of(path) for path in sources() if "pynvml" in {top(imported) for imported in imports_of(path)}}
    assert readers == {NVML_READER}


def loaded_by(module: str) -> set[str]:
    """The packages that an import loads, beside the standard library."""
    program = f"""
import json, sys
before = set(sys.modules)
import {module}
loaded = [name for name in set(sys.modules) - before if getattr(sys.modules[name], "__file__", None)]
print(json.dumps(loaded))
"""
    path = os.pathsep.join(str(ROOT / folder) for folder in SOURCE_FOLDERS)
    child = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    return {top(name) for name in json.loads(child.stdout)} - sys.stdlib_module_names


def test_importing_orch_loads_only_what_a_client_needs() -> None:
    """A client's machine pays for pyzmq, msgpack and numpy, and for nothing else."""
    assert loaded_by("orch.client") == CLIENT_NEEDS | {"orch"}


@pytest.mark.parametrize("module", ["orch", "orch.supervising.supervisor", "orch.supervising.search"])
def test_a_supervisor_loads_nothing_that_a_client_needs(module: str) -> None:
    """It sees no request: the load that a search needs is made by a process of its own."""
    assert loaded_by(module) & CLIENT_NEEDS == set()


def test_the_public_face_is_small_and_documented() -> None:
    """Few names, each of them there, each saying what it is."""
    orch = importlib.import_module("orch")
    assert 0 < len(orch.__all__) <= MAX_PUBLIC_NAMES
    assert orch.__doc__
    for name in orch.__all__:
        assert (getattr(orch, name).__doc__ or "").strip(), name
