"""A real nginx or HAProxy under test, run by this user in the foreground."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orch_deploy.checking import find
from orch_deploy.site import Server
from tests.process.harness import FACTOR, PROGRAMS, Place, Process, eventually
from tests.process.web import Answer, Web, free_address

# A standalone nginx of root's has workers of root's: the tests' folders let nobody else in.
USER = "root" if os.geteuid() == 0 else ""
SERVER = str(PROGRAMS / "http_server.py")
COMMAND = (sys.executable, SERVER, "{port}")


@dataclass(frozen=True)
class Front:
    """A proxy that runs: its process, where it listens, and its file."""

    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    file: Path

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://{self.address[0]}:{self.address[1]}"

    def ask(self, method: str, path: str = "/", body: bytes | None = None) -> Answer:
        """One request on a connection of its own: a reload may close one that is kept."""
        with Web(self.url) as web:
            return web.ask(method, path, body)


@contextmanager
def running(place: Place, words: Sequence[str], file: Path, listen: str) -> Iterator[Front]:
    """Start it, wait until it accepts connections, and stop it at the end."""
    host, _, port = listen.rpartition(":")
    with (place.base / f"{file.name}.out").open("wb") as output:
        process = subprocess.Popen(words, env=place.environ(), stdout=output, stderr=output, start_new_session=True)
    front = Front(process, (host, int(port)), file)
    try:
        eventually(lambda: accepts(front) or process.poll() is not None)
        assert process.poll() is None, Path(output.name).read_text()
        yield front
        process.send_signal(signal.SIGTERM)
        process.wait(10 * FACTOR)
    finally:
        # Its workers, too, of which a killed master leaves some behind; their titles hide the mark of the test.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def nginx(place: Place, file: Path, listen: str) -> AbstractContextManager[Front]:
    """A standalone configuration."""
    return running(place, [find("nginx"), "-c", str(file), "-g", "daemon off;"], file, listen)


def haproxy(place: Place, file: Path, listen: str) -> AbstractContextManager[Front]:
    """The same, with a master process."""
    return running(place, [find("haproxy"), "-W", "-f", str(file)], file, listen)


def accepts(front: Front) -> bool:
    """Whether anything listens."""
    try:
        front.ask("GET")
    except OSError:
        return False
    return True


def make(place: Place, target: str, *options: str, name: str = "default") -> tuple[Path, str]:
    """A file by `orch deploy`, for a free port of this host."""
    file, listen = place.base / f"{target}.{name}.conf", free_address()
    settings = place.base / "unstarted.toml"
    settings.write_text('target = "any:Any"\n')
    words = ("deploy", target, f"--name={name}", "--standalone", f"--listen={listen}", f"--output={file}")
    done = place.orch(*words, f"--config={settings}", *options)
    assert done.code == 0, done
    return file, listen


# --- servers behind it, and what is asked of it


@contextmanager
def serving(place: Place, *servers: Server) -> Iterator[list[Process]]:
    """Plain servers, which note each POST that they run."""
    with ExitStack() as stack:
        processes = []
        for each in servers:
            words = (SERVER, each.address.rpartition(":")[2], str(place.base / "notes"))
            processes.append(stack.enter_context(place.start(*words)))
            stack.callback(processes[-1].kill)
        for each in servers:
            eventually(partial(listens, each))
        yield processes


def listens(server: Server) -> bool:
    """Whether it accepts connections."""
    host, _, port = server.address.rpartition(":")
    with socket.socket() as trial:
        return trial.connect_ex((host, int(port))) == 0


class Asking(threading.Thread):
    """One request that takes its time, and its answer."""

    def __init__(self, front: Front, method: str, path: str, body: bytes | None = None) -> None:
        super().__init__()
        self._ask = partial(front.ask, method, path, body)
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._ask()

    def status(self) -> int:
        """Of its answer, once it has come."""
        self.join(20)
        assert self.answer is not None
        return self.answer.status


def only_websockets_pass(web: Web) -> None:
    """A WebSocket is two-way; no server is asked for h2c, by which a client would reach it past the proxy's rules."""
    asked = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    asked += b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    with web.raw(asked) as both_ways:
        assert both_ways.recv(65536).startswith(b"HTTP/1.1 101 ")
        both_ways.sendall(b"hello\n")
        assert both_ways.recv(65536) == b"hello\n"
    assert "upgrade" not in web.get("/", upgrade="h2c", connection="upgrade, http2-settings").json["headers"]


def health_and_metrics_are_private(front: Front) -> None:
    """However their paths are written."""
    for path in ("/healthz", "/metrics", "/%6detrics", "//metrics", "/metrics/", "/metrics/x%0ay", "/a/../metrics"):
        answer = front.ask("GET", path)
        assert (answer.status, answer.json["code"]) == (403, "forbidden"), path
