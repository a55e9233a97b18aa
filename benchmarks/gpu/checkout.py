"""Imported first: where orch is not installed, this checkout's packages are found."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [str(ROOT / part) for part in ("orchestrator", "worker", "balancer")]
sys.path.extend(SOURCES)
