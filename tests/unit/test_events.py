"""The latest events: which are kept, how much they matter, and how they read."""

from __future__ import annotations

from typing import Any

import pytest

from orch.supervising.events import MAX_EVENTS, Event, Recent, Severity, severity_of


def of_replica(state: str, **data: Any) -> Event:
    """What a fleet reports of r1."""
    return Event("replica", f"r1 {state}: because", "r1", {"state": state, **data})


def kept(*events: Event) -> list[dict[str, Any]]:
    """The facts after these events, a second apart."""
    recent = Recent()
    for at, event in enumerate(events):
        recent.note(event, float(at))
    return recent.facts


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        (of_replica("READY"), Severity.INFO),
        (of_replica("DRAINING"), Severity.INFO),
        (of_replica("BACKOFF"), Severity.WARNING),
        (of_replica("QUARANTINED"), Severity.ERROR),
        (Event("plan", "plan: 2 replicas"), Severity.INFO),
        (Event("balancer", "the balancer died"), Severity.WARNING),
        (Event("warning", "the queue is long"), Severity.WARNING),
    ],
)
def test_a_death_is_to_be_known_and_a_quarantine_needs_somebody(event: Event, severity: Severity) -> None:
    """What goes as it should is information."""
    assert severity_of(event) == severity


def test_an_event_is_kept_with_its_time_and_number() -> None:
    """Oldest first, numbered from 1, for pages that look again."""
    facts = kept(Event("plan", "plan: 2 replicas"), of_replica("BACKOFF"))
    assert facts[0] == {
        "number": 1, "at": 0.0, "severity": "info", "kind": "plan", "replica": None, "text": "plan: 2 replicas",
    }  # fmt: skip
    assert (facts[1]["number"], facts[1]["severity"], facts[1]["replica"]) == (2, "warning", "r1")


def test_output_and_steps_on_the_way_are_not_kept() -> None:
    """They would push out what matters."""
    passing = [of_replica(state) for state in ("PLANNED", "STARTING", "LOADING")]
    assert kept(Event("log", "hello", "r1"), *passing) == []


def test_a_replica_that_serves_is_told_with_what_it_took() -> None:
    """As `orch up` says it; without the facts that are not known."""
    whole = of_replica("READY", device="cuda:0", footprint_bytes=7 * 2**30, load_s=4.56)
    assert [event["text"] for event in kept(whole, of_replica("READY"))] == [
        "r1 READY on cuda:0, 7.0 GiB, loaded in 4.6 s", "r1 READY",
    ]  # fmt: skip


def test_the_oldest_make_room() -> None:
    """A ring: numbers go on, its length does not."""
    facts = kept(*[Event("warning", str(n)) for n in range(MAX_EVENTS + 5)])
    assert len(facts) == MAX_EVENTS
    assert (facts[0]["number"], facts[-1]["number"]) == (6, MAX_EVENTS + 5)
