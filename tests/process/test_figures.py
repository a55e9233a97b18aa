"""What a running instance tells of itself: its status, its last minutes and events, and its metrics."""

from __future__ import annotations

import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.process.harness import Instance, Place, eventually


def recent(instance: Instance) -> dict[str, Any]:
    """The status with events and history."""
    return instance.call("status", recent=True)


def metrics(instance: Instance) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Labels and values by name, as Prometheus reads them."""
    url = instance.status()["gateways"][0]["url"]
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_figures_follow_what_happens(place: Place) -> None:
    """Requests are counted, a death is an event, and what a replica holds and has used is known while it lives."""
    instance = place.up("plain.py:Echo", "--http=127.0.0.1:0")
    client = instance.client()
    recent(instance)  # the first look, from which the next one counts
    for number in range(10):
        client.request(number)
    eventually(lambda: sum(recent(instance)["history"]["answered_per_s"]) > 0)
    replica = instance.replicas()["r0"]
    assert 0 < replica["memory_bytes"] <= replica["resident_bytes"]
    assert replica["cpu_s"] > 0
    assert replica["up_s"] > 0
    old = instance.kill("r0")
    instance.await_successor("r0", old)
    instance.await_ready(1)
    assert client.request(1) == 1
    events = recent(instance)["events"]
    assert [(event["severity"], event["replica"]) for event in events if "SIGKILL" in event["text"]] == [
        ("warning", "r0")
    ]
    assert events[-1]["text"].startswith("r0 READY on cpu")
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    # What a process holds is read once a second: the first reading may be of one that had only just begun.
    eventually(lambda: [held for _, held in metrics(instance).get("orch_replica_memory_bytes", []) if held > 2**20])
    found = metrics(instance)
    assert ({"outcome": "answered"}, 11.0) in found["orch_requests_total"]
    assert found["orch_replica_restarts_total"] == [({"replica": "r0", "device": "cpu"}, 1.0)]
    assert found["orch_ready"] == [({}, 1.0)]


def test_the_command_line_shows_no_history(place: Place) -> None:
    """It is for pages that draw it."""
    instance = place.up("plain.py:Echo", "--no-http")
    assert {"events", "history"}.isdisjoint(instance.status())
