"""Fixtures of the tests with real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.process.harness import Place


@pytest.fixture
def place() -> Iterator[Place]:
    """Directories for instances; at the end, nothing of them may be left."""
    here = Place()
    yield here
    here.clean()


@pytest.fixture(scope="module")
def shared_place() -> Iterator[Place]:
    """The same for an instance that the tests of one file share."""
    here = Place()
    yield here
    here.clean()
