"""One Chromium for all of these tests, and an instance whose page they look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Browser
from tests.process.harness import Instance, Place

MODELS = Path(__file__).with_name("models.py")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, gone at the end."""
    with Browser() as started:
        yield started


@pytest.fixture
def place() -> Iterator[Place]:
    """Directories for instances; at the end, nothing of them may be left."""
    here = Place()
    yield here
    here.clean()


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    """Two replicas that load slowly, and their gateway."""
    here = Place()
    yield here.up(f"{MODELS}:Slow", "--http=127.0.0.1:0", replicas=2)
    here.clean()
