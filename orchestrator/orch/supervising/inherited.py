"""Listening sockets that the service manager holds and hands over, by the protocol of sd_listen_fds(3).

$LISTEN_PID is whom they are for, $LISTEN_FDS how many there are, from descriptor 3 on, $LISTEN_FDNAMES their names
with colons between them. The manager keeps them open while nobody runs: connections wait, and none is refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Final

from orch.errors import ConfigError

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
MAX_DIGITS: Final = 4  # no process is handed ten thousand
VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def handed_over(environ: Mapping[str, str], pid: int) -> dict[int, str]:
    """Names by descriptor; nothing where nothing was handed to this process.

    Raises:
        ConfigError: the variables are meant for us, and are none of the protocol.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    count = environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdecimal() and len(count) <= MAX_DIGITS):
        raise ConfigError(f"LISTEN_FDS = {count[:80]!r}: the service manager says there how many sockets it hands over")
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    return {FIRST_FD + n: names[n] if n < len(names) and names[n] else "unknown" for n in range(int(count))}


def take(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The TCP listeners handed to us, no longer inheritable; the variables are gone for whatever we start.

    Raises:
        ConfigError: one of them is no TCP socket that listens.
    """
    found = handed_over(environ, os.getpid())
    for name in VARIABLES:
        environ.pop(name, None)
    return [_listener(fd, name) for fd, name in found.items()]


def _listener(fd: int, name: str) -> socket.socket:
    try:
        given = socket.socket(fileno=fd)
        given.set_inheritable(False)
        listens = given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as err:
        raise ConfigError(f"the service manager hands over {name} as descriptor {fd}: {err.strerror}") from err
    if given.type is not socket.SOCK_STREAM or given.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
        raise ConfigError(
            f"the service manager hands over {name}, which is no TCP socket that listens: "
            "use ListenStream=ADDRESS:PORT and Accept=no"
        )
    return given
