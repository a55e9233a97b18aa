"""What a service manager is told: little histories of an instance, and the lines that follow from them."""

from __future__ import annotations

import pytest

from orch.errors import ConfigError, Exit
from orch.supervising.inherited import handed_over
from orch.supervising.notify import EXTEND_S, MARGIN_S, MAX_STATUS_CHARS, Notices, Phase, Seen, one_line, status_of
from orch.supervising.replica import Death, Replica
from orch.supervising.service import not_back

PID = 4711
LOADING = {"r0": "LOADING"}
ONE, TWO = {"r0": "READY"}, {"r0": "READY", "r1": "READY"}


def starting(until: float | None = 600.0) -> Seen:
    """Replica 0 loads, and has until then."""
    return Seen(Phase.STARTING, LOADING, until=until)


def serving(*, restarting: bool = False, stuck: tuple[str, ...] = (), until: float | None = None) -> Seen:
    """Both replicas are there."""
    return Seen(Phase.SERVING, TWO, restarting=restarting, stuck=stuck, until=until)


def test_a_restart_is_over_for_those_that_were_asked() -> None:
    """A neighbour that is down is none of them; one that was never begun has not come back, though it serves."""
    replicas = {f"r{slot}": Replica(f"r{slot}", slot, "cpu", 600.0, 30.0) for slot in range(3)}
    for each in ("r0", "r1"):
        replicas[each].start(0.0)
        replicas[each].ready(1.0)
    replicas["r2"].start(0.0)
    replicas["r2"].died(Death(Exit.BAD_CONFIG, message="no such file"), 1.0, is_last=False, jitter=0.0)
    assert not_back({"r0": 0}, replicas) == []
    assert not_back({"r0": 0, "r1": 1}, replicas) == ["r1 is READY (not restarted)"]
    assert not_back({"r0": 0, "r2": 0, "r9": 4}, replicas) == ["r2 is QUARANTINED (no such file)"]


def keys(lines: list[str]) -> list[str]:
    """What the lines are about."""
    return [line.partition("=")[0] for line in lines]


def test_a_service_is_ready_once_with_its_first_replica() -> None:
    """READY=1 names the process, and comes neither before the first replica serves nor twice."""
    notices = Notices(None, PID)
    assert "READY=1" not in notices.look(starting(), 1.0)
    lines = notices.look(Seen(Phase.SERVING, {"r0": "READY", "r1": "LOADING"}), 2.0)
    assert lines == ["READY=1", f"MAINPID={PID}", "STATUS=1 of 2 replicas READY, loading r1"]
    assert notices.look(serving(), 3.0) == ["STATUS=2 of 2 replicas READY"]
    assert notices.look(serving(), 4.0) == [], "nothing has changed"


def test_patience_is_asked_for_while_a_replica_loads_and_no_longer_than_it_may() -> None:
    """Again every few seconds, up to the load's deadline and what follows it; then the manager's own time runs out."""
    notices = Notices(None, PID)
    asked = [now for now in range(60) if any("EXTEND" in line for line in notices.look(starting(until=20.0), now))]
    assert asked == list(range(0, round(20 + MARGIN_S), 5))
    assert "EXTEND_TIMEOUT_USEC" not in keys(notices.look(starting(until=None), 70.0)), "nothing bounded goes on"
    late = Notices(None, PID)
    assert f"EXTEND_TIMEOUT_USEC={round(EXTEND_S * 1e6)}" in late.look(starting(until=20.0), 0.0)
    assert "EXTEND_TIMEOUT_USEC=2000000" in late.look(starting(until=20.0), 18.0 + MARGIN_S), "only what is left"


def test_the_watchdog_is_fed_when_the_balancer_has_answered() -> None:
    """Time alone feeds nothing: at half of its time the balancer is asked, and its answer is what feeds."""
    notices = Notices(30.0, PID)
    assert notices.asks(0.0)
    assert not notices.asks(0.5), "an answer takes a moment"
    notices.answered(0.6)
    assert "WATCHDOG=1" in notices.look(serving(), 0.6)
    assert not notices.asks(10.0)
    notices.answered(10.0)  # of somebody else's question, and too early to count
    assert "WATCHDOG=1" not in notices.look(serving(), 15.6)
    assert notices.asks(15.6)
    notices.answered(15.7)
    assert notices.look(serving(), 15.7) == ["WATCHDOG=1"]


def test_a_silent_balancer_starves_the_watchdog_and_is_asked_again() -> None:
    """The question may have died with a balancer; the next one gets it, too."""
    notices = Notices(30.0, PID)
    asked = [now for now in range(40) if notices.asks(float(now))]
    assert len(asked) > 10
    assert not any("WATCHDOG=1" in notices.look(serving(), float(now)) for now in range(40, 80))
    notices.answered(80.0)
    assert "WATCHDOG=1" in notices.look(serving(), 80.0)


