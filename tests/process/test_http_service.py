"""HTTP under trouble: overload, deadlines, clients that leave, gateways that die, keys, addresses that may not be."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import closing
from http.client import HTTPException
from pathlib import Path

import pytest

from orch.errors import ConfigError, Exit
from orch.http_settings import DEFAULT_HOST, DEFAULT_PORT
from orch_gateway.gateway import tls_context
from tests.process.harness import FACTOR, Instance, Place, eventually
from tests.process.web import Answer, Web, read_all


def gateway_pid(instance: Instance) -> int:
    """The first gateway's process; 0 while there is none."""
    return int(instance.status()["gateways"][0]["pid"] or 0)


def raw_post(path: str, body: str) -> bytes:
    """A whole request."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def test_a_stream_is_sent_as_it_comes(place: Place) -> None:
    """Each part at its own time, then the end; generate_stream speaks the protocol's form of it."""
    instance = place.up("plain.py:Counter", "--set=pause=0.1", http=True)
    with Web(instance.url) as web:
        began, times = time.monotonic(), []
        found = []
        for event in web.events("/predict", 5):
            found.append(event)
            times.append(time.monotonic() - began)
        assert found == [*(("", n) for n in range(5)), ("end", {})]
        assert times[0] < times[4] - 0.2, "the first came well before the last"
        told = web.post("/v2/models/Counter/generate_stream", {"input": 2}).body.decode().split("\n\n")
        assert [json.loads(line.removeprefix("data: "))["output"] for line in told if line] == [0, 1]


def test_errors_of_models_and_workers_have_their_statuses(place: Place) -> None:
    """The model's own text, a deadline, an output that JSON cannot say, and a worker that dies each time."""
    instance = place.up("naughty.py:Obedient", "--max-attempts=1", http=True)
    with Web(instance.url) as web:
        raised = web.post("/predict", ["raise", "not this one"])
        assert (raised.status, "ValueError: not this one" in raised.error) == (500, True)
        late = web.post("/predict", ["sleep", 1], x_request_timeout="0.2")
        assert (late.status, late.json["code"]) == (504, "deadline")
        died = web.post("/predict", ["kill"])
        assert (died.status, died.json["code"]) == (503, "lost")
        assert int(died.headers["retry-after"]) >= 1


