"""The life of a replica: a table of states, and a machine that turns events into actions.

    PLANNED ──> STARTING ──> LOADING ──> READY ──> DRAINING ──> STOPPED
       ^           │            │          │           │
       │           └────────────┴────┬─────┘           └──> PLANNED   (a restart)
       │                             v
       └───────────────── BACKOFF or QUARANTINED

A stop is a ladder: drain, TERM, KILL, each rung with a deadline; `hurry` takes the next rung at once.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from orch.errors import EXIT_CODES, Exit
from orch.supervising import restart

TERM_S = 10.0  # to finish the running batch and leave
STORY_LENGTH = 20
# signal(7), the same on every Linux that we run on; those that end a process by themselves or by another's wish.
SIGKILL = 9
SIGNAL_NAMES = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", SIGKILL: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


class State(enum.StrEnum):
    """Where a replica is in its life."""

    PLANNED = "PLANNED"
    STARTING = "STARTING"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    BACKOFF = "BACKOFF"
    QUARANTINED = "QUARANTINED"
    STOPPED = "STOPPED"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.PLANNED: frozenset({State.STARTING, State.STOPPED}),
    State.STARTING: frozenset({State.LOADING, State.DRAINING, State.BACKOFF, State.QUARANTINED}),
    State.LOADING: frozenset({State.READY, State.DRAINING, State.BACKOFF, State.QUARANTINED}),
    State.READY: frozenset({State.DRAINING, State.BACKOFF, State.QUARANTINED}),
    State.DRAINING: frozenset({State.STOPPED, State.PLANNED}),
    State.BACKOFF: frozenset({State.STARTING, State.PLANNED, State.STOPPED}),
    State.QUARANTINED: frozenset({State.PLANNED, State.STOPPED}),
    State.STOPPED: frozenset(),
}
ALIVE = frozenset({State.STARTING, State.LOADING, State.READY, State.DRAINING})


class InvalidTransition(Exception):
    """A bug: a state was left in a way the table does not have. The message tells the replica's recent history."""


class Action(enum.Enum):
    """What the supervisor does for a machine, to the replica's present process."""

    SPAWN = "spawn"
    DRAIN = "drain"  # tell the balancer to give it nothing more
    TERMINATE = "terminate"
    KILL = "kill"


