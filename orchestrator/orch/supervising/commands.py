"""What a replica of a command is started with: a runner, and in its charge the user's own server on a port."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from orch.command import fill
from orch.config import Config
from orch.errors import AddressInUse
from orch.supervising.launch import Launcher, Running
from orch.supervising.ports import HOST, Ports
from orch.supervising.process import WORKER_VARIABLE, Child, marks, session
from orch.supervising.replica import Replica

# Looking at the environment of all processes of a host takes some milliseconds: what is asked often may be this old.
FAMILIES_S: Final = 1.0


class CommandLauncher(Launcher):
    """Owns the ports, and what is known of each replica's processes."""

    runs_command = True

    def __init__(self, config: Config, pages_fd: int, environ: Mapping[str, str]) -> None:
        super().__init__(config, {}, pages_fd, environ)
        self.ports = Ports(config.first_port)
        self._families: dict[str, set[int]] = {}  # by mark
        self._sessions: dict[int, set[int]] = {}  # by the server's process
        self._looked_at = float("-inf")

    def address(self, replica: Replica) -> str | None:
        port = self.ports.of(replica.slot)
        return None if port is None else f"{HOST}:{port}"

    def start_child(self, replica: Replica, environ: Mapping[str, str]) -> Child:
        try:
            port = self.ports.take(replica.slot)
        except AddressInUse as err:
            raise OSError(0, str(err)) from err
        values = {"port": str(port), "replica": replica.id, "device": self.device_seen(replica)}
        own = {name: fill(value, values) for name, value in self._config.env.items()}
        child = Child("orch_worker.command", [], {**environ, **own, WORKER_VARIABLE: self.mark(replica)})
        child.link.send(spec=self._spec(replica, port, values))
        return child

    def _spec(self, replica: Replica, port: int, values: Mapping[str, str]) -> dict[str, Any]:
        config = self._config
        return {
            "replica": replica.id,
            "command": [fill(word, values) for word in config.command],
            "host": HOST,
            "port": port,
            "health": config.health,
            "health_interval_s": config.health_interval_s,
            "timeout_s": config.timeout_s,
        }

    def family(self, replica: Replica, running: Running, *, anew: bool = False) -> frozenset[int]:
        now = time.monotonic()
        if anew or now - self._looked_at >= FAMILIES_S:
            self._families, self._sessions, self._looked_at = marks(WORKER_VARIABLE), {}, now
        leader = running.server_pid
        if leader is not None and leader not in self._sessions:
            self._sessions[leader] = session(leader)
        marked = self._families.get(self.mark(replica), ())
        return frozenset({running.child.pid, *marked, *self._sessions.get(leader or 0, ())})

    def is_ready(self, replica: Replica) -> None:
        self.ports.serves(replica.slot)

    def leaves(self, child: Child) -> None:
        child.link.send(do="quiet")

    def told(self) -> str:
        return self.ports.told()


def launcher_for(config: Config, worker_spec: Mapping[str, Any], pages_fd: int, environ: Mapping[str, str]) -> Launcher:
    """Of workers, or of runners."""
    if config.command:
        return CommandLauncher(config, pages_fd, environ)
    return Launcher(config, worker_spec, pages_fd, environ)
