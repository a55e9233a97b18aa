"""The control socket: how the command line, and later nginx's writer, talk to a running supervisor.

One JSON line asks ({"call": NAME, ...arguments}), one answers ({"ok": {...}} or {"error": TEXT, "exit_code": N}).
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orch import errors, runtime
from orch.errors import Exit, NotRunning, OrchError, StartFailed
from orch.link import Link, Message
from orch.supervising.process import listen
from orch.supervising.reactor import Reactor

MAX_CONNECTIONS = 64


class Caller:
    """One connected command line, or watcher; each call is answered once, perhaps later."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def closed(self) -> bool:
        """It has gone."""
        return self._link.closed

    def tell(self, event: str, **facts: Any) -> None:
        """Something that it asked to be told of."""
        self._link.send(event=event, **facts)

    def answer(self, **result: Any) -> None:
        """The call succeeded."""
        self._link.send(ok=result)

    def refuse(self, error: OrchError) -> None:
        """The call failed; the caller raises the same."""
        self._link.send(**message_of(error))


class Server:
    """Accepts callers and hands their calls to `handle(caller, call, arguments)`."""

    def __init__(self, path: Path, reactor: Reactor, handle: Callable[[Caller, str, Message], None]) -> None:
        self._socket = listen(path)
        self._reactor = reactor
        self._handle = handle
        self._links: set[Link] = set()
        self._spare_fd: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        reactor.add(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as err:
            if err.errno in (errno.EMFILE, errno.ENFILE):
                self._turn_away()
            return
        if len(self._links) >= MAX_CONNECTIONS:
            connection.close()
            return
        link = Link(connection)
        caller = Caller(link)
        self._links.add(link)
        self._reactor.add(link, lambda: self._read(link, caller))

    def _turn_away(self) -> None:
        """No descriptor is left: who waits in the queue would wake us for ever, so he gets the spare one, and goes."""
        self._close_spare()
        with contextlib.suppress(OSError):
            self._socket.accept()[0].close()
        with contextlib.suppress(OSError):
            self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _close_spare(self) -> None:
        if self._spare_fd is not None:
            os.close(self._spare_fd)
            self._spare_fd = None

    def _read(self, link: Link, caller: Caller) -> None:
        for message in link.receive():
            try:
                self._handle(caller, str(message.pop("call", "")), message)
            except OrchError as err:
                caller.refuse(err)
            except Exception as err:  # noqa: BLE001  a bug, but no caller's message may take the instance down
                caller.refuse(OrchError(f"a bug in orch: {type(err).__name__}: {err}"))
        if link.closed:
            self._hang_up(link)

    def flush(self) -> None:
        """Write what callers did not take at once; who never reads is hung up on."""
        for link in list(self._links):
            if link.unsent:
                link.flush()
            if link.closed:
                self._hang_up(link)

    def _hang_up(self, link: Link) -> None:
        self._links.discard(link)
        self._reactor.remove(link)
        link.close()

    def close(self) -> None:
        """Close the socket and every connection."""
        self._reactor.remove(self._socket)
        self._socket.close()
        self._close_spare()
        for link in self._links:
            self._reactor.remove(link)
            link.close()


def call(name: str, command: str, timeout: float | None = 10.0, **arguments: Any) -> dict[str, Any]:
    """Ask the running instance `name`.

    Raises:
        NotRunning: there is none, or it ended before it answered, or it did not answer within `timeout` seconds.
        OrchError: what the supervisor refused, with its exit code.
    """
    path = runtime.find(name) / runtime.CONTROL
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)  # a stopped supervisor accepts nobody
        try:
            connection.connect(str(path))
        except OSError as err:
            raise NotRunning(
                f"instance {name!r} does not answer at {path} ({err.strerror}); `orch up` starts one"
            ) from err
        link = Link(connection)
        link.send(call=command, **arguments)
        answer = _await_answer(link, timeout)
    if answer is None:
        raise NotRunning(
            f"instance {name!r} ended, or did not answer `{command}` in time; see `orch logs --name {name}`"
        )
    if "ok" in answer:
        result: dict[str, Any] = answer["ok"]
        return result
    raise error_of(answer)


def _await_answer(link: Link, timeout: float | None) -> Message | None:
    deadline = None if timeout is None else time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        while not link.closed:
            remaining = None if deadline is None else deadline - time.monotonic()
            if (remaining is not None and remaining <= 0) or not selector.select(remaining):
                return None
            for message in link.receive():
                return message
    return None


def message_of(error: OrchError) -> Message:
    """What `error_of` reads."""
    return {"error": str(error), "type": type(error).__name__, "exit_code": int(error.exit_code)}


def error_of(message: Message) -> OrchError:
    """The error that a message stands for: its "error" text, of the class named by "type"."""
    kind = getattr(errors, str(message.get("type")), None)
    text = str(message.get("error"))
    if kind is StartFailed:
        return StartFailed(text, Exit(message.get("exit_code", Exit.BUG)))
    return kind(text) if isinstance(kind, type) and issubclass(kind, OrchError) else OrchError(text)
