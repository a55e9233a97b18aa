"""Keeps a proxy true to a running instance: a subscriber of its supervisor's `servers`.

`python -P -m orch_deploy.watch LINK_FD` is the same as a child of the supervisor, for `orch up --nginx FILE`.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from orch import runtime
from orch.child import become_child, first_messages
from orch.config import Config
from orch.errors import Exit, NotRunning, OrchError
from orch.link import Link, Message
from orch.supervising.control import error_of
from orch_deploy import told
from orch_deploy.routing import PROXIES, Means, Proxy
from orch_deploy.site import Site

# Changes that come within so short a time make one reload; a draining replica waits for us for 5 s at most.
SETTLE_S: Final = 0.05
SETTLE_MAX_S: Final = 0.25
# What a proxy has refused is tried again: a certificate or a program may be there later.
AGAIN_S: Final = 5.0
BACKOFF_S: Final = (0.1, 0.25, 0.5, 1.0, 2.0)
CONNECT_S: Final = 5.0

Say = Callable[[str], None]


class Watch:
    """Owns one connection to the supervisor at a time, and what of its word the proxy has not taken yet.

    find: the path of the control socket, while there is one (NotRunning). supervisor: whose child we are, if so.
    """

    def __init__(
        self, config: Config, proxy: Proxy, find: Callable[[], Path], say: Say, supervisor: Link | None = None
    ) -> None:
        self._config, self._proxy, self._find, self._say = config, proxy, find, say
        self._supervisor = supervisor
        self._stopped = False
        self._lost = 0  # connections in a row that came to nothing
        self._said = ""

    def run(self) -> int:
        """Until told to stop; without a supervisor to tell us, until interrupted."""
        while not self._stopped:
            try:
                with self._connect() as link_socket:
                    self._follow(Link(link_socket))
                self._complain("the instance is gone; the file stays as it is until it is back")
            except (NotRunning, OSError) as err:
                self._complain(str(err))
            self._wait(None, BACKOFF_S[min(self._lost, len(BACKOFF_S) - 1)])
            self._lost += 1
        return Exit.OK

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(CONNECT_S)
            connection.connect(str(self._find()))
        except BaseException:
            connection.close()
            raise
        return connection

    def _follow(self, link: Link) -> None:
        link.send(call="servers", watch=True)
        latest: Message | None = None  # what the proxy does not route by yet
        try_at = 0.0
        while not self._stopped:
            self._wait(link, None if latest is None else max(0.0, try_at - time.monotonic()))
            news = self._news(link)
            if news is not None:
                latest, try_at, self._lost = news, 0.0, 0
            if latest is not None and time.monotonic() >= try_at and not self._stopped:
                if self._apply(told.site_of(latest, self._config)):
                    link.send(call="applied", revision=latest["revision"])
                    latest = None
                else:
                    try_at = time.monotonic() + AGAIN_S
            if link.closed:
                return

    def _news(self, link: Link) -> Message | None:
        """The last whole set that has come, with those that follow at once."""
        latest = None
        deadline = time.monotonic() + SETTLE_MAX_S
        while True:
            found = [each for message in link.receive() if (each := _servers(message)) is not None]
            for each in found:
                self._config = told.config_of(self._config, each.get("settings", {}))
            latest = found[-1] if found else latest
            left_s = min(SETTLE_S, deadline - time.monotonic())
            if latest is None or link.closed or left_s <= 0 or not select.select([link], [], [], left_s)[0]:
                return latest

    def _apply(self, site: Site) -> bool:
        try:
            done = self._proxy.apply(site)
        except OrchError as err:
            self._complain(str(err))
            return False
        self._said = ""
        if done:
            self._say(f"{told.sentence(site)}: {done}")
        return True

    def _wait(self, link: Link | None, timeout_s: float | None) -> None:
        """Until there is something to read, or the time is over, or we are told to stop."""
        ends = [each for each in (link, self._supervisor) if each is not None and not each.closed]
        if not link and not ends:
            time.sleep(timeout_s or 0.0)
            return
        readable = select.select(ends, [], [], timeout_s)[0]
        if self._supervisor in readable and self._supervisor is not None:
            orders = [message.get("do") for message in self._supervisor.receive()]
            self._stopped = "stop" in orders or self._supervisor.closed

    def _complain(self, text: str) -> None:
        """Once, however often it is so."""
        if text != self._said:
            self._said = text
            self._say(text)


def _servers(message: Message) -> Message | None:
    if "error" in message:
        raise error_of(message)
    found: Any = message.get("ok", message)
    return found if isinstance(found, dict) and "servers" in found else None


def keep(name: str, config: Config, target: str, means: Means, say: Say) -> None:
    """`orch deploy … --watch`: until interrupted. name: of the instance, which may come and go."""
    proxy = PROXIES[target](means)
    Watch(config, proxy, lambda: runtime.find(name) / runtime.CONTROL, say).run()


def main(argv: list[str]) -> int:
    """Run until told to stop."""
    become_child()
    link = Link(socket.socket(fileno=int(argv[0])))
    messages = first_messages(link)
    if not messages:
        return Exit.ORPHANED
    settings = messages[0]["settings"]

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201  a line of our log

    config = settings["config"]
    proxy = told.AsStamped(Path(settings["output"]), config["nginx_reload"])
    try:
        return Watch(told.config_of(Config(), config), proxy, lambda: Path(settings["control"]), say, link).run()
    except OrchError as err:
        say(str(err))
        return err.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
