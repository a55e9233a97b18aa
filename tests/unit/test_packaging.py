"""The facts that the build, the tests and the pins must agree on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from orch.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def project() -> dict[str, Any]:
    """The parsed pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def distribution(requirement: str) -> str:
    """The normalised name that a requirement or a pin begins with."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def pins() -> dict[str, str]:
    """Every line of constraints.txt that pins something, by distribution."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return {distribution(line): line for line in lines if line and not line.startswith("#")}


def test_every_source_package_is_in_the_wheel_and_typed() -> None:
    """A package that is forgotten in the build would be missed by users only."""
    tool = project()["tool"]
    packages = tool["hatch"]["build"]["targets"]["wheel"]["packages"]
    folders = tool["hatch"]["build"]["dev-mode-dirs"]
    found = {str(init.parent.relative_to(ROOT)) for folder in folders for init in (ROOT / folder).glob("*/__init__.py")}
    assert found == set(packages)
    assert all((ROOT / package / "py.typed").exists() for package in packages)


def test_build_tests_and_type_checker_see_the_same_source_folders() -> None:
    """One list of source roots, whoever reads it."""
    tool = project()["tool"]
    folders = tool["hatch"]["build"]["dev-mode-dirs"]
    assert folders == tool["pytest"]["ini_options"]["pythonpath"] == tool["mypy"]["mypy_path"] == tool["ruff"]["src"]


def test_every_dependency_is_pinned_exactly() -> None:
    """What the tests run with is written down, so a failure tomorrow is ours and not a release's."""
    facts = project()["project"]
    extras = facts["optional-dependencies"].values()
    wanted = {distribution(line) for line in [*facts["dependencies"], *(line for extra in extras for line in extra)]}
    assert wanted <= pins().keys()
    assert all("==" in line for line in pins().values())


def test_the_changelog_tells_what_is_in_this_version() -> None:
    """A version without a section in the changelog is not ready."""
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
