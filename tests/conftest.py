"""What holds for every test: `gpu` needs a GPU, and CI skips nothing else."""

from __future__ import annotations

import os
from collections.abc import Generator

import pynvml
import pytest

CI = os.environ.get("CI") == "true"


def why_no_gpu() -> str | None:
    """Why tests marked `gpu` cannot run here, or None where they can."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no NVIDIA GPU is usable: {error}"
    try:
        return None if pynvml.nvmlDeviceGetCount() else "no NVIDIA GPU is usable: the driver lists none"
    finally:
        pynvml.nvmlShutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where no GPU is usable."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := why_no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI a skipped test has failed, unless it waits for a GPU."""
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail") and not item.get_closest_marker("gpu"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Under CI a module that skips itself has failed: no mark could excuse it."""
    report = yield
    if CI and report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    report.outcome = "failed"
    report.longrepr = f"skipped, and CI skips nothing but gpu tests: {report.longrepr}"
