"""The search for the count that pays, with a process that is none: what it says and hears goes over a real link."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from orch.config import Config
from orch.errors import ConfigError, Exit, NotRunning, OrchError
from orch.link import Link, Message, pair
from orch.planning.paying import MEASURE_S
from orch.supervising.control import message_of
from orch.supervising.events import Event
from orch.supervising.reactor import Reactor
from orch.supervising.search import MAX_VOIDS, SLACK_S, Search

BATCH_S = 0.02


class Loader:
    """What Search starts, played by the test."""

    def __init__(self) -> None:
        self.link, theirs = pair()
        self.theirs = Link(theirs)
        reading, self._printing = os.pipe()
        os.set_blocking(reading, False)
        self.output = os.fdopen(reading, "rb", buffering=0)
        self.pidfd, self._living = os.pipe()
        self.killed = self.reaped = False

    def heard(self) -> list[Message]:
        return self.theirs.receive()

    def print(self, text: str) -> None:
        os.write(self._printing, text.encode())

    def die(self) -> None:
        """Its pidfd becomes readable."""
        if self._living >= 0:
            os.close(self._living)
            os.close(self._printing)
            self.theirs.close()
            self._living = -1

    def signal(self, _number: int) -> None:
        self.killed = True
        self.die()

    def reap(self) -> int:
        assert self._living < 0, "nobody waits for a process that lives"
        self.reaped = True
        return -9

    def close(self) -> None:
        assert self.reaped
        self.link.close()
        self.output.close()
        os.close(self.pidfd)


@dataclass
class Supervisor:
    """Owns the search, its clock and the loaders; notes what it is told."""

    reactor: Reactor
    min_gain: float = 0.05
    most: int = 4
    now: float = 1000.0
    cannot_start: int = 0  # so many times
    told: list[Event] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    kept: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    errors: list[OrchError] = field(default_factory=list)
    loaders: list[Loader] = field(default_factory=list)
    environ: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.search = Search(
            Config(min_gain=self.min_gain),
            "unix:///front",
            "/samples",
            {"CUDA_VISIBLE_DEVICES": "0", "HOME": "/h"},
            self.reactor,
            self,
            lambda: self.now,
            spawn=cast(Any, self.spawn),
        )
        self.search.most = self.most

    # --- what the search says

    def report(self, event: Event) -> None:
        self.told.append(event)

    def printed(self, name: str, line: str) -> None:
        self.lines.append(f"{name} | {line}")

    def wants(self, count: int) -> None:
        self.wanted.append(count)

    def found(self, count: int, because: Sequence[str]) -> None:
        self.kept.append((count, tuple(because)))

    def unsearchable(self, error: ConfigError) -> None:
        self.errors.append(error)

    def spawn(self, module: str, fds: Sequence[int], environ: Mapping[str, str]) -> Loader:
        assert (module, tuple(fds)) == ("orch.supervising.loader", ())
        if self.cannot_start:
            self.cannot_start -= 1
            raise OSError(24, "Too many open files")
        self.environ = environ
        self.loaders.append(Loader())
        return self.loaders[-1]

    # --- deeds

    @property
    def loader(self) -> Loader:
        return self.loaders[-1]

    def settled(self, count: int) -> None:
        self.search.settled(count, 8, BATCH_S)

    def turn(self) -> None:
        self.reactor.wait(0.0)

    def say(self, **message: Any) -> None:
        self.loader.theirs.send(**message)
        self.turn()

    def measured(self, answers_per_s: float, **fields: Any) -> None:
        self.say(
            event="measured",
            **{"answers_per_s": answers_per_s, "answers": 100, "errors": 0, "error": None, "steady": True, **fields},
        )

    def asked(self) -> list[int]:
        """The outstanding requests of each measurement that the loader has been asked for since."""
        return [message["outstanding"] for message in self.loader.heard() if message["do"] == "measure"]

    def said(self, kind: str) -> list[str]:
        return [event.text for event in self.told if event.kind == kind]


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """A real one."""
    with Reactor() as found:
        yield found


@pytest.fixture
def make(reactor: Reactor) -> Iterator[Callable[..., Supervisor]]:
    """Supervisors, whose searches leave nothing behind."""
    made: list[Supervisor] = []

    def one(**facts: Any) -> Supervisor:
        made.append(Supervisor(reactor, **facts))
        return made[-1]

    yield one
    for each in made:
        each.search.close()
        each.search.close()  # again: nothing happens
        assert all(loader.reaped for loader in each.loaders)
        for loader in each.loaders:
            loader.die()


def test_nothing_starts_before_replica_0_is_there(make: Callable[..., Supervisor]) -> None:
    """The process, too, is started only when there is something to measure."""
    supervisor = make()
    assert supervisor.loaders == []
    assert supervisor.search.next_deadline() is None


def test_a_load_saturates_what_is_settled(make: Callable[..., Supervisor]) -> None:
    """Two batches for each replica and a tenth of one on its way; the process gets no GPU."""
    supervisor = make()
    supervisor.settled(1)
    assert supervisor.loader.heard() == [
        {"do": "begin", "endpoint": "unix:///front", "samples": "/samples"},
        {"do": "measure", "outstanding": 17, "max_s": MEASURE_S},
    ]
    assert supervisor.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert supervisor.environ["HOME"] == "/h"
    assert supervisor.said("search") == ["measuring how many replicas pay, up to 4"]


def test_a_search_to_its_end(make: Callable[..., Supervisor]) -> None:
    """One process makes every load, and is gone when it is decided."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.measured(45.0)
    assert supervisor.wanted == [2]
    supervisor.settled(2)
    supervisor.measured(88.1)
    assert supervisor.wanted == [2, 3]
    supervisor.settled(3)
    supervisor.measured(89.0)
    assert supervisor.wanted == [2, 3], "measured once more first"
    assert supervisor.asked() == [17, 34, 51, 51]
    supervisor.measured(88.5)
    assert supervisor.wanted == [2, 3, 4], "one look further"
    supervisor.settled(4)
    supervisor.measured(88.0)
    sums = "1 replica: 45.0/s, 2: 88.1/s (+96 %), 3: 89.0/s (+1 %), 4: 88.0/s (-1 %)"
    assert supervisor.kept == [(2, (f"{sums}: less than 5 % more; 2 replicas kept",))]
    assert supervisor.said("search")[1:] == [
        "1 replica: 45.0 answers/s",
        "2 replicas: 88.1 answers/s (+96 %)",
        "3 replicas: 89.0 answers/s (+1 %)",
        "3 replicas once more: 88.5 answers/s (+0 %)",
        "4 replicas: 88.0 answers/s (-1 %)",
    ]
    assert [event.data.get("count") for event in supervisor.told] == [None, 1, 2, 3, 3, 4]
    assert len(supervisor.loaders) == 1
    assert supervisor.loader.killed
    assert supervisor.search.over


