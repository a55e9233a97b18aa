"""Where and with what it was measured; and who cannot be measured here, and why."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from benchmarks.peers.rows import Row
from benchmarks.peers.serving import ROOT

PEERS = ROOT / ".venv-peers" / "bin" / "python"
VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({**found, "python": sys.version.split()[0]}))
"""


def python_of(row: Row) -> Path:
    """Ours for orch and the floors, for their libraries must be the same; that of the peers for the peers."""
    return PEERS if row.is_peer else Path(sys.executable)


def versions(row: Row) -> dict[str, str]:
    """Of the distributions that a row is made of, as far as they are installed, and of its Python."""
    python = python_of(row)
    if not python.exists():
        return {}
    words = [str(python), "-c", VERSIONS, *row.distributions]
    found: dict[str, str] = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    return found | {name: version for name in row.programs if (version := _version_of(name))}


def lacking(row: Row, found: dict[str, str]) -> str | None:
    """Why a row cannot be measured; None: it can."""
    if row.is_peer and not PEERS.exists():
        return "there is no .venv-peers: `make bench-peers` makes it"
    absent = [name for name in (*row.distributions, *row.programs) if name not in found]
    return f"not installed: {', '.join(absent)}" if absent else None


def machine() -> dict[str, Any]:
    """The date, the commit, and what the machine is."""
    model = next((line.partition(": ")[2] for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, cwd=ROOT, capture_output=True, check=False, text=True)
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": model.strip(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _version_of(program: str) -> str | None:
    """The first word with a digit that it says of itself; None: it is not there."""
    if shutil.which(program) is None:
        return None
    said = subprocess.run([program, "-v"], stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True)
    words = (said.stdout + said.stderr).replace("/", " ").split()
    return next((word for word in words if word[0].isdigit()), "?")