def test_a_stuck_replica_starves_the_watchdog_until_it_is_gone() -> None:
    """It is beyond its limit and lives: the supervisor does not do its work, whatever the balancer answers."""
    notices = Notices(10.0, PID)
    notices.answered(1.0)
    assert notices.look(serving(stuck=("r1",)), 1.0)[-1] == "STATUS=2 of 2 replicas READY, stuck: r1"
    assert "WATCHDOG=1" in notices.look(serving(), 2.0)


def test_a_reload_lasts_until_every_replica_is_back() -> None:
    """RELOADING=1 with the clock's time, patience meanwhile, READY=1 at the end; an end of the service ends it, too."""
    notices = Notices(None, PID)
    notices.look(serving(), 1.0)
    begun = notices.look(serving(restarting=True, until=90.0), 2.5)
    assert begun[:2] == ["RELOADING=1", "MONOTONIC_USEC=2500000"]
    assert "EXTEND_TIMEOUT_USEC" in keys(begun)
    assert notices.look(serving(restarting=True, until=90.0), 3.0) == []
    assert notices.look(serving(), 9.0)[0] == "READY=1"
    notices.look(serving(restarting=True), 10.0)
    assert notices.look(Seen(Phase.STOPPING, TWO), 11.0)[0] == "STOPPING=1"
    assert "READY=1" not in notices.look(Seen(Phase.STOPPING, ONE), 12.0)


def test_a_stop_is_announced_and_given_its_time() -> None:
    """STOPPING=1 once, patience for the drain, and a watchdog that no balancer has to feed any more."""
    notices = Notices(10.0, PID)
    notices.look(serving(), 1.0)
    drains = Seen(Phase.STOPPING, TWO, until=40.0, num_unanswered=7)
    lines = notices.look(drains, 10.0)
    assert [*keys(lines), lines[1]] == [
        "STOPPING", "STATUS", "EXTEND_TIMEOUT_USEC", "WATCHDOG", "STATUS=draining: 7 requests unanswered",
    ]  # fmt: skip
    assert keys(notices.look(drains, 15.0)) == ["EXTEND_TIMEOUT_USEC", "WATCHDOG"]
    assert notices.look(Seen(Phase.STOPPING, {}), 16.0) == ["STATUS=stopping"]


def test_waking_up_is_bounded() -> None:
    """Something is due only at its time, and what is due and cannot be said does not keep the supervisor busy."""
    quiet = Notices(None, PID)
    quiet.look(serving(), 1.0)
    assert quiet.next_deadline() == 11.0, "only the rate of requests"
    starved = Notices(10.0, PID)
    starved.look(serving(stuck=("r0",)), 50.0)
    deadline = starved.next_deadline()
    assert deadline is not None
    assert deadline > 50.0


def test_the_status_says_what_happens() -> None:
    """How many serve, who loads, who is down, and how many requests are answered."""
    states = {"r0": "READY", "r1": "QUARANTINED", "r2": "LOADING"}
    assert status_of(Seen(Phase.SERVING, states), 1234.4) == (
        "1 of 3 replicas READY, loading r2, r1 QUARANTINED, 1,234 requests/s"
    )
    waits = Seen(Phase.STARTING, {"r0": "PLANNED"}, waits_for="another instance starts on the same GPU")
    assert status_of(waits, None) == "0 of 1 replicas READY, another instance starts on the same GPU"
    many = {f"r{number}": "QUARANTINED" for number in range(500)}
    assert len(status_of(Seen(Phase.SERVING, many), None)) == MAX_STATUS_CHARS
    assert one_line("no such file\nREADY=1") == "no such file READY=1", "an error's text is no second line"


def test_the_rate_is_that_of_the_last_seconds_and_survives_a_new_balancer() -> None:
    """A count that fell is that of a new balancer: no rate is made of it."""
    notices = Notices(None, PID)

    def status(num_answered: int, now: float) -> str:
        lines = notices.look(Seen(Phase.SERVING, ONE, num_answered=num_answered), now)
        return next((line for line in lines if line.startswith("STATUS=")), "")

    assert "requests/s" not in status(0, 1.0)
    assert status(1200, 11.0).endswith("120 requests/s")
    assert status(5, 12.0) == ""
    assert status(55, 22.0).endswith(" 5 requests/s")
    lines = notices.look(Seen(Phase.SERVING, ONE, num_answered=None), 40.0)
    assert lines == ["STATUS=1 of 1 replicas READY"], "nobody counts a command's requests"


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, {}),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {}),
        ({"LISTEN_PID": "4711", "LISTEN_FDS": "1"}, {3: "unknown"}),
        ({"LISTEN_PID": "4711", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:"}, {3: "http", 4: "unknown"}),
    ],
)
def test_sockets_are_taken_by_whom_they_are_for(environ: dict[str, str], found: dict[int, str]) -> None:
    """From descriptor 3 on, named where the manager names them, and none that another process was given."""
    assert handed_over(environ, PID) == found


def test_a_number_of_sockets_that_is_none_is_told() -> None:
    """It names the variable and who sets it."""
    for count in ("many", "99999"):
        with pytest.raises(ConfigError, match=f"LISTEN_FDS = '{count}'"):
            handed_over({"LISTEN_PID": "4711", "LISTEN_FDS": count}, PID)