def test_settled_may_be_said_at_any_time(make: Callable[..., Supervisor]) -> None:
    """Only the count that is wanted and not being measured begins something."""
    supervisor = make()
    supervisor.settled(2)
    assert supervisor.loaders == []
    supervisor.settled(1)
    supervisor.settled(1)
    assert supervisor.asked() == [17]
    supervisor.measured(45.0)
    supervisor.settled(1)
    assert supervisor.asked() == []
    supervisor.settled(2)
    assert supervisor.asked() == [34]
    supervisor.search.close()
    supervisor.settled(2)
    assert len(supervisor.loaders) == 1


def test_a_disturbed_measurement_is_void_and_made_again(make: Callable[..., Supervisor]) -> None:
    """The load ends at once; the next begins when all are there again."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.search.disturbed("r0 died")
    assert supervisor.loader.killed
    assert supervisor.search.next_deadline() is None
    supervisor.settled(1)
    assert len(supervisor.loaders) == 2
    supervisor.measured(45.0)
    assert supervisor.wanted == [2]
    assert supervisor.said("search")[1:] == ["a measurement is void: r0 died", "1 replica: 45.0 answers/s"]


def test_between_measurements_nothing_is_disturbed(make: Callable[..., Supervisor]) -> None:
    """A replica that dies while another loads is the fleet's business."""
    supervisor = make()
    supervisor.search.disturbed("r0 died")
    supervisor.settled(1)
    supervisor.measured(45.0)
    supervisor.search.disturbed("r0 died")
    assert not supervisor.loader.killed
    assert supervisor.said("search")[2:] == []


def test_several_voids_in_a_row_end_it(make: Callable[..., Supervisor]) -> None:
    """What is known has to do, with a warning."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.measured(45.0)
    for _ in range(MAX_VOIDS):
        supervisor.settled(2)
        supervisor.search.disturbed("r1 died")
    assert supervisor.said("warning") == ["3 measurements in a row are void, the last because r1 died"]
    assert supervisor.kept == [(1, ("1 replica: 45.0/s: 2 could not be measured; 1 replica kept",))]
    supervisor.settled(2)
    supervisor.search.disturbed("r1 died")
    supervisor.search.cannot("never mind")
    assert len(supervisor.kept) == 1


def test_voids_in_a_row_are_counted_anew_after_a_measurement(make: Callable[..., Supervisor]) -> None:
    """A death now and then is no reason to give up."""
    supervisor = make()
    for count, rate in ((1, 45.0), (2, 90.0)):
        for _ in range(MAX_VOIDS - 1):
            supervisor.settled(count)
            supervisor.search.disturbed("r0 died")
        supervisor.settled(count)
        supervisor.measured(rate)
    assert supervisor.wanted == [2, 3]
    assert supervisor.kept == []


def test_what_cannot_be_had_keeps_the_best(make: Callable[..., Supervisor]) -> None:
    """An out-of-memory is no reason to stop serving."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.measured(45.0)
    supervisor.search.cannot("a 2nd ran out of memory")
    assert supervisor.kept == [(1, ("1 replica: 45.0/s: a 2nd ran out of memory; 1 replica kept",))]
    assert supervisor.loader.killed


