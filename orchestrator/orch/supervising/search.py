"""Finding the count of replicas that pays: measures what runs under load, and asks for one more as long as it pays."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from orch.config import Config
from orch.errors import ConfigError
from orch.link import Message
from orch.planning.paying import Again, Keep, Load, Try, decide, load_for, told
from orch.supervising.control import error_of
from orch.supervising.events import Event
from orch.supervising.output import Lines
from orch.supervising.process import Child
from orch.supervising.reactor import Reactor

NAME = "loader"  # of the process that makes the load, in logs
# Beyond what a measurement may take: starting the process, reading samples, perhaps importing torch for them.
SLACK_S = 60.0
# Measurements in a row that came to nothing, after which what is known has to do.
MAX_VOIDS = 3


class Owner(Protocol):
    """What a search tells its supervisor."""

    def report(self, event: Event) -> None:
        """Something for people."""

    def printed(self, name: str, line: str) -> None:
        """The process that makes the load has printed a line."""

    def wants(self, count: int) -> None:
        """So many replicas are to run; `settled` says that they do, `cannot` that they never will."""

    def found(self, count: int, because: Sequence[str]) -> None:
        """The search is over: so many replicas pay."""

    def unsearchable(self, error: ConfigError) -> None:
        """The search is over: no load can be made of this model."""


class Search:
    """Owns the process that makes the load, and what was measured.

    samples: the file with the model's warm-up samples. most: replicas that fit, to be set before the first `settled`.
    """

    def __init__(
        self,
        config: Config,
        endpoint: str,
        samples: str,
        environ: Mapping[str, str],
        reactor: Reactor,
        owner: Owner,
        clock: Callable[[], float],
        *,
        spawn: Callable[[str, Sequence[int], Mapping[str, str]], Child] = Child,
    ) -> None:
        self.most = 1
        self.over = False
        self._min_gain = config.min_gain
        self._begin = {"endpoint": endpoint, "samples": samples}
        # A load needs no GPU, and what decodes its answers must not take a piece of one.
        self._environ = {**environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
        self._reactor = reactor
        self._owner = owner
        self._clock = clock
        self._spawn = spawn
        self._child: Child | None = None
        self._lines: Lines
        self._wanted = 1
        self._load: Load | None = None  # of the measurement that runs
        self._until = 0.0
        self._history: list[tuple[int, float]] = []
        self._voids = 0

    # --- what the supervisor says --------------------------------------------------------------------------------

    def settled(self, count: int, max_batch_size: int, batch_s: float | None) -> None:
        """So many replicas are READY, and none is coming or going.

        batch_s: seconds that a full batch takes, as far as it is known.

        May be said at any time, and again: it begins something only if that count is wanted and not being measured.
        """
        if self.over or self._load is not None or count != self._wanted:
            return
        if not self._history and not self._voids:
            self._owner.report(Event("search", f"measuring how many replicas pay, up to {self.most}"))
        self._measure(load_for(count, max_batch_size, batch_s or 0.0))

    def disturbed(self, why: str) -> None:
        """A replica, or the balancer, has died: what is being measured is void. `settled` begins it anew."""
        if self._load is not None:
            self._void(why)

    def cannot(self, why: str) -> None:
        """The count that is wanted cannot be had. why: "a 3rd does not fit", without a full stop."""
        if not self.over:
            self._go_on(cannot=why)

    def tick(self, now: float) -> None:
        """Give up a measurement that does not end."""
        if self._load is not None and now >= self._until:
            self._again("the load did not end in time")

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._until if self._load is not None else None

    def close(self) -> None:
        """End the search where it is."""
        self.over = True
        self._load = None
        self._end_child()

    # --- measuring -----------------------------------------------------------------------------------------------

    def _measure(self, load: Load) -> None:
        self._load = load
        self._until = self._clock() + load.max_s + SLACK_S
        try:
            child = self._child or self._start()
        except OSError as err:  # no descriptor, process or memory to be had
            self._again(f"the load could not be started: {err.strerror}")
        else:
            child.link.send(do="measure", outstanding=load.outstanding, max_s=load.max_s)

    def _again(self, why: str) -> None:
        """It was the load's own failure: the replicas are as settled as before."""
        load = self._load
        self._void(why)
        if load is not None and not self.over:
            self._measure(load)

    def _void(self, why: str) -> None:
        self._load = None
        self._end_child()  # which ends the load at once
        self._voids += 1
        if self._voids < MAX_VOIDS:
            self._owner.report(Event("search", f"a measurement is void: {why}"))
            return
        self._owner.report(Event("warning", f"{MAX_VOIDS} measurements in a row are void, the last because {why}"))
        self._go_on(cannot=f"{self._wanted} could not be measured")

    def _measured(self, load: Load, rate: Message) -> None:
        self._load = None
        self._voids = 0
        self._history.append((self._wanted, rate["answers_per_s"]))
        text = told(self._history)
        if not rate["steady"]:
            text += f"; not steady within {load.max_s:g} s"
        if rate["errors"]:
            text += f"; {rate['errors']} errors, the first: {rate['error']}"
        self._owner.report(Event("search", text, data={**rate, "count": self._wanted}))
        self._go_on(load)

    def _go_on(self, load: Load | None = None, *, cannot: str | None = None) -> None:
        """load: the one that was measured last."""
        match decide(self._history, most=self.most, min_gain=self._min_gain, cannot=cannot):
            case Try(count):
                self._wanted = count
                self._owner.wants(count)
            case Again() if load is not None:
                self._measure(load)
            case Keep(count, because):
                self.close()
                self._owner.found(count, because)

    # --- the process ---------------------------------------------------------------------------------------------

    def _start(self) -> Child:
        child = self._child = self._spawn("orch.supervising.loader", (), self._environ)
        lines = self._lines = Lines(child.output.read, lambda line: self._owner.printed(NAME, line))
        self._reactor.add_lines(child.output, lines)
        self._reactor.add(child.link, self._read)
        self._reactor.add(child.pidfd, self._died)
        child.link.send(do="begin", **self._begin)
        return child

    def _read(self) -> None:
        child = self._child
        if child is None:
            return
        for message in child.link.receive():
            self._heard(message)
        if child is self._child and child.link.closed:
            self._reactor.remove(child.link)

    def _heard(self, message: Message) -> None:
        load = self._load
        if load is None:
            return
        if message["event"] == "measured" and message["answers"]:
            self._measured(load, message)
        elif message["event"] == "measured":
            self._again(f"the load got no answers ({message['error'] or 'none in time'})")
        elif isinstance(error := error_of(message), ConfigError):
            self.close()
            self._owner.unsearchable(error)
        else:
            self._again(str(error))

    def _died(self) -> None:
        child = self._child
        self._read()  # its last words
        if child is None or child is not self._child:
            return
        if self._load is not None:
            self._again("the process that makes the load died")
        else:
            self._end_child()

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.signal(signal.SIGKILL)
        child.reap()
        self._lines.drain()
        for fileobj in (child.link, child.output, child.pidfd):
            self._reactor.remove(fileobj)
        child.close()
