"""What several unit tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from orch.config import SETTINGS


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with none of the settings of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)
    for variable in [setting.variable for setting in SETTINGS.values()] + ["ORCH_CONFIG", "ORCH_DEBUG"]:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ORCH_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("ORCH_STATE_DIR", str(tmp_path / "state"))
    return tmp_path