def test_a_load_that_fails_is_made_again(make: Callable[..., Supervisor]) -> None:
    """The replicas are as settled as before, so nobody has to say so."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.say(event="failed", **message_of(NotRunning("nothing answers")))
    assert supervisor.asked() == [17]
    supervisor.measured(0.0, answers=0, error="Overloaded: the queue is full")
    assert supervisor.asked() == [17]
    supervisor.measured(45.0)
    assert supervisor.wanted == [2]
    assert supervisor.said("search")[1:3] == [
        "a measurement is void: nothing answers",
        "a measurement is void: the load got no answers (Overloaded: the queue is full)",
    ]


def test_a_load_that_dies_is_made_again_but_not_for_ever(make: Callable[..., Supervisor]) -> None:
    """One replica runs, and stays."""
    supervisor = make()
    supervisor.settled(1)
    for _ in range(MAX_VOIDS):
        supervisor.loader.print("Killed\n")
        supervisor.loader.die()
        supervisor.turn()
    assert len(supervisor.loaders) == MAX_VOIDS
    assert supervisor.lines == ["loader | Killed"] * MAX_VOIDS
    assert supervisor.kept == [(1, ("1 could not be measured; 1 replica kept",))]


def test_a_load_that_cannot_be_started_is_tried_again(make: Callable[..., Supervisor]) -> None:
    """No descriptor to be had, for a moment; then for long."""
    supervisor = make(cannot_start=1)
    supervisor.settled(1)
    assert supervisor.asked() == [17]
    never = make(cannot_start=99)
    never.settled(1)
    assert never.kept == [(1, ("1 could not be measured; 1 replica kept",))]
    assert "Too many open files" in never.said("warning")[0]


def test_a_load_that_died_between_measurements_is_replaced(make: Callable[..., Supervisor]) -> None:
    """Nothing was lost."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.measured(45.0)
    supervisor.loader.die()
    supervisor.turn()
    supervisor.settled(2)
    assert supervisor.asked() == [34]
    assert supervisor.said("search")[2:] == []


def test_a_load_that_does_not_end_is_given_up(make: Callable[..., Supervisor]) -> None:
    """Every wait has a deadline."""
    supervisor = make()
    supervisor.settled(1)
    deadline = supervisor.search.next_deadline()
    assert deadline == supervisor.now + MEASURE_S + SLACK_S
    supervisor.now = deadline - 0.1
    supervisor.search.tick(supervisor.now)
    assert not supervisor.loader.killed
    supervisor.now = deadline
    supervisor.search.tick(supervisor.now)
    assert supervisor.loaders[0].killed
    assert supervisor.asked() == [17]
    assert supervisor.search.next_deadline() == deadline + MEASURE_S + SLACK_S


def test_without_samples_there_is_no_search(make: Callable[..., Supervisor]) -> None:
    """It is the user's to say what to do instead; nothing more is measured."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.say(event="failed", **message_of(ConfigError("Echo's warmup() returns no samples")))
    assert [str(error) for error in supervisor.errors] == ["Echo's warmup() returns no samples"]
    assert supervisor.errors[0].exit_code == Exit.BAD_CONFIG
    assert supervisor.loader.killed
    assert supervisor.search.over
    assert supervisor.kept == []


def test_what_a_rate_lacks_is_told(make: Callable[..., Supervisor]) -> None:
    """Errors among the answers, or no two windows that agree: it counts all the same."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.measured(45.0, errors=3, error="ModelError: ValueError: odd")
    supervisor.settled(2)
    supervisor.measured(90.0, steady=False)
    assert supervisor.said("search")[1:] == [
        "1 replica: 45.0 answers/s; 3 errors, the first: ModelError: ValueError: odd",
        "2 replicas: 90.0 answers/s (+100 %); not steady within 30 s",
    ]


def test_a_search_that_is_closed_leaves_nothing(make: Callable[..., Supervisor]) -> None:
    """The instance stops: the load ends at once, whatever was measured."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.search.close()
    assert supervisor.loader.killed
    assert supervisor.loader.reaped
    supervisor.turn()
    supervisor.search.tick(supervisor.now + 1e6)
    supervisor.search.cannot("late")
    assert supervisor.kept == []
    assert supervisor.search.next_deadline() is None


def test_the_words_of_a_peer_that_is_no_link_do_no_harm(make: Callable[..., Supervisor], reactor: Reactor) -> None:
    """A load whose link ends without its process is given up at its deadline."""
    supervisor = make()
    supervisor.settled(1)
    supervisor.loader.theirs.socket.shutdown(socket.SHUT_RDWR)
    supervisor.turn()
    supervisor.turn()
    assert not supervisor.loader.killed
    supervisor.search.tick(supervisor.now + MEASURE_S + SLACK_S)
    assert supervisor.loaders[0].killed
