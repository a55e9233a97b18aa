"""`python -P -m orch_balancer LINK_FD PAGES_FD`: the balancer's process, started by the supervisor."""

from __future__ import annotations

import contextlib
import gc
import resource
import signal
import socket
import sys

from orch.child import become_child, first_messages
from orch.errors import Exit, OrchError
from orch.link import Link
from orch_balancer.broker import Broker, Settings


def main(argv: list[str]) -> int:
    """Run until told to stop."""
    link_fd, pages_fd = (int(word) for word in argv)
    become_child()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):  # one descriptor for each connection, as many as there may be
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    link = Link(socket.socket(fileno=link_fd))
    messages = first_messages(link)
    if not messages:
        return Exit.ORPHANED
    settings, *rest = messages
    try:
        broker = Broker(Settings(**settings["settings"]), link, pages_fd)
    except OrchError as err:
        link.send(event="failed", error=str(err), type=type(err).__name__)
        return err.exit_code
    for message in rest:
        broker.handle(message)
    link.send(event="bound")
    # What ends is freed at once. The collector would look through all that is queued in vain, a third of a second for
    # a million requests: the broker calls it when nothing is.
    gc.disable()
    return broker.run()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