class Rung(enum.IntEnum):
    """How far a stop has gone."""

    DRAIN = 1
    TERMINATE = 2
    KILL = 3


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended. exit_code: as of `Popen.returncode`, negative for a signal. hung: we killed it for that.

    answered: it had finished at least one batch. elsewhere: what began outside of it and took it along. note: what it
    had last done while it was loading.
    """

    exit_code: int
    answered: bool = False
    hung: bool = False
    message: str = ""
    elsewhere: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Blame:
    """What a death means for the requests that were with the worker (the balancer's Cause)."""

    text: str
    counts: bool
    convicts: bool
    group: bool = False  # one of several that died together: what each of them ran is suspect


@dataclass(slots=True)
class Replica:
    """Owns one replica's state; the supervisor owns its process. All times are monotonic seconds."""

    id: str
    slot: int
    device: str  # a GPU's UUID, or "cpu"
    load_timeout_s: float
    drain_timeout_s: float
    state: State = State.PLANNED
    reason: str = "planned"
    generation: int = 0
    restarts: int = 0
    ready_at: float | None = None
    start_at: float = 0.0  # in BACKOFF
    flaps: int = 0
    last_exit_code: int = Exit.OK
    _deadline: float | None = None
    _rung: Rung | None = None
    _comes_back: bool = False
    _ordered: bool = False
    _story: deque[str] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))

    # --- events --------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """It is this replica's turn to load."""
        self._enter(State.STARTING, "starting", now)
        self.generation += 1
        self.ready_at, self._ordered = None, False
        self._deadline = now + self.load_timeout_s
        return [Action.SPAWN]

    def loading(self, now: float) -> list[Action]:
        """The process runs and imports the model."""
        if self.state is State.STARTING:
            self._enter(State.LOADING, "loading", now)
        return []

    def ready(self, now: float) -> list[Action]:
        """Loaded and warmed up."""
        if self.state is State.STARTING:
            self._enter(State.LOADING, "loading", now)
        if self.state is not State.LOADING:
            return []
        self._enter(State.READY, "ready", now)
        self.ready_at, self._deadline = now, None
        return []

    def stop(self, now: float, *, comes_back: bool, drain_timeout_s: float | None = None) -> list[Action]:
        """Leave: drain, then end the process. comes_back: start again afterwards (a restart)."""
        if self.state is State.DRAINING:
            self._comes_back = self._comes_back and comes_back
            if self._rung is Rung.DRAIN and drain_timeout_s is not None and self._deadline is not None:
                self._deadline = min(self._deadline, now + drain_timeout_s)
            return []
        if self.state not in ALIVE:
            self.flaps = 0
            if comes_back:
                if self.state is not State.PLANNED:
                    self._enter(State.PLANNED, "asked to start again", now)
            elif self.state is not State.STOPPED:
                self._enter(State.STOPPED, "stopped", now)
            return []
        was_ready = self.state is State.READY
        self._enter(State.DRAINING, "restarting" if comes_back else "stopping", now)
        self._comes_back = comes_back
        if not was_ready:
            return self._step(Rung.TERMINATE, now)
        self._rung = Rung.DRAIN
        self._deadline = now + (self.drain_timeout_s if drain_timeout_s is None else drain_timeout_s)
        return [Action.DRAIN]

    def drained(self, now: float) -> list[Action]:
        """The balancer says that nothing is with it any more."""
        if self.state is State.DRAINING and self._rung is Rung.DRAIN:
            return self._step(Rung.TERMINATE, now)
        return []

    def hurry(self, now: float) -> list[Action]:
        """Take the next rung of the ladder now."""
        if self.state is State.DRAINING and self._rung is not None and self._rung < Rung.KILL:
            return self._step(Rung(self._rung + 1), now)
        return []

    def tick(self, now: float) -> list[Action]:
        """A deadline may have passed."""
        if self._deadline is None or now < self._deadline:
            return []
        if self.state is State.DRAINING:
            return self.hurry(now)
        self._deadline = None  # loading takes too long: what follows is its death
        self._note(f"not READY within {self.load_timeout_s:g} s", now)
        return [Action.KILL]

    def died(self, death: Death, now: float, *, is_last: bool, jitter: float) -> Blame:
        """The process is gone, for whatever reason. is_last: no other replica of the model is READY."""
        blame = self._blame(death)
        healthy = death.answered or (self.ready_at is not None and now - self.ready_at >= restart.HEALTHY_S)
        timed_out = self.state in (State.STARTING, State.LOADING) and self._deadline is None
        self._deadline = self._rung = None
        if self.state is State.DRAINING:
            comes_back = self._comes_back
            self.restarts += comes_back
            self._enter(State.PLANNED if comes_back else State.STOPPED, blame.text, now)
            return blame
        if healthy or not death.elsewhere:
            self.flaps = 0 if healthy else self.flaps + 1
        self.restarts += 1
        # Once it serves, a code is the model's own: os._exit(3) in predict is a crash like any other.
        code = Exit.MODEL_LOAD if timed_out else death.exit_code if self.ready_at is None else Exit.BUG
        self.last_exit_code = code
        delay_s = restart.delay_s(self.flaps, code, is_last=is_last, jitter=jitter)
        late = f"not READY within {self.load_timeout_s:g} s" + (f": {death.note}" if death.note else "")
        why = death.message or (late if timed_out else blame.text)
        if delay_s is None:
            self._enter(State.QUARANTINED, why, now)
        else:
            self.start_at = now + delay_s
            self._enter(State.BACKOFF, why, now)
        return blame

    @property
    def comes_back(self) -> bool:
        """Whether it is to serve in the future: all but those that are stopped, or being stopped, for good."""
        return self.state is not State.STOPPED and (self.state is not State.DRAINING or self._comes_back)

    # --- facts ---------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `tick`, or `start` after a backoff, is due."""
        return self.start_at if self.state is State.BACKOFF else self._deadline

    def may_start(self, now: float) -> bool:
        """Whether it waits for its turn to load."""
        return self.state is State.PLANNED or (self.state is State.BACKOFF and now >= self.start_at)

    @property
    def story(self) -> str:
        """Its recent history, oldest first."""
        return "; ".join(self._story)

    # --- inside --------------------------------------------------------------------------------------------------

    def _step(self, rung: Rung, now: float) -> list[Action]:
        self._rung = rung
        self._ordered = True  # not before: whoever dies while it only drains has died by itself
        if rung is Rung.TERMINATE:
            self._deadline = now + TERM_S
            return [Action.TERMINATE]
        self._deadline = None  # a killed process ends; its death is the next event
        return [Action.KILL]

    def _blame(self, death: Death) -> Blame:
        if self._ordered:
            return Blame("was stopped by orch", counts=False, convicts=False)
        if death.elsewhere:
            return Blame(f"fell with its group ({death.elsewhere})", counts=False, convicts=False, group=True)
        if death.hung:
            return Blame("hung and was killed", counts=True, convicts=True)
        if death.exit_code == -SIGKILL:
            # Not ours: an operator, or the kernel's out-of-memory killer, whose victim need not be the culprit.
            return Blame("was killed (SIGKILL)", counts=True, convicts=False)
        if death.exit_code < 0:
            return Blame(f"died of {_signal_name(-death.exit_code)}", counts=True, convicts=True)
        known = death.exit_code in EXIT_CODES and (self.ready_at is None or death.exit_code == Exit.DEVICE_LOST)
        name = f" ({Exit(death.exit_code).name})" if known else ""
        return Blame(f"exited with code {death.exit_code}{name}", counts=True, convicts=death.exit_code != Exit.OK)

    def _enter(self, new: State, reason: str, now: float) -> None:
        """The only place where the state changes."""
        if new not in TRANSITIONS[self.state]:
            raise InvalidTransition(f"{self.id}: {self.state} -> {new} ({reason}); before: {self.story}")
        self._note(f"{self.state} -> {new} ({reason})", now)
        self.state, self.reason = new, reason

    def _note(self, text: str, now: float) -> None:
        self._story.append(f"{now:.3f} {text}")


def _signal_name(number: int) -> str:
    return SIGNAL_NAMES.get(number, f"signal {number}")
