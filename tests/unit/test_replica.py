"""The life of a replica: which states follow which, how a stop goes on, and what a death means."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from orch.errors import Exit
from orch.supervising import replica as module
from orch.supervising import restart
from orch.supervising.replica import (
    ALIVE,
    TERM_S,
    TRANSITIONS,
    Action,
    Blame,
    Death,
    InvalidTransition,
    Replica,
    State,
)

LOAD_TIMEOUT_S, DRAIN_TIMEOUT_S = 120.0, 30.0
CRASH = Death(-signal.SIGSEGV)


def a_replica(state: State = State.PLANNED) -> Replica:
    """One that has come to this state by the shortest way, at time 0."""
    replica = Replica("r0", 0, "cpu", LOAD_TIMEOUT_S, DRAIN_TIMEOUT_S)
    events: dict[State, list[Callable[[], object]]] = {
        State.PLANNED: [],
        State.STARTING: [lambda: replica.start(0.0)],
        State.LOADING: [lambda: replica.start(0.0), lambda: replica.loading(0.0)],
        State.READY: [lambda: replica.start(0.0), lambda: replica.ready(0.0)],
        State.DRAINING: [
            lambda: replica.start(0.0),
            lambda: replica.ready(0.0),
            lambda: replica.stop(0.0, comes_back=False),
        ],
        State.BACKOFF: [lambda: replica.start(0.0), lambda: dies(replica, CRASH)],
        State.QUARANTINED: [lambda: replica.start(0.0), lambda: dies(replica, Death(Exit.BAD_CONFIG))],
        State.STOPPED: [lambda: replica.stop(0.0, comes_back=False)],
    }
    for event in events[state]:
        event()
    assert replica.state is state
    return replica


def dies(replica: Replica, death: Death = CRASH, now: float = 0.0, *, is_last: bool = False) -> Blame:
    """Its process is gone."""
    return replica.died(death, now, is_last=is_last, jitter=0.0)


# --- the table -----------------------------------------------------------------------------------------------------

P, S, L, R = State.PLANNED, State.STARTING, State.LOADING, State.READY
D, B, Q, X = State.DRAINING, State.BACKOFF, State.QUARANTINED, State.STOPPED
ILLEGAL = None

EVENTS: Mapping[str, Callable[[Replica], object]] = {
    "start": lambda replica: replica.start(1.0),
    "loading": lambda replica: replica.loading(1.0),
    "ready": lambda replica: replica.ready(1.0),
    "stop": lambda replica: replica.stop(1.0, comes_back=False),
    "restart": lambda replica: replica.stop(1.0, comes_back=True),
    "drained": lambda replica: replica.drained(1.0),
    "hurry": lambda replica: replica.hurry(1.0),
    "tick": lambda replica: replica.tick(1.0),
    "crash": dies,
    "bad config": lambda replica: dies(replica, Death(Exit.BAD_CONFIG)),
}

# After each event, in this order of states; ILLEGAL where it cannot happen to a correct supervisor.
ORDER = (P, S, L, R, D, B, Q, X)
AFTER: Mapping[str, tuple[State | None, ...]] = {
    "start":      (S, ILLEGAL, ILLEGAL, ILLEGAL, ILLEGAL, S, ILLEGAL, ILLEGAL),
    "loading":    (P, L, L, R, D, B, Q, X),
    "ready":      (P, R, R, R, D, B, Q, X),
    "stop":       (X, D, D, D, D, X, X, X),
    "restart":    (P, D, D, D, D, P, P, ILLEGAL),
    "drained":    ORDER,
    "hurry":      ORDER,
    "tick":       ORDER,
    "crash":      (ILLEGAL, B, B, B, X, ILLEGAL, ILLEGAL, ILLEGAL),
    "bad config": (ILLEGAL, Q, Q, B, X, ILLEGAL, ILLEGAL, ILLEGAL),
}  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", ORDER)
def test_each_event_leads_from_each_state_where_it_should(state: State, event: str) -> None:
    """What comes late, such as READY of a worker that is being stopped, changes nothing."""
    replica = a_replica(state)
    after = AFTER[event][ORDER.index(state)]
    if after is ILLEGAL:
        with pytest.raises(InvalidTransition):
            EVENTS[event](replica)
        assert replica.state is state
    else:
        EVENTS[event](replica)
        assert replica.state is after


def test_every_transition_of_the_table_happens_and_no_other() -> None:
    """The table has no line that is never used."""
    seen = {
        (state, after)
        for event, states in AFTER.items()
        for state, after in zip(ORDER, states, strict=True)
        if after not in (ILLEGAL, state) and not (event == "ready" and state is S)
    }
    # READY without LOADING passes through it; a restart's death leads back; one that flaps while READY is given up.
    seen |= {(L, R), (D, P), (R, Q)}
    assert seen == {(state, after) for state, followers in TRANSITIONS.items() for after in followers}


def test_a_code_that_a_serving_model_ends_with_is_its_own() -> None:
    """os._exit(3) in predict is a crash like any other: no setting is to blame, and it is tried again."""
    serving, loading = a_replica(State.READY), a_replica(State.LOADING)
    assert dies(serving, Death(Exit.BAD_CONFIG)).text == "exited with code 3"
    assert dies(loading, Death(Exit.BAD_CONFIG)).text == "exited with code 3 (BAD_CONFIG)"
    assert (serving.state, loading.state) == (State.BACKOFF, State.QUARANTINED)


def test_the_picture_in_the_module_shows_every_state() -> None:
    """A reader begins there."""
    assert module.__doc__ is not None
    assert set(re.findall(r"[A-Z]{5,}", module.__doc__)) >= {state.value for state in State}


def test_an_illegal_transition_tells_the_replicas_story() -> None:
    """With times and reasons, oldest first: that is what whoever mends it needs."""
    replica = a_replica(State.READY)
    dies(replica, CRASH, 5.5)
    with pytest.raises(InvalidTransition) as caught:
        dies(replica)
    message = str(caught.value)
    assert message.startswith("r0: BACKOFF -> BACKOFF (died of SIGSEGV); before: ")
    assert "0.000 PLANNED -> STARTING (starting); 0.000 STARTING -> LOADING" in message
    assert message.endswith("5.500 READY -> BACKOFF (died of SIGSEGV)")


def test_the_story_is_bounded() -> None:
    """A replica that flaps for a year remembers the last minutes."""
    replica = a_replica()
    for turn in range(100):
        replica.start(float(turn))
        dies(replica, now=turn + 0.5, is_last=True)
    assert len(replica.story.split("; ")) == module.STORY_LENGTH


# --- starting ------------------------------------------------------------------------------------------------------


def test_each_start_is_a_new_generation() -> None:
    """So that a late word of the one before is not taken for this one's."""
    replica = a_replica()
    assert replica.start(1.0) == [Action.SPAWN]
    assert (replica.generation, replica.restarts) == (1, 0)
    dies(replica)
    assert replica.start(2.0) == [Action.SPAWN]
    assert (replica.generation, replica.restarts) == (2, 1)


