"""What a load refuses before it looks for an instance; all else needs one (tests/process/test_load.py)."""

from __future__ import annotations

from typing import Any

import pytest

from orch.errors import ConfigError
from orch.load import measure


@pytest.mark.parametrize(("samples", "outstanding"), [([], 1), (["one"], 0), (["one"], -3)])
def test_a_load_needs_samples_and_something_outstanding(samples: list[Any], outstanding: int) -> None:
    """Both are the caller's to see to."""
    with pytest.raises(ValueError, match="at least 1 of each"):
        measure("unix:///nowhere", samples, outstanding)


def test_a_sample_that_cannot_travel_is_refused() -> None:
    """As a client's payload is."""
    with pytest.raises(TypeError, match="cannot travel"):
        measure("unix:///nowhere", [object()], 1)


def test_what_is_no_endpoint_is_refused() -> None:
    """As a client's is."""
    with pytest.raises(ConfigError, match="not an endpoint"):
        measure("nowhere", ["one"], 1)
