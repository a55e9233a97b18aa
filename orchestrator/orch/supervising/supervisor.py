"""What `orch up` runs: plans, starts and watches the balancer and the replicas, answers the control socket, stops."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orch import page, runtime
from orch.config import Config
from orch.errors import ConfigError, DoesNotFit, Exit, NotRunning, OrchError, StartFailed
from orch.link import Message
from orch.planning import gpu, planner
from orch.planning.devices import gpus_for
from orch.planning.footprint import Footprint, declared
from orch.planning.host import read_host
from orch.planning.planner import Plan, PlanRequest
from orch.supervising import control, measure
from orch.supervising.balancer import Balancer
from orch.supervising.events import Event
from orch.supervising.fleet import Fleet
from orch.supervising.gpulock import GpuLocks
from orch.supervising.output import LogFiles
from orch.supervising.process import base_environ
from orch.supervising.reactor import Reactor
from orch.supervising.replica import Blame, Replica, State
from orch.supervising.warden import Warden

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A status waits this long for the balancer's figures, then goes without them.
STATS_S = 1.0
# How often the GPUs' locks are tried while another instance starts on them.
LOCK_RETRY_S = 0.25

Report = Callable[[Event], None]


class Supervisor:
    """Owns which replicas should exist, the plan, and the instance's files. It never touches a request."""

    def __init__(
        self, config: Config, report: Report = lambda event: None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._show = report
        self._clock = clock
        self._failure: OrchError | None = None
        self._stopping = False
        self._replicas_stopping = False
        self._drain_until: float | None = None
        self._served = False  # every planned replica has had its turn
        self._ever_ready = False
        self._bound = False
        self._done = False
        self._unanswered = 0
        self._stats: Message = {}
        self._asking: dict[int, tuple[control.Caller, float]] = {}  # callers of status, by request number
        self._num_asked = 0
        self._leavers: list[control.Caller] = []  # callers of down
        self._restarting: list[str] = []

    # --- life ----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop. Returns the exit code.

        Raises:
            OrchError: the instance could not be started; everything it had started is gone again.
        """
        with Reactor(STOP_SIGNALS) as self._reactor, gpu.session():
            self._open()
            try:
                while not self._done:
                    self._reactor.wait(self._timeout_s())
                    self._tick(self._clock())
            finally:
                self._close()
        if self._failure is not None:
            raise self._failure
        return Exit.DRAIN_INCOMPLETE if self._unanswered else Exit.OK

    def _open(self) -> None:
        config = self._config
        gpus = gpus_for(config)
        self._plan = planner.plan(self._plan_request(gpus, None, config.replicas))
        self._logs = LogFiles(runtime.log_dir(config.name), config.log_max_bytes)
        self._runtime = runtime.RuntimeDir(config.name)
        directory = self._runtime.path
        if self._runtime.moved_from is not None:
            self.report(Event("warning", f"{self._runtime.moved_from} is too long for a socket; using {directory}"))
        instance_id = uuid.uuid4().hex
        environ = base_environ(os.environ, instance_id)
        self._started_at = time.time()
        self._model = config.target.rpartition(":")[2]
        self._warden = Warden(instance_id, str(directory), environ)
        self._pages_fd = page.create()
        self._server = control.Server(directory / runtime.CONTROL, self._reactor, self._call)
        worker_spec = {
            "endpoint": runtime.back_endpoint(directory),
            "target": config.target,
            "model": self._model,
            "max_batch_size": config.max_batch_size,
            "max_batch_wait_s": config.max_batch_wait_s,
            "settings": dict(config.set),
        }
        self._fleet = Fleet(config, worker_spec, self._pages_fd, environ, self._reactor, self, self._clock)
        self._fleet.threads = self._plan.threads_per_replica
        self._fleet.starting_allowed = False  # until the balancer listens and the GPUs are ours to plan on
        self._gpu_locks = GpuLocks([each.uuid for each in gpus])
        self._report_plan(self._plan)
        for device in _devices(self._plan)[:1]:  # replica 0, by which the others are planned
            self._fleet.add(device)
        self._balancer = Balancer(
            self._balancer_settings(directory), self._pages_fd, environ, self._reactor, self, self._clock
        )

    def _balancer_settings(self, directory: Path) -> dict[str, Any]:
        config = self._config
        return {
            "front": [runtime.front_endpoint(directory), *([config.listen] if config.listen else [])],
            "back": runtime.back_endpoint(directory),
            "models": [self._model],
            "queue_limit": config.queue_limit,
            "queue_bytes": config.queue_bytes,
            "client_queue_limit": config.client_queue_limit,
            "max_attempts": config.max_attempts,
            "max_payload_bytes": config.max_payload_bytes,
        }

    def _close(self) -> None:
        self._server.close()
        self._warden.dismiss()  # it also ends what an interrupted stop has left
        self._gpu_locks.release()
        self._runtime.remove()
        os.close(self._pages_fd)
        self._logs.close()

    def _timeout_s(self) -> float | None:
        times = [self._fleet.next_deadline(), self._balancer.next_deadline(), self._drain_until]
        times += [at for _, at in self._asking.values()]
        if not self._fleet.starting_allowed and self._bound and not self._stopping:
            times.append(self._clock() + LOCK_RETRY_S)
        soonest = min((at for at in times if at is not None), default=None)
        return None if soonest is None else max(0.0, soonest - self._clock())

    def _tick(self, now: float) -> None:
        while self._reactor.signals:
            self._stop_signal(self._reactor.signals.pop(0))
        if self._drain_until is not None and now >= self._drain_until:
            self.report(Event("warning", "the drain deadline passed with requests unanswered"))
            self._stop_replicas()
        self._allow_starts()
        self._fleet.tick(now)
        self._balancer.tick(now)
        for number, (caller, at) in list(self._asking.items()):
            if now >= at:
                del self._asking[number]
                caller.answer(**self._status())
        self._next_restart()
        self._server.flush()
        if self._replicas_stopping and self._fleet.all_gone and not self._balancer.stopped:
            self._balancer.stop()
            if self._balancer.pid is None:
                self._finish()

    # --- what the fleet tells ------------------------------------------------------------------------------------

    def report(self, event: Event) -> None:
        """Show it, and keep it in the supervisor's log."""
        if event.kind != "log":
            self._logs.write("supervisor", event.text)
        self._show(event)

    def printed(self, name: str, line: str) -> None:
        """A child's line: into its file, and to whoever looks on."""
        self._logs.write(name, line)
        self._show(Event("log", line, name))

    def changed(self) -> None:
        """The balancer is told the whole set of workers."""
        self._balancer.send_workers(self._fleet.workers())

    def lost(self, replica: Replica, blame: Blame, tickets: tuple[int, ...]) -> None:
        """The balancer is told why, which decides what becomes of the requests."""
        self._balancer.send(
            do="lost",
            replica=replica.id,
            generation=replica.generation,
            cause=blame.text,
            counts=blame.counts,
            convicts=blame.convicts,
            running=list(tickets),
        )
        if replica.state is State.QUARANTINED or not (self._ever_ready or self._stopping):
            self._give_up_on(replica)
        self._check_served()

    def _give_up_on(self, replica: Replica) -> None:
        """A replica will not come back. If none was ever READY, the instance cannot start."""
        if self._ever_ready or self._stopping or replica.state not in (State.QUARANTINED, State.BACKOFF):
            return
        code = replica.last_exit_code
        hopeless = code == Exit.BAD_CONFIG or replica.flaps >= 2
        if hopeless:
            known = code in (Exit.BAD_CONFIG, Exit.OUT_OF_MEMORY)
            self._fail(StartFailed(replica.reason, Exit(code) if known else Exit.MODEL_LOAD))

    def became_ready(self, replica: Replica) -> None:
        """After replica 0: plan the others from what it measured."""
        first = not self._ever_ready
        self._ever_ready = True
        if first and not self._stopping:
            self._plan_the_others(replica)
        self._check_served()

    def _plan_the_others(self, replica: Replica) -> None:
        measured = self._fleet.footprint(replica.id)
        try:
            self._plan = planner.plan(self._plan_request(gpus_for(self._config), measured, self._config.replicas))
        except DoesNotFit as err:
            self._fail(err)
            return
        self._report_plan(self._plan)
        self._fill(self._plan)

    def _fill(self, plan: Plan) -> None:
        """Add the replicas that a plan has and the fleet has not."""
        self._fleet.threads = plan.threads_per_replica
        missing = _devices(plan)
        for existing in self._fleet.replicas.values():
            if existing.device in missing:
                missing.remove(existing.device)
        for device in missing:
            if len(self._fleet.replicas) < plan.total:
                self._fleet.add(device)

    def _check_served(self) -> None:
        ready, quarantined = self._fleet.in_state(State.READY), self._fleet.in_state(State.QUARANTINED)
        if self._served or self._stopping or not ready or len(ready) + len(quarantined) < len(self._fleet.replicas):
            return
        self._served = True
        self._gpu_locks.release()
        endpoint = runtime.front_endpoint(self._runtime.path)
        took_s = time.time() - self._started_at
        text = f"{self._config.name} serves {self._model} with {len(ready)} replicas at {endpoint} after {took_s:.1f} s"
        self.report(Event("ready", text, data={"endpoint": endpoint, "replicas": len(ready)}))

    # --- what the balancer tells ---------------------------------------------------------------------------------

    def balancer_said(self, message: Message) -> None:
        """One message of the balancer."""
        match message.get("event"):
            case "bound":
                self._bound = True
            case "failed":
                self._fail(control.error_of(message))
            case "drained":
                self._fleet.drained(message["replica"], message["generation"])
            case "empty":
                self._stop_replicas()
            case "stopped":
                self._unanswered = message["unanswered"]
                self._stats = message
            case "stats":
                self._stats = message
                caller, _ = self._asking.pop(message["seq"], (None, 0.0))
                if caller is not None:
                    caller.answer(**self._status())

    def balancer_died(self, how: str) -> None:
        """Start another, unless it was told to stop."""
        if self._balancer.stopped:
            self._finish()
        elif not self._stopping or self._ever_ready:
            self.report(
                Event("balancer", f"the balancer {how} and is started again; clients resend what is unanswered")
            )

    # --- starting and stopping -----------------------------------------------------------------------------------

    def _allow_starts(self) -> None:
        if self._fleet.starting_allowed or not self._bound or self._stopping:
            return
        if self._gpu_locks.acquire():
            self._fleet.starting_allowed = True
        elif not self._waiting_for_gpus:
            self._waiting_for_gpus = True
            self.report(Event("warning", "another instance is starting on the same GPU; waiting until it is done"))

    _waiting_for_gpus = False

    def _stop_signal(self, number: int) -> None:
        if not self._stopping:
            self._stop(f"{signal.Signals(number).name}: finishing what is accepted", None)
        elif not self._replicas_stopping:
            self.report(Event("warning", "asked again: not waiting for the queue"))
            self._stop_replicas()
        else:
            self._fleet.hurry()

    def _stop(self, why: str, drain_timeout_s: float | None) -> None:
        if self._stopping:
            return
        self._stopping = True
        timeout_s = self._config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        self._drain_until = self._clock() + timeout_s
        self.report(Event("drain", f"{why} (at most {timeout_s:g} s)", data={"timeout_s": timeout_s}))
        self._balancer.drain()

    def _stop_replicas(self) -> None:
        if self._replicas_stopping:
            return
        self._replicas_stopping = True
        self._drain_until = None
        self._fleet.starting_allowed = False
        for replica in list(self._fleet.replicas.values()):
            self._fleet.stop(replica, comes_back=False, drain_timeout_s=0.0)

    def _fail(self, error: OrchError) -> None:
        """The instance cannot start: take down what runs, then raise it."""
        if self._failure is None:
            self._failure = error
            self._stopping = True
            self._stop_replicas()

    def _finish(self) -> None:
        self._done = True
        result = {"unanswered": self._unanswered, "queue": self._stats.get("queue", {})}
        for caller in self._leavers:
            caller.answer(**result)
        if self._failure is None:
            text = f"{self._config.name} stopped" + (
                f" with {self._unanswered} accepted requests unanswered" if self._unanswered else ""
            )
            self.report(Event("stopped", text, data=result))

    # --- the command line ----------------------------------------------------------------------------------------

    def _call(self, caller: control.Caller, call: str, arguments: Message) -> None:
        match call:
            case "status":
                self._num_asked += 1
                self._asking[self._num_asked] = (caller, self._clock() + STATS_S)
                self._balancer.send(do="stats", seq=self._num_asked)
            case "scale":
                caller.answer(**self._scale(arguments.get("replicas")))
            case "restart":
                caller.answer(**self._restart(arguments.get("replica")))
            case "down":
                self._leavers.append(caller)
                self._stop("orch down: finishing what is accepted", arguments.get("drain_timeout_s"))
            case _:
                raise ConfigError(f"this supervisor knows no call {call!r}")

    def _scale(self, wanted: Any) -> dict[str, Any]:
        if type(wanted) is not int or wanted < 1:
            raise ConfigError(f"replicas = {wanted!r}; it must be a whole number from 1")
        if self._stopping or not self._ever_ready:
            raise NotRunning(f"{self._config.name} is {self._state()}; scale it when it is READY")
        have = len(self._fleet.replicas)
        if wanted > have:
            measured = next(filter(None, (self._fleet.footprint(each) for each in self._fleet.replicas)), None)
            self._plan = planner.plan(self._plan_request(gpus_for(self._config), measured, wanted))
            self._served = False
            self._fill(self._plan)
        else:
            # The youngest leave first; those that do not run go before those that do.
            order = sorted(self._fleet.replicas.values(), key=lambda each: (each.state is State.READY, -each.slot))
            for replica in order[: have - wanted]:
                self._fleet.stop(replica, comes_back=False)
        text = f"{have} -> {wanted} replicas"
        self.report(Event("plan", text, data={"total": wanted, "because": ()}))
        return {"replicas": wanted, "text": text}

    def _restart(self, replica_id: Any) -> dict[str, Any]:
        if replica_id is not None and replica_id not in self._fleet.replicas:
            there = ", ".join(self._fleet.replicas)
            raise ConfigError(f"there is no replica {replica_id!r}; there are {there}")
        chosen = [replica_id] if replica_id is not None else list(self._fleet.replicas)
        self._restarting += [each for each in chosen if each not in self._restarting]
        self._next_restart()
        return {"restarting": chosen, "text": f"restarting {', '.join(chosen)}, one after another"}

    def _next_restart(self) -> None:
        """One at a time, and only while all others that can serve do."""
        busy = self._fleet.in_state(State.DRAINING, State.PLANNED, State.STARTING, State.LOADING)
        if self._restarting and not busy and not self._stopping:
            replica = self._fleet.replicas.get(self._restarting.pop(0))
            if replica is not None:
                self._fleet.stop(replica, comes_back=True)

    def _state(self) -> str:
        if self._stopping:
            return "DRAINING"
        if not self._served:
            return "STARTING"
        return "READY" if len(self._fleet.in_state(State.READY)) == len(self._fleet.replicas) else "DEGRADED"

    def _status(self) -> dict[str, Any]:
        config, stats = self._config, self._stats
        workers = stats.get("workers", {})
        queue = {"queued": 0, "outstanding": 0, "answered": 0, "rejected": 0, "retried": 0, **stats.get("queue", {})}
        return {
            "name": config.name,
            "state": self._state(),
            "endpoint": runtime.front_endpoint(self._runtime.path),
            "listen": config.listen,
            "model": self._model,
            "target": config.target,
            "pid": os.getpid(),
            "started_at": self._started_at,
            "uptime_s": time.time() - self._started_at,
            "plan": {
                "total": self._plan.total,
                "limit": str(self._plan.limit),
                "because": list(self._plan.because),
                "threads_per_replica": self._plan.threads_per_replica,
            },
            "balancer": {"pid": self._balancer.pid, "restarts": self._balancer.restarts},
            "replicas": [self._replica_status(each, workers.get(each.id, {})) for each in self._by_number()],
            "queue": queue,
            "logs": str(self._logs.directory),
        }

    def _by_number(self) -> list[Replica]:
        return sorted(self._fleet.replicas.values(), key=lambda each: each.slot)

    def _replica_status(self, replica: Replica, load: Message) -> dict[str, Any]:
        running = self._fleet.running.get(replica.id)
        footprint = self._fleet.footprint(replica.id)
        return {
            "id": replica.id,
            "pid": running.child.pid if running is not None else None,
            "state": str(replica.state),
            "device": replica.device,
            "outstanding": load.get("outstanding", 0),
            "answered": load.get("answered", 0),
            "restarts": replica.restarts,
            "footprint_bytes": self._fleet.footprint_bytes(replica.id),
            "host_bytes": footprint.host_bytes if footprint is not None else None,
            "measured": str(footprint.how) if footprint is not None else None,
            "reason": replica.reason,
        }

    # --- planning ------------------------------------------------------------------------------------------------

    def _plan_request(self, gpus: tuple[Any, ...], measured: Footprint | None, wanted: Any) -> PlanRequest:
        config = self._config
        footprint = measured
        if config.vram_per_replica_bytes is not None and gpus:
            footprint = declared(config.vram_per_replica_bytes, measured.host_bytes if measured else None)
        fleet = getattr(self, "_fleet", None)
        ours = {}
        if footprint is not None and fleet is not None:
            ours = {each.uuid: planner.held_by_us(each, fleet.pids, footprint.device_bytes) for each in gpus}
        return PlanRequest(
            host=read_host(),
            gpus=gpus,
            footprint=footprint,
            wanted=wanted,
            gpu_utilization=config.gpu_utilization,
            ours_bytes=ours,
        )

    def _report_plan(self, plan: Plan) -> None:
        total = self._config.replicas if self._config.replicas != "auto" else None
        if plan.limit is not planner.Limit.PROBE:
            total = plan.total
        text = (
            f"plan: {plan.total} replicas (limit: {plan.limit})"
            if plan.total != 1
            else f"plan: 1 replica (limit: {plan.limit})"
        )
        self.report(Event("plan", text, data={"total": total, "limit": str(plan.limit), "because": plan.because}))


def _devices(plan: Plan) -> list[str]:
    """One entry for each replica: its GPU's UUID, or "cpu"."""
    if not plan.placement:
        return [measure.CPU] * plan.total
    return [uuid_ for uuid_, count in plan.placement for _ in range(count)]