def test_a_replica_that_does_not_become_ready_in_time_is_killed() -> None:
    """Once; the death that follows counts as a failed load, whatever its exit code."""
    replica = a_replica(State.LOADING)
    assert replica.next_deadline() == LOAD_TIMEOUT_S
    assert replica.tick(LOAD_TIMEOUT_S - 0.1) == []
    assert replica.tick(LOAD_TIMEOUT_S) == [Action.KILL]
    assert replica.tick(LOAD_TIMEOUT_S + 99) == []
    assert replica.next_deadline() is None
    dies(replica, Death(-signal.SIGKILL), LOAD_TIMEOUT_S + 1)
    assert replica.last_exit_code == Exit.MODEL_LOAD
    assert replica.reason == "not READY within 120 s"


def test_once_ready_no_deadline_is_left() -> None:
    """Progress is another matter, watched elsewhere."""
    replica = a_replica(State.READY)
    assert replica.next_deadline() is None
    assert replica.tick(1e9) == []


def test_a_planned_replica_may_start_and_one_in_backoff_when_its_time_has_come() -> None:
    """The supervisor starts them one after another."""
    assert a_replica(State.PLANNED).may_start(0.0)
    replica = a_replica(State.BACKOFF)
    assert replica.next_deadline() == replica.start_at == restart.BASE_S
    assert not replica.may_start(0.4)
    assert replica.may_start(0.5)
    assert not any(a_replica(state).may_start(1e9) for state in (S, L, R, D, Q, X))


