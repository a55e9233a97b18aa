"""Alerts: each over metrics that exist, each with what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from orch.config import Config
from orch.supervising.replica import State
from orch_cli.main import COMMANDS
from tests.unit.test_metrics import exported

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "orch.rules.yml").read_text())["groups"] for rule in group["rules"]
]
by_name = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])


def samples() -> dict[str, set[str]]:
    """Every name that a sample has, with its labels."""
    found: dict[str, set[str]] = {}
    for family in exported():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@by_name
def test_an_alert_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    """And for labels that these have; job and instance are Prometheus' own."""
    there = samples()
    asked = set(re.findall(r"\borch_[a-z0-9_]+", rule["expr"]))
    assert asked <= there.keys()
    labels = set().union(*(there[name] for name in asked)) | {"job", "instance"}
    assert set(re.findall(r"(\w+)=~?\"", rule["expr"])) <= labels
    shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    kept = re.findall(r"by \(([^)]*)\)", rule["expr"])
    assert shown <= (set(kept[0].split(", ")) if kept else labels)


@by_name
def test_an_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """How grave it is, what is so, and what to do, by commands that there are."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "action"}
    assert all(text.strip() for text in rule["annotations"].values())
    commands = re.findall(r"`orch ([a-z]+)", rule["annotations"]["action"])
    assert set(commands) <= COMMANDS.keys()


def test_the_numbers_follow_from_the_defaults() -> None:
    """The queue's is four fifths of its limit; the state's name is one."""
    text = (FOLDER / "orch.rules.yml").read_text()
    limit = Config().queue_limit
    assert f"orch_queue_depth) > {limit * 4 // 5}" in text
    assert f"which is {limit} unless set" in text
    assert 'state="quarantined"' in text
    assert "quarantined" in {str(state).lower() for state in State}


def test_the_page_has_all_of_them() -> None:
    """In the table of docs/deploy.md."""
    told = re.findall(r"^\| `(Orch\w+)` \|", (ROOT / "docs/deploy.md").read_text(), re.MULTILINE)
    assert told == [rule["alert"] for rule in RULES]


def test_promtool_is_content() -> None:
    """Prometheus' own checker, on machines that have it: it comes with a server, so that nothing here installs it.

    On all of them: what is expected there are alerts that exist.
    """
    expected = yaml.safe_load((FOLDER / "orch.rules.test.yml").read_text())["tests"]
    asked = {each["alertname"] for test in expected for each in test["alert_rule_test"]}
    assert asked <= {rule["alert"] for rule in RULES}
    promtool = shutil.which("promtool")
    for words in (["check", "rules", "orch.rules.yml"], ["test", "rules", "orch.rules.test.yml"]) if promtool else ():
        done = subprocess.run([str(promtool), *words], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