def test_a_full_queue_is_429_and_a_client_that_leaves_frees_its_place(place: Place) -> None:
    """Its request is cancelled, queued or running: the queue is empty again, long before the work would be done."""
    instance = place.up("plain.py:Sleeper", "--queue-limit=2", http=True)
    with Web(instance.url) as web:
        patient = []
        while instance.queue()["queued"] < 2:
            patient.append(web.raw(raw_post("/predict", "60")))
            eventually(lambda: instance.queue()["queued"] + instance.queue()["outstanding"] == len(patient))
        refused = web.post("/predict", 0)
        assert (refused.status, refused.json["code"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        for each in patient:
            each.close()
        eventually(lambda: instance.queue()["queued"] == 0)
        assert instance.kill("r0")  # it sleeps for a minute, for nobody
        assert web.post("/predict", 0, x_request_timeout="20").json == 0


def test_a_client_that_leaves_frees_its_slot_while_its_request_runs(place: Place) -> None:
    """A stream ends with the part that it is at, and what waits behind a batch at the worker is not run at all."""
    instance = place.up("patient.py:Patient", http=True)
    with Web(instance.url) as web:
        streaming = web.raw(raw_post("/v1/models/Patient:stream", "3000"))
        assert streaming.recv(4096).startswith(b"HTTP/1.1 200")
        streaming.close()
        began = time.monotonic()
        assert web.post("/predict", 0).json == 0
        assert time.monotonic() - began < 2 * FACTOR, "the stream would have taken a minute"
        eventually(lambda: instance.queue()["cancelled"] == 1)
        running = web.raw(raw_post("/predict", "0.5"))
        eventually(lambda: instance.queue()["outstanding"] == 1)
        behind = [web.raw(raw_post("/predict", "60")) for _ in range(4)]
        eventually(lambda: instance.queue()["outstanding"] + instance.queue()["queued"] == 5)
        for each in behind:
            each.close()
        assert web.post("/predict", 0, x_request_timeout="20").json == 0
        assert running.recv(4096).endswith(b"0.5")
        leaving = web.raw(raw_post("/predict", "1"))
        eventually(lambda: instance.queue()["outstanding"] == 1)
        leaving.close()
        eventually(lambda: instance.queue()["cancelled"] == 6)
        assert instance.queue()["bytes"] == 0, "its place is free at once, though the model cannot be interrupted"
        eventually(lambda: instance.queue()["outstanding"] == 0)
        assert instance.replicas()["r0"]["restarts"] == 0


class Load:
    """Keep-alive connections that ask one thing after another; what went wrong is told apart."""

    def __init__(self, url: str, connections: int) -> None:
        self._url, self._stop = url, threading.Event()
        self.answered = self.broken = self.refused = 0
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(f"{number}",)) for number in range(connections)]
        for thread in self._threads:
            thread.start()

    def _ask(self, who: str) -> None:
        number = 0
        while not self._stop.is_set():
            with Web(self._url) as web:
                try:
                    while not self._stop.is_set():
                        number += 1
                        answer = web.post("/predict", [who, number])
                        if answer.status != 200 or answer.json != ["answer", who, number]:
                            self.wrong.append(f"{answer}")
                        self.answered += 1
                except ConnectionRefusedError:
                    self.refused += 1
                except TimeoutError:
                    self.wrong.append("a time-out")
                except (ConnectionError, HTTPException):
                    self.broken += 1

    def await_more(self, count: int = 100) -> None:
        """Until so many more were answered."""
        seen = self.answered
        eventually(lambda: self.answered > seen + count or self.wrong)

    def finish(self) -> None:
        """No more."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10 * FACTOR)


def test_under_load_the_balancers_death_is_not_seen_and_a_gateways_by_its_own_connections_only(place: Place) -> None:
    """What the balancer had is sent again. No new connection is refused, and the same address answers at once."""
    instance = place.up("plain.py:Steady", "--gateways=2", "--set=seconds=0.002", http=True)
    load = Load(instance.url, connections=8)
    try:
        for _ in range(2):
            load.await_more()
            instance.await_successor("balancer", instance.kill("balancer"))
        load.await_more()
        assert (load.broken, load.refused, load.wrong) == (0, 0, []), "of the balancer's death"
        old = gateway_pid(instance)
        os.kill(old, signal.SIGKILL)
        eventually(lambda: gateway_pid(instance) not in (0, old), within=10)
        load.await_more()
    finally:
        load.finish()
    assert (load.refused, load.wrong) == (0, [])
    assert load.broken <= 8, "at most what was under way on its connections"
    assert instance.status()["gateways"][0]["restarts"] == 1


def test_what_was_accepted_is_answered_before_it_stops(place: Place) -> None:
    """New requests get 503 meanwhile."""
    instance = place.up("plain.py:Sleeper", http=True)
    with Web(instance.url) as web, Web(instance.url) as late:
        accepted = web.raw(raw_post("/predict", "1.0"))
        eventually(lambda: instance.queue()["outstanding"] == 1)
        assert late.get("/v2/health/ready").status == 200
        instance.send(signal.SIGTERM)
        instance.await_output("finishing what is accepted")
        eventually(lambda: late.get("/readyz").status == 503)
        assert late.post("/predict", 0).status == 503
        assert read_all(accepted).endswith(b"\r\n\r\n1.0")
    assert instance.wait() == Exit.OK


def test_before_the_first_replica_it_says_503(place: Place) -> None:
    """The gateway is there at once, and tells what is missing."""
    with closing(socket.socket()) as taken:
        taken.bind((DEFAULT_HOST, 0))
        port = taken.getsockname()[1]
    place.up("naughty.py:CannotLoad", "--set=how=hang", f"--http={DEFAULT_HOST}:{port}", wait=False)

    def answer() -> int:
        try:
            with Web(f"http://{DEFAULT_HOST}:{port}") as web:
                return web.post("/predict", 1).status
        except ConnectionRefusedError:
            return 0

    assert eventually(answer, within=10) == 503
    with Web(f"http://{DEFAULT_HOST}:{port}") as web:
        assert "starting" in web.get("/readyz").error
        assert web.get("/healthz").status == 200


def test_slow_and_idle_clients_take_nothing_from_others(place: Place) -> None:
    """Heads that never end, bodies that trickle, readers that do not read: the next request is served in time."""
    instance = place.up("plain.py:Echo", "--http-keep-alive=1s", "--http-max-connections=150", http=True)
    with Web(instance.url) as web:
        idle = [web.raw(b"") for _ in range(60)]
        slow = [web.raw(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nx") for _ in range(60)]
        text = f'"{"x" * 6_000_000}"'  # more than the kernel keeps for a reader
        unread = [web.raw(raw_post("/predict", text)) for _ in range(5)]
        eventually(lambda: instance.queue()["answered"] == len(unread))
        began = time.monotonic()
        assert web.post("/predict", 1).json == 1
        assert time.monotonic() - began < 1 * FACTOR
        assert read_all(idle[0]) == b"", "it was idle for too long"
        more = [web.raw(b"") for _ in range(150)]
        assert read_all(more[-1]).startswith(b"HTTP/1.1 503")
        for each in (*idle, *slow, *unread, *more):
            each.close()


def test_keys_let_in_who_has_one_and_nobody_faster_than_its_rate(place: Place) -> None:
    """A key works as soon as it is made, and no longer once it is removed; health is for everybody."""
    instance = place.up("plain.py:Echo", http=True)
    with Web(instance.url) as web:
        assert web.post("/predict", 1).status == 200
        token = place.orch("keys", "add", "app", "--rate=2").out.strip()
        eventually(lambda: web.post("/predict", 1).status == 401)
        assert "Bearer" in web.post("/predict", 1, authorization="Bearer wrong").error
        assert web.get("/healthz").status == 200
        statuses = [web.post("/predict", 1, authorization=f"Bearer {token}").status for _ in range(4)]
        assert (statuses[0], statuses[-1]) == (200, 429)
        assert token not in (place.state / "default" / "keys.json").read_text()
        assert "app  2 a second" in place.orch("keys", "list").out
        assert place.orch("keys", "remove", "app").code == Exit.OK
        eventually(lambda: web.post("/predict", 1).status == 200)


def test_two_gateways_count_as_one(place: Place) -> None:
    """A key has its rate at both together, and whichever is asked for metrics tells the requests of both."""
    instance = place.up("plain.py:Echo", "--gateways=2", http=True)

    def ask(path: str, *, token: str = "") -> Answer:  # over a connection of its own, to either gateway
        with Web(instance.url) as web:
            return web.post(path, 1, authorization=f"Bearer {token}") if token else web.get(path)

    for _ in range(20):
        assert ask("/v1/models").status == 200
    counted = re.compile(r'http_requests_total\{gateway="(g\d)",route="/v1/models",status="200"\} (\d+)')

    def tells_all() -> bool:
        found = {gateway: int(count) for gateway, count in counted.findall(ask("/metrics").body.decode())}
        return len(found) == 2 and sum(found.values()) == 20

    assert eventually(lambda: all(tells_all() for _ in range(8))), "each of them, whoever answers"
    token = place.orch("keys", "add", "app", "--rate=10").out.strip()
    eventually(lambda: all(ask("/v1/models").status == 401 for _ in range(8)))
    began = time.monotonic()
    statuses = [ask("/predict", token=token).status for _ in range(60)]
    most = 10 + 10 * (time.monotonic() - began)
    assert 10 <= statuses.count(200) <= most + 1, statuses
    assert statuses.count(200) + statuses.count(429) == 60


def test_other_machines_are_let_in_with_keys_only(place: Place) -> None:
    """Or if the user insists; the refusal says how."""
    refused = place.orch("up", str(Path(__file__).parent / "models/plain.py:Echo"), "--http=0.0.0.0:0")
    assert refused.code == Exit.BAD_CONFIG
    assert "orch keys add" in refused.error_line()
    assert "--insecure" in refused.error_line()
    instance = place.up("plain.py:Echo", "--http=0.0.0.0:0", "--insecure")
    with Web(instance.url) as web:
        assert web.post("/predict", 1).json == 1
    assert instance.stop() == Exit.OK
    key = f"Bearer {place.orch('keys', 'add', 'app').out.strip()}"
    instance = place.up("plain.py:Echo", "--http=0.0.0.0:0", name="default")
    with Web(instance.url) as web:
        assert [web.post("/predict", 1).status, web.post("/predict", 1, authorization=key).status] == [401, 200]
        place.orch("keys", "remove", "app")
        eventually(lambda: web.post("/predict", 1, authorization=key).status == 401)
        assert web.post("/predict", 1).status == 401, "without any key nobody is let in"


def test_an_address_that_is_taken_is_told_and_the_default_moves_on(place: Place) -> None:
    """Asked for, it is an error; the default is a wish."""
    with closing(socket.socket()) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((DEFAULT_HOST, DEFAULT_PORT))
            taken.listen()
        except OSError:
            pass  # somebody has it already, which is as good
        target = str(Path(__file__).parent / "models/plain.py:Echo")
        refused = place.orch("up", target, f"--http={DEFAULT_HOST}:{DEFAULT_PORT}")
        assert (refused.code, str(DEFAULT_PORT) in refused.error_line()) == (Exit.ADDRESS_IN_USE, True)
        instance = place.up("plain.py:Echo", "--http=auto")
        assert f"port {DEFAULT_PORT} is taken" in instance.output()
        with Web(instance.url) as web:
            assert web.post("/predict", 1).json == 1


def test_https_with_a_certificate(place: Place) -> None:
    """As a browser would see it, and without one it is no HTTPS."""
    certificate, key = place.base / "cert.pem", place.base / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    for files, said in (
        ((certificate, certificate), f"tls_key = {certificate}: it holds no private key"),
        ((key, key), f"tls_cert = {key}: it holds no certificate"),
        ((certificate, place.base / "none.pem"), "none.pem: it cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=re.escape(said)):
            tls_context(*map(str, files))
    instance = place.up("plain.py:Echo", f"--tls-cert={certificate}", f"--tls-key={key}", http=True)
    context = ssl.create_default_context(cafile=str(certificate))
    plain = socket.create_connection(Web(instance.url).address, 10)
    connection = context.wrap_socket(plain, server_hostname="127.0.0.1")
    connection.sendall(raw_post("/predict", "1").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    found = read_all(connection)
    assert found.endswith(b"\r\n\r\n1")
    assert instance.url.startswith("https://")