# --- stopping ------------------------------------------------------------------------------------------------------


def test_a_stop_is_a_ladder_of_drain_term_and_kill() -> None:
    """Each rung has its time."""
    replica = a_replica(State.READY)
    assert replica.stop(100.0, comes_back=False) == [Action.DRAIN]
    assert replica.next_deadline() == 100.0 + DRAIN_TIMEOUT_S
    assert replica.tick(100.0 + DRAIN_TIMEOUT_S - 0.1) == []
    assert replica.tick(130.0) == [Action.TERMINATE]
    assert replica.next_deadline() == 130.0 + TERM_S
    assert replica.tick(130.0 + TERM_S) == [Action.KILL]
    assert replica.next_deadline() is None
    assert replica.tick(1e9) == []
    dies(replica, Death(-signal.SIGKILL), 141.0)
    assert replica.state is State.STOPPED


def test_a_drained_replica_is_ended_before_its_time() -> None:
    """The word that it is drained is good once."""
    replica = a_replica(State.DRAINING)
    assert replica.drained(3.0) == [Action.TERMINATE]
    assert replica.drained(4.0) == []
    assert replica.next_deadline() == 3.0 + TERM_S


def test_a_second_ctrl_c_takes_the_next_rung_at_once() -> None:
    """And a third one the last."""
    replica = a_replica(State.READY)
    replica.stop(0.0, comes_back=False)
    assert replica.hurry(1.0) == [Action.TERMINATE]
    assert replica.hurry(2.0) == [Action.KILL]
    assert replica.hurry(3.0) == []


@pytest.mark.parametrize("state", [State.STARTING, State.LOADING])
def test_a_replica_that_has_never_been_ready_has_nothing_to_drain(state: State) -> None:
    """It is told to end."""
    assert a_replica(state).stop(1.0, comes_back=False) == [Action.TERMINATE]


@pytest.mark.parametrize("state", [State.PLANNED, State.BACKOFF, State.QUARANTINED, State.STOPPED])
def test_a_replica_without_a_process_stops_without_actions(state: State) -> None:
    """There is nobody to act upon."""
    replica = a_replica(state)
    assert replica.stop(1.0, comes_back=False) == []
    assert replica.state is State.STOPPED


def test_how_long_a_drain_may_take_can_be_said_with_the_stop() -> None:
    """A group that must go now gets no time."""
    replica = a_replica(State.READY)
    replica.stop(5.0, comes_back=False, drain_timeout_s=0.0)
    assert replica.tick(5.0) == [Action.TERMINATE]


def test_a_restart_leads_back_to_the_plan() -> None:
    """It counts as a restart and not as a flap."""
    replica = a_replica(State.READY)
    assert replica.stop(1.0, comes_back=True) == [Action.DRAIN]
    replica.drained(2.0)
    dies(replica, Death(Exit.OK), 3.0)
    assert (replica.state, replica.restarts, replica.flaps) == (State.PLANNED, 1, 0)
    assert replica.start(4.0) == [Action.SPAWN]


def test_a_stop_during_a_restart_is_a_stop_and_a_restart_during_a_stop_is_none() -> None:
    """`orch down` wins, in whatever order they come."""
    replica = a_replica(State.READY)
    replica.stop(1.0, comes_back=True)
    assert replica.stop(2.0, comes_back=False) == []
    dies(replica)
    assert replica.state is State.STOPPED
    replica = a_replica(State.DRAINING)
    replica.stop(2.0, comes_back=True)
    dies(replica)
    assert replica.state is State.STOPPED


