"""What `orch up` runs: plans, starts and watches the balancer and the replicas, answers the control socket, stops."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from orch import page, runtime
from orch.config import Config, check
from orch.errors import ConfigError, Exit, NotRunning, OrchError, StartFailed
from orch.link import Message
from orch.planning import gpu
from orch.planning.footprint import Footprint
from orch.supervising import balancer, control, mps
from orch.supervising.balancer import Balancer
from orch.supervising.commands import launcher_for
from orch.supervising.events import Event, Recent
from orch.supervising.fleet import Fleet
from orch.supervising.gateway import Gateways, settings_of
from orch.supervising.gpulock import GpuLocks
from orch.supervising.history import History
from orch.supervising.launch import spec_of
from orch.supervising.listeners import open_listeners
from orch.supervising.output import LogFiles
from orch.supervising.plans import Plans
from orch.supervising.process import base_environ
from orch.supervising.proxies import Proxies, Watchers, gateways_as_servers
from orch.supervising.proxy_writer import ProxyWriter
from orch.supervising.reactor import Reactor
from orch.supervising.readings import Readings
from orch.supervising.replica import Blame, Replica
from orch.supervising.roster import Roster
from orch.supervising.search import Search
from orch.supervising.service import Service
from orch.supervising.sharing import Sharing
from orch.supervising.status import Instance
from orch.supervising.warden import Warden

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A status waits this long for the balancer's figures, then goes without them.
STATS_S = 1.0
# How often the GPUs' locks are tried while another instance starts on them.
LOCK_RETRY_S = 0.25
# Deaths of replica 0 before it was ever READY, after which the instance counts as unable to start.
START_ATTEMPTS = 2

# A request number of stats that no caller waits for.
NOBODY = 0
# A balancer that leaves a question unanswered for longer counts as hung: it never works that long at one thing.
BALANCER_HUNG_S = 10.0
# Deaths of a balancer that never listened, after which the instance counts as unable to start.
BALANCER_ATTEMPTS = 5

Report = Callable[[Event], None]


class Supervisor:
    """Owns which replicas should exist, the plan, and the instance's files. It never touches a request."""

    def __init__(
        self,
        config: Config,
        report: Report,
        *,
        samples: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._samples = samples  # the file that the model's warm-up samples are to be written to
        self._show = report
        self._clock = clock
        self._started_at = time.time()
        self._model = config.title
        self._failure: OrchError | None = None
        self._bound = bool(config.command)  # the balancer listens, or there is none
        self._stopping = False
        self._replicas_stopping = False
        self._drain_until: float | None = None
        self._done = False
        self._unanswered = 0
        self._stats: Message = {}
        self._recent, self._history = Recent(), History()
        self._asking: dict[int, tuple[control.Caller, bool, float]] = {}  # callers of status, by request number
        self._num_asked = 0
        self._leavers: list[control.Caller] = []  # callers of down
        self._unanswered_since: float | None = None  # what the balancer was asked
        self._drain_overdue = False
        self._has_served = False

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop. Returns the exit code.

        Raises:
            OrchError: the instance could not be started; everything it had started is gone again.
        """
        with Reactor(STOP_SIGNALS) as self._reactor, gpu.session(), ExitStack() as cleanup:
            self._service = Service(os.environ)
            cleanup.callback(self._service.close)
            try:
                self._open(cleanup)
                while not self._done:
                    self._reactor.wait(self._timeout_s())
                    self._tick(self._clock())
                if self._failure is not None:
                    raise self._failure
            except OrchError as err:
                self._service.failed(err)
                raise
        return Exit.DRAIN_INCOMPLETE if self._unanswered or self._drain_overdue else Exit.OK

    def _open(self, cleanup: ExitStack) -> None:
        """Take the name, make the files, start the balancer; `cleanup` undoes it in the reverse order."""
        config = self._config
        self._plans = Plans(config)  # which refuses what cannot fit before anything is made
        self._logs = LogFiles(runtime.log_dir(config.name), config.log_max_bytes)
        cleanup.callback(self._logs.close)
        files = runtime.RuntimeDir(config.name)
        cleanup.callback(files.remove)
        self._listeners, told = open_listeners(config, files.path)
        if self._listeners is not None:
            cleanup.callback(self._listeners.close)
        if told:
            self.report(Event("warning", told))
        self._directory = files.path
        if config.replicas == "best" and self._samples is None:
            self._samples = str(files.path / "samples")
        if files.moved_from is not None:
            self.report(Event("warning", f"{files.moved_from} is too long for a socket; using {files.path}"))
        instance_id = uuid.uuid4().hex
        environ = base_environ(os.environ, instance_id)
        warden = Warden(instance_id, str(files.path), environ)
        cleanup.callback(warden.dismiss)  # which also ends what an interrupted stop has left
        pages_fd = page.create()
        cleanup.callback(os.close, pages_fd)
        self._server = control.Server(files.path / runtime.CONTROL, self._reactor, self._call)
        cleanup.callback(self._server.close)
        locks = GpuLocks(list(self._plans.gpu_names))
        cleanup.callback(locks.release)
        self._sharing = Sharing(config, self._plans.gpus, files.path, environ, self._reactor, self)
        cleanup.callback(self._sharing.stop)
        self._sharing.start(must=True)
        self._plans.share(self._sharing.max_clients)
        self.report(self._plans.event())
        launcher = launcher_for(config, spec_of(config, files.path, self._samples), pages_fd, environ)
        self._fleet = Fleet(config, launcher, self._reactor, self, self._clock)
        self._fleet.device_names, self._fleet.mps = self._plans.gpu_names, self._sharing.mps
        self._environ = environ
        self._roster = Roster(config, self._plans, self._fleet, locks, self, self._search)
        cleanup.callback(self._roster.close)
        public = {key: value for key, value in config.to_json().items() if key not in ("env", "set")}
        self._watchers = Watchers("command" if config.command else "model", self._clock, public)
        self._balancer = self._new_balancer(pages_fd)
        settings: dict[str, Any] = {}
        if self._listeners is not None:
            settings = settings_of(config, self._listeners, self._endpoint, str(files.path / runtime.CONTROL))
        self._gateways = Gateways(settings, self._listeners, environ, self._reactor, self, self._clock)
        socket_path = files.path / runtime.CONTROL
        self._proxy_writer = ProxyWriter(config, socket_path, environ, self._reactor, self, self._clock)
        cleanup.callback(self._proxy_writer.stop)
        self._instance = Instance(
            config,
            self._endpoint,
            self._logs.directory,
            self._started_at,
            self._plans,
            self._fleet,
            self._roster,
            self._balancer,
            self._gateways,
            self._sharing,
            self._watchers,
            Readings(self._clock),
        )

    def _new_balancer(self, pages_fd: int) -> Balancer | Proxies:
        """Of a model; before a command there are proxies, which others run."""
        if self._config.command:
            return Proxies(self._fleet, self._watchers, self, self._clock)
        settings = balancer.settings_of(self._config, self._directory, pinned_memory=bool(self._plans.gpu_names))
        return Balancer(settings, pages_fd, self._environ, self._reactor, self, self._clock)

    def _search(self, roster: Roster) -> Search:
        """For `--replicas best`, once replica 0 is measured."""
        config = self._config
        assert self._samples is not None
        return Search(config, self._endpoint, self._samples, self._environ, self._reactor, roster, self._clock)

    def mps_died(self, what: str) -> None:
        """Its clients are lost: end them, start another daemon, and let them come back."""
        self.report(Event("warning", f"{what} died: all replicas on its GPUs are started again"))
        for device in self._plans.gpu_names:
            self._fleet.sacrifice(device, f"{what} died")
        self._sharing.stop()
        if not self._stopping:
            self._sharing.start(must=False)
        self._fleet.mps = self._sharing.mps

    @property
    def _endpoint(self) -> str:
        return runtime.front_endpoint(Path(self._directory))

    def _timeout_s(self) -> float | None:
        parts = (self._fleet, self._balancer, self._roster, self._gateways, self._service, self._proxy_writer)
        times = [*(each.next_deadline() for each in parts), self._drain_until]
        times += [at for *_, at in self._asking.values()]
        if self._roster.waits_for_gpus:
            times.append(self._clock() + LOCK_RETRY_S)
        soonest = min((at for at in times if at is not None), default=None)
        return None if soonest is None else max(0.0, soonest - self._clock())

    def _tick(self, now: float) -> None:
        while self._reactor.signals:
            self._stop_signal(self._reactor.signals.pop(0))
        if self._drain_until is not None and now >= self._drain_until:
            self.report(Event("warning", "the drain deadline passed with requests unanswered"))
            self._drain_overdue = True
            if isinstance(self._balancer, Proxies):
                self._unanswered = self._balancer.num_busy
            self._stop_replicas()
        if self._bound and not self._stopping:
            self._roster.tick(now)
        self._fleet.tick(now)
        if not self._stopping:
            self._roster.check()
        self._balancer.tick(now)
        self._gateways.send_models([self._instance.model_facts(stopping=self._stopping)])
        self._gateways.tick(now)
        self._proxy_writer.tick(now)
        if not self._config.command:
            draining = self._stopping and not self._gateways.outlived
            self._watchers.set(gateways_as_servers(self._gateways.facts, draining=draining))
        if self._service.asks(now):
            self._balancer.send(do="stats", seq=NOBODY)
        self._service.tick(now, self._roster, self._fleet, self._stats, self._drain_until, stopping=self._stopping)
        for number, (caller, recent, at) in list(self._asking.items()):
            if now >= at:
                del self._asking[number]
                caller.answer(**self._status(recent=recent))
        self._server.flush()
        if self._replicas_stopping and self._fleet.all_gone and not self._balancer.stopped:
            self._balancer.stop()
            if self._balancer.pid is None:
                self._stop_gateways()

    # --- starting ------------------------------------------------------------------------------------------------

    def became_ready(self, replica: Replica) -> None:
        """The roster plans by it."""
        if not self._stopping:
            self._roster.became_ready(replica)

    def cost_on(self, device: str) -> Footprint | None:
        """The plan's."""
        return self._plans.cost_on(device)

    def ran_out(self, replica: Replica, cost: Footprint | None) -> None:
        """The roster plans anew."""
        if not self._stopping:
            self._roster.ran_out(replica, cost)

    def no_room(self, replica: Replica, free_bytes: int | None) -> None:
        """The roster plans anew."""
        if not self._stopping:
            self._roster.no_room(replica, free_bytes)

    def all_served(self, num_ready: int) -> None:
        """Tell the user."""
        count = f"{num_ready} replica{'s' if num_ready > 1 else ''}"
        took = "" if self._has_served else f" (after {time.time() - self._started_at:.1f} s)"
        self._has_served = True
        addresses = self._balancer.addresses if isinstance(self._balancer, Proxies) else []
        where = ", ".join(addresses) or self._endpoint
        text = f"{self._config.name} serves {self._model} with {count} at {where}{took}"
        facts = {"endpoint": self._endpoint, "replicas": num_ready, "http": self._gateways.url}
        facts |= {"servers": [f"http://{each}{self._config.health or '/'}" for each in addresses]}
        facts |= {"model": self._model, "declares": bool(self._fleet.declared.get("inputs"))}
        self.report(Event("ready", text, data=facts))

    def failed(self, error: OrchError) -> None:
        """The instance cannot start: take down what runs, then raise it."""
        if self._failure is None:
            self._failure = error
            self._stopping = True
            self._stop_replicas()

    # --- what happens --------------------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """Show it, and keep it: in the supervisor's log, and among the latest."""
        self._recent.note(event, time.time())
        self._logs.write("supervisor", event.text)
        self._show(event)

    def printed(self, name: str, line: str) -> None:
        """A child's line: into its file, and to whoever looks on."""
        self._logs.write(name, line)
        if name != mps.LOG_NAME:  # a line for every connection: for whoever looks for a fault, not for a terminal
            self._show(Event("log", line, name))

    def changed(self) -> None:
        """The balancer is told the whole set of workers."""
        self._balancer.send_workers(self._fleet.workers())

    def wants_loads(self) -> None:
        """The balancer is asked; its answer goes to the fleet."""
        now = self._clock()
        if self._unanswered_since is None:
            self._unanswered_since = now
        elif now - self._unanswered_since >= BALANCER_HUNG_S:
            self._unanswered_since = None
            self.report(Event("warning", "the balancer does not answer: killed, and started again"))
            self._balancer.kill()
        self._balancer.send(do="stats", seq=NOBODY)

    def lost(self, replica: Replica, blame: Blame, tickets: tuple[int, ...]) -> None:
        """The balancer is told why, which decides what becomes of the requests."""
        self._balancer.send(
            do="lost",
            replica=replica.id,
            generation=replica.generation,
            cause=blame.text,
            counts=blame.counts,
            convicts=blame.convicts,
            group=blame.group,
            running=list(tickets),
        )
        if not self._stopping:
            self._roster.lost(replica)
        if not self._roster.ever_ready and not self._stopping:
            code = replica.last_exit_code
            if code == Exit.BAD_CONFIG:
                self.failed(StartFailed(replica.reason, Exit.BAD_CONFIG))
            elif replica.flaps >= START_ATTEMPTS:
                what = self._config.target or self._model
                text = f"{what} could not be started: {replica.reason} (log: {self._logs.of(replica.id)})"
                told = code == Exit.OUT_OF_MEMORY or (code == Exit.ADDRESS_IN_USE and self._config.command)
                self.failed(StartFailed(text, Exit(code) if told else Exit.MODEL_LOAD))

    def balancer_said(self, message: Message) -> None:
        """One message of the balancer."""
        match message.get("event"):
            case "bound":
                self._bound = True
            case "failed" if not self._bound:
                self.failed(control.error_of(message))
            case "failed":  # it will be tried again: what holds the address now may let go of it
                self.report(Event("warning", f"the balancer cannot start: {message['error']}"))
            case "gave_up":
                self._fleet.give_up(message["replica"], message["generation"])
            case "drained":
                self._fleet.drained(message["replica"], message["generation"])
            case "empty":
                self._stop_replicas()
            case "stopped":
                self._unanswered, self._drain_overdue = message["unanswered"], False
                self._stats = message
            case "stats":
                self._stats = message
                self._unanswered_since = None
                self._service.answered(self._clock())
                self._fleet.look_for_stalls(message["workers"])
                self._history.note(message, self._clock())
                caller, recent, _ = self._asking.pop(message["seq"], (None, False, 0.0))
                if caller is not None:
                    caller.answer(**self._status(recent=recent))

    def balancer_died(self, how: str) -> None:
        """It is started again, unless it was told to stop."""
        self._unanswered_since = None
        if self._balancer.stopped:
            self._stop_gateways()
        elif not self._bound and self._balancer.restarts >= BALANCER_ATTEMPTS:
            self.failed(
                StartFailed(f"the balancer {how}, again and again (log: {self._logs.of('balancer')})", Exit.BUG)
            )
        elif self._failure is None:
            self.report(Event("balancer", f"the balancer {how}: started again; clients resend what is unanswered"))
            if not self._stopping:
                self._roster.disturbed("the balancer died")

    def gateway_failed(self, message: Message) -> None:
        """The first time it is an error of the settings; later, what was there before may come back."""
        if not self._gateways.ever_bound:
            self.failed(control.error_of(message))
        else:
            self.report(Event("warning", f"a gateway cannot start: {message['error']}"))

    def gateway_died(self, name: str, how: str) -> None:
        """It is started again; its clients connect again."""
        if self._failure is None:
            self.report(Event("warning", f"gateway {name} {how}: started again"))

    def gateways_gone(self) -> None:
        """The last to go, after every answer."""
        self._finish()

    # --- stopping ------------------------------------------------------------------------------------------------

    def _stop_signal(self, number: int) -> None:
        if self._service.reloads(number):
            self._reload()
        elif not self._stopping:
            self._stop(f"{signal.Signals(number).name}: finishing what is accepted", None)
        elif not self._replicas_stopping:
            self.report(Event("warning", "asked again: not waiting for the queue"))
            self._stop_replicas()
        else:
            self._fleet.hurry()

    def _stop(self, why: str, drain_timeout_s: float | None) -> None:
        """Admit no more and finish what is accepted; the balancer says when nothing is left."""
        if self._stopping:
            return
        self._stopping = True
        self._roster.end_search()
        timeout_s = self._config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        self._drain_until = self._clock() + timeout_s
        self.report(Event("drain", f"{why} (at most {timeout_s:g} s)", data={"timeout_s": timeout_s}))
        self._gateways.drain(self._balancer.drain)

    def _stop_replicas(self) -> None:
        if self._replicas_stopping:
            return
        self._replicas_stopping = True
        self._drain_until = None
        self._roster.close()
        for replica in list(self._fleet.replicas.values()):
            self._fleet.stop(replica, comes_back=False, drain_timeout_s=0.0)

    def _stop_gateways(self) -> None:
        """After the balancer, which has answered everything by now."""
        self._gateways.stop()
        if self._gateways.all_gone:
            self._finish()

    def _finish(self) -> None:
        self._done = True
        facts = {"unanswered": self._unanswered, "queue": self._instance.queue_facts(self._stats)}
        for caller in self._leavers:
            caller.answer(**facts)
        if self._failure is None:
            requests = "request" if self._unanswered == 1 else "requests"
            left = f" with {self._unanswered} accepted {requests} unanswered" if self._unanswered else ""
            self.report(Event("stopped", f"{self._config.name} stopped{left}", data=facts))

    # --- the command line ----------------------------------------------------------------------------------------

    def _call(self, caller: control.Caller, call: str, arguments: Message) -> None:
        match call:
            case "status":
                self._num_asked += 1
                self._asking[self._num_asked] = (caller, bool(arguments.get("recent")), self._clock() + STATS_S)
                self._balancer.send(do="stats", seq=self._num_asked)
            case "servers":
                self._watchers.ask(caller, arguments)
            case "applied":
                self._watchers.applied(caller, arguments)
            case "scale":
                caller.answer(**self._scale(arguments.get("replicas")))
            case "restart":
                restarting = self._restart(arguments.get("replica"))
                if arguments.get("wait"):
                    fleet = self._fleet.replicas
                    self._service.restarts(caller, {each: fleet[each].generation for each in restarting["restarting"]})
                else:
                    caller.answer(**restarting)
            case "down":
                timeout_s = arguments.get("drain_timeout_s")
                if timeout_s is not None:
                    timeout_s = check("drain_timeout_s", timeout_s, "the call")
                self._leavers.append(caller)
                self._stop("orch down: finishing what is accepted", timeout_s)
            case _:
                raise ConfigError(f"this supervisor knows no call {call!r}")

    def _scale(self, wanted: Any) -> dict[str, Any]:
        if type(wanted) is not int or wanted < 1:
            raise ConfigError(f"replicas = {wanted!r}; it must be a whole number from 1")
        self._refuse_while_searching("scaled")
        if self._stopping or not self._roster.ever_ready:
            raise NotRunning(f"{self._config.name} is {self._state()}; scale it when it is READY")
        have = self._roster.scale(wanted)
        return {"replicas": wanted, "text": f"{self._config.name}: {have} -> {wanted} replicas"}

    def _restart(self, replica_id: Any) -> dict[str, Any]:
        if replica_id is not None and (not isinstance(replica_id, str) or replica_id not in self._fleet.replicas):
            raise ConfigError(f"there is no replica {replica_id!r}; there are {', '.join(self._fleet.replicas)}")
        self._refuse_while_searching("restarted")
        if self._stopping:
            raise NotRunning(f"{self._config.name} is {self._state()}; nothing is restarted any more")
        chosen = [replica_id] if replica_id is not None else list(self._fleet.replicas)
        self._roster.rolling.ask(chosen)
        if replica_id is None:
            self._service.restarts()
        return {"restarting": chosen, "text": f"restarting {', then '.join(chosen)}; see orch status"}

    def _reload(self) -> None:
        """As a service manager asks for it: it hears of the end, and whoever reads the log of a refusal."""
        try:
            self.report(Event("restart", f"SIGHUP: {self._restart(None)['text']}"))
        except OrchError as err:
            self.report(Event("warning", f"SIGHUP: {err}"))

    def _refuse_while_searching(self, what: str) -> None:
        if self._roster.search is not None:
            text = "is measuring how many replicas pay; nothing is"
            raise NotRunning(f"{self._config.name} {text} {what} meanwhile (orch status shows when it is READY)")

    def _state(self) -> str:
        return self._instance.state(stopping=self._stopping)

    def _status(self, *, recent: bool = False) -> dict[str, Any]:
        """All there is to tell. recent: with the latest events and the history of the last minutes."""
        latest: dict[str, Any] = {}
        if recent:
            latest = {"events": self._recent.facts, "history": self._history.facts(self._clock())}
        return {**self._instance.facts(self._stats, self._clock(), stopping=self._stopping), **latest}
