"""`python -P -m orch_gateway LINK_FD LISTEN_FD...`: a gateway's process, started by the supervisor."""

from __future__ import annotations

import gc
import resource
import signal
import socket
import sys

import uvloop

from orch.child import become_child, first_messages
from orch.errors import Exit, OrchError
from orch.link import Link, Message
from orch.payload import leave_torch_out
from orch_gateway.gateway import Gateway, Settings
from orch_gateway.memory import keep_memory

# Objects between two collections. Requests are freed as they end, and what waits would be looked through in vain.
GC_EVERY = 50_000
# Descriptors beside those of connections: the link, the listening sockets, the balancer's, files.
MORE_FILES = 128


async def serve(messages: list[Message], link: Link, sockets: list[socket.socket]) -> int:
    """Run until told to stop."""
    settings, *rest = messages
    try:
        gateway = Gateway(Settings(**settings["settings"]), link, sockets)
        for message in rest:
            gateway.handle(message)
        gc.freeze()
        gc.set_threshold(GC_EVERY)
        return await gateway.run()
    except OrchError as err:
        link.send(event="failed", error=str(err), type=type(err).__name__)
        return err.exit_code


def allow_files(wanted: int) -> None:
    """Each connection is an open file, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < room:
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))


def main(argv: list[str]) -> int:
    """Run until told to stop."""
    link_fd, *listen_fds = (int(word) for word in argv)
    become_child()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    leave_torch_out()
    keep_memory()
    link = Link(socket.socket(fileno=link_fd))
    messages = first_messages(link)
    if not messages:
        return Exit.ORPHANED
    allow_files(messages[0]["settings"]["max_connections"] + MORE_FILES)
    sockets = [socket.socket(fileno=fd) for fd in listen_fds]
    for each in sockets:
        each.setblocking(False)
    return uvloop.run(serve(messages, link, sockets))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