def test_asking_for_a_restart_frees_a_replica_from_quarantine() -> None:
    """A person has looked at it; its flaps are forgotten."""
    replica = a_replica(State.QUARANTINED)
    replica.stop(1.0, comes_back=True)
    assert (replica.state, replica.flaps) == (State.PLANNED, 0)


# --- dying ---------------------------------------------------------------------------------------------------------


def test_a_replica_that_keeps_crashing_waits_longer_each_time_and_is_quarantined() -> None:
    """While others of its model go on."""
    replica = a_replica()
    waits = []
    now = 0.0
    for _ in range(restart.MAX_FLAPS - 1):
        replica.start(now)
        dies(replica, now=now)
        assert replica.state is State.BACKOFF
        waits.append(replica.start_at - now)
        now = replica.start_at
    assert waits == [0.5, 1.0, 2.0, 4.0]
    replica.start(now)
    dies(replica, now=now)
    assert replica.state is State.QUARANTINED
    assert replica.reason == "died of SIGSEGV"


def test_the_last_replica_of_a_model_is_never_quarantined() -> None:
    """It is all that its users have: it is tried again at least every five seconds."""
    replica = a_replica()
    now = 0.0
    for _ in range(30):
        replica.start(now)
        dies(replica, Death(Exit.BAD_CONFIG), now, is_last=True)
        assert replica.state is State.BACKOFF
        assert replica.start_at - now <= restart.LAST_CAP_S
        now = replica.start_at


def test_a_replica_that_was_ready_for_ten_seconds_starts_again_at_once_with_a_clean_record() -> None:
    """A crash a day is not flapping."""
    replica = a_replica()
    for _ in range(2 * restart.MAX_FLAPS):
        replica.start(0.0)
        replica.ready(1.0)
        dies(replica, now=1.0 + restart.HEALTHY_S)
        assert (replica.state, replica.flaps) == (State.BACKOFF, 0)
        assert replica.may_start(1.0 + restart.HEALTHY_S)


def test_a_replica_that_has_answered_something_was_healthy() -> None:
    """However short its life was."""
    replica = a_replica(State.READY)
    replica.flaps = 3
    dies(replica, Death(-signal.SIGKILL, answered=True), 0.1)
    assert (replica.state, replica.flaps) == (State.BACKOFF, 0)


def test_an_earlier_life_does_not_make_a_failed_start_healthy() -> None:
    """It was READY once; this time it was not."""
    replica = a_replica(State.READY)
    dies(replica, now=100.0)
    replica.start(200.0)
    dies(replica, now=300.0)
    assert replica.flaps == 1


@pytest.mark.parametrize(
    ("death", "blame"),
    [
        (Death(-signal.SIGKILL), Blame("was killed (SIGKILL)", counts=True, convicts=False)),
        (Death(-signal.SIGSEGV), Blame("died of SIGSEGV", counts=True, convicts=True)),
        (Death(-signal.SIGABRT), Blame("died of SIGABRT", counts=True, convicts=True)),
        (Death(-99), Blame("died of signal 99", counts=True, convicts=True)),
        (Death(-signal.SIGKILL, hung=True), Blame("hung and was killed", counts=True, convicts=True)),
        (Death(Exit.OK), Blame("exited with code 0", counts=True, convicts=False)),
        (Death(Exit.DEVICE_LOST), Blame("exited with code 13 (DEVICE_LOST)", counts=True, convicts=True)),
        (Death(77), Blame("exited with code 77", counts=True, convicts=True)),
    ],
)
def test_a_death_that_orch_did_not_order_counts_and_mostly_convicts(death: Death, blame: Blame) -> None:
    """A SIGKILL from outside may have had another reason than the request that ran."""
    assert dies(a_replica(State.READY), death) == blame


@pytest.mark.parametrize("exit_code", [Exit.OK, -signal.SIGTERM, -signal.SIGKILL, -signal.SIGSEGV])
def test_a_death_on_the_way_down_is_nobodys_fault(exit_code: int) -> None:
    """Once orch has told it to end, however it does it."""
    replica = a_replica(State.DRAINING)
    replica.drained(1.0)
    assert dies(replica, Death(exit_code)) == Blame("was stopped by orch", counts=False, convicts=False)


def test_a_crash_while_it_only_drains_is_its_own() -> None:
    """Nothing was done to the process yet: the request that it ran is a suspect like any other."""
    assert dies(a_replica(State.DRAINING), CRASH) == Blame("died of SIGSEGV", counts=True, convicts=True)


def test_a_stop_of_an_earlier_life_excuses_nothing_in_the_next() -> None:
    """After a restart, a crash is a crash."""
    replica = a_replica(State.READY)
    replica.stop(1.0, comes_back=True)
    replica.drained(1.0)
    dies(replica, Death(Exit.OK))
    replica.start(2.0)
    replica.ready(3.0)
    assert dies(replica, CRASH, 4.0).counts


def test_what_the_worker_said_is_the_reason_that_people_see() -> None:
    """Its message is clearer than its exit code."""
    replica = a_replica(State.LOADING)
    dies(replica, Death(Exit.MODEL_LOAD, message="load() raised OSError: no weights"))
    assert replica.reason == "load() raised OSError: no weights"
    assert replica.last_exit_code == Exit.MODEL_LOAD


# --- any life ------------------------------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """A supervisor does what the machine says, and the process does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.replica = a_replica()
        self.now = 0.0
        self.has_process = False
        self.killed = False

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.has_process != (action is Action.SPAWN), "a process for each action, and one at a time"
            self.has_process = True
            self.killed = self.killed or action is Action.KILL

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 11.0, 40.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.replica.tick(self.now))
        if self.replica.may_start(self.now):
            self.killed = False
            self.perform(self.replica.start(self.now))

    @rule()
    def loads(self) -> None:
        self.perform(self.replica.loading(self.now) if self.has_process else [])

    @rule()
    def becomes_ready(self) -> None:
        self.perform(self.replica.ready(self.now) if self.has_process else [])

    @rule(comes_back=st.booleans())
    def is_stopped(self, *, comes_back: bool) -> None:
        if self.replica.state is not State.STOPPED:
            self.perform(self.replica.stop(self.now, comes_back=comes_back))

    @rule()
    def is_drained(self) -> None:
        self.perform(self.replica.drained(self.now))

    @rule()
    def is_hurried(self) -> None:
        self.perform(self.replica.hurry(self.now))

    @rule(
        death=st.builds(Death, st.sampled_from([0, 1, 3, 4, 5, 13, 77, -9, -11, -15]), st.booleans(), st.booleans()),
        is_last=st.booleans(),
        jitter=st.floats(0.0, 1.0),
    )
    def dies(self, death: Death, jitter: float, *, is_last: bool) -> None:
        if self.has_process:
            self.has_process = False
            blame = self.replica.died(death, self.now, is_last=is_last, jitter=jitter)
            assert not blame.convicts or blame.counts
            assert not (is_last and self.replica.state is State.QUARANTINED)

    @invariant()
    def process_and_state_agree(self) -> None:
        assert self.has_process == (self.replica.state in ALIVE)

    @invariant()
    def nothing_waits_for_ever(self) -> None:
        """Whatever is on its way has a deadline, unless it was killed or waits for a person."""
        if self.replica.state in (State.STARTING, State.LOADING, State.DRAINING, State.BACKOFF):
            assert self.killed or self.replica.next_deadline() is not None


def test_no_life_leads_to_a_state_without_a_way_on() -> None:
    """Never two processes, never an action without one, never a wait without an end."""
    run_state_machine_as_test(Lives, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
