"""A real nginx in front of real servers: nothing fails while they come, go and die."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch.config import Config
from orch.errors import Exit
from orch_deploy.checking import nginx_version
from orch_deploy.nginx import render_nginx
from orch_deploy.proxy import Options
from orch_deploy.reloading import reload_nginx
from orch_deploy.site import Server, site
from tests.process.fronts import (
    COMMAND,
    USER,
    Asking,
    health_and_metrics_are_private,
    listens,
    make,
    nginx,
    only_websockets_pass,
    serving,
)  # fmt: skip
from tests.process.harness import Place, a_free_port, elapse, eventually, moment
from tests.process.traffic import REQUESTS, Traffic, lose_a_gateway_and_scale, scale
from tests.process.web import Web, free_address

# --- while servers come and go


def test_no_request_fails_while_a_server_dies_and_their_number_changes(place: Place) -> None:
    """Three command workers, of which one is killed; then five, then two: `orch up --nginx` keeps nginx true.

    Nobody has promised that POST may run twice. So what is under way at the killed one are GETs; and POSTs come while
    the number changes, none of which may meet a server that stops.
    """
    file, listen = make(place, "nginx")
    options = (f"--first-port={a_free_port()}", "--health-interval=0.2", f"--nginx={file}")
    instance = place.up("", *options, replicas=3, command=COMMAND)
    eventually(lambda: "# r2" in file.read_text())
    with nginx(place, file, listen) as front:
        with Traffic(front.address, methods=("GET",)) as gets:
            gets.reach(REQUESTS // 5)
            instance.kill("r1")
            gets.reach(REQUESTS // 2)
            instance.await_ready(3)
        with Traffic(front.address, methods=("POST",), path="/?ms=20") as posts:
            scale(instance, posts, 5, 0.2)
            scale(instance, posts, 2, 0.5)
        assert (gets.failed, posts.failed) == ([], [])
        assert gets.answered + posts.answered >= REQUESTS
        assert file.read_text().count("max_fails") == 2
        instance.stop()
        answer = front.ask("GET")
        assert (answer.status, answer.json["code"], answer.headers["retry-after"]) == (503, "not_running", "1")


def test_no_request_fails_while_a_gateway_dies_and_replicas_change(place: Place) -> None:
    """Two gateways in front of a model; a watching `orch deploy nginx` keeps nginx true, also to the next instance."""
    instance = place.up("plain.py:Echo", "--gateways=2", replicas=3, http=True)
    file, listen = make(place, "nginx")
    watch = place.start(
        "-m", "orch_cli", "deploy", "nginx", "--standalone", f"--listen={listen}", f"--output={file}", "--watch"
    )
    with watch, nginx(place, file, listen) as front:
        with Traffic(front.address, path="/predict", methods=("POST",), keep=True) as traffic:
            lose_a_gateway_and_scale(instance, traffic)
        assert traffic.failed == []
        instance.stop()
        assert front.ask("POST", "/predict", b"1").status in (502, 503)
        place.up("plain.py:Echo", "--gateways=2", http=True)
        eventually(lambda: front.ask("POST", "/predict", b"1").body == b"1")
        watch.terminate()


# --- what is promised of a request


@pytest.fixture
def servers(place: Place) -> Iterator[list[Server]]:
    """Two of them."""
    found = [Server(f"r{number}", free_address()) for number in range(2)]
    with serving(place, *found):
        yield found


def written(place: Place, servers: list[Server], options: Options, config: Config | None = None) -> tuple[Path, str]:
    """A standalone file for these servers."""
    file, listen = place.base / "plain.conf", free_address()
    options = dataclasses.replace(options, listen=(listen,), standalone=True, folder=str(place.base), user=USER)
    file.write_text(render_nginx(site(config or Config(command=("any",)), servers), options))
    return file, listen


def test_after_a_reload_no_request_goes_the_old_way(place: Place, servers: list[Server]) -> None:
    """Not even the first that comes after `reload_nginx` has returned: a server may stop then."""
    file, listen = written(place, servers[:1], Options())
    pid_file = place.base / "nginx-default.pid"
    assert reload_nginx(pid_file) is False
    with nginx(place, file, listen) as front:
        ways = [front.ask("GET").json["who"]]
        for turn in range(1, 7):
            before = file.read_text()
            old, new = (servers[(turn + step) % 2].address for step in (1, 0))
            file.write_text(before.replace(old, new))
            assert reload_nginx(pid_file) is True
            found = {front.ask("GET").json["who"] for _ in range(5)}
            assert len(found) == 1
            ways += found
        assert ways[0] != ways[1]
        assert ways == [ways[turn % 2] for turn in range(7)]


def test_a_post_runs_once_unless_it_may_run_twice(place: Place, servers: list[Server]) -> None:
    """When a server dies with requests, a GET is answered by another; a POST gets 502, and nobody runs it again."""
    third = Server("r2", free_address())
    file, listen = written(place, [*servers, third], Options())
    with serving(place, third) as (dying,), nginx(place, file, listen) as front:
        asking = [Asking(front, "POST", "/?ms=600", b"%d" % number) for number in range(3)]
        notes = place.base / "notes"
        eventually(lambda: len(notes.read_text().split()) == 3)
        gets = [Asking(front, "GET", "/?ms=600") for _ in range(3)]
        elapse(0.1)
        dying.kill()
        assert sorted(each.status() for each in asking) == [200, 200, 502]
        assert [each.status() for each in gets] == [200, 200, 200]
        assert sorted(notes.read_text().split()) == ["0", "1", "2"]
        lost = next(each.answer for each in asking if each.status() == 502)
        assert lost is not None
        assert (lost.json["code"], lost.headers["content-type"]) == ("lost", "application/json")
    file, listen = written(place, [*servers, third], Options(retry_posts=True))
    with serving(place, third) as (dying,), nginx(place, file, listen) as front:
        asking = [Asking(front, "POST", "/?ms=600", b"again") for _ in range(3)]
        eventually(lambda: notes.read_text().count("again") == 3)
        dying.kill()
        assert [each.status() for each in asking] == [200, 200, 200]
        assert notes.read_text().count("again") == 4


def test_a_get_that_kills_its_server_takes_two_of_them(place: Place, servers: list[Server]) -> None:
    """However warm their connections were: nginx counts no try on one that is kept."""
    third = Server("r2", free_address())
    file, listen = written(place, [*servers, third], Options())
    with serving(place, third), nginx(place, file, listen) as front:
        assert {front.ask("GET").status for _ in range(20)} == {200}
        assert front.ask("GET", "/die").status == 502
        eventually(lambda: sum(map(listens, [*servers, third])) == 1)
        eventually(lambda: front.ask("GET").status == 200)


def test_all_servers_may_be_away_for_a_moment(place: Place) -> None:
    """Requests are answered 502 meanwhile, and 200 within two seconds of their return: none is left out for longer."""
    away = [Server("r0", free_address()), Server("r1", free_address())]
    file, listen = written(place, away, Options())
    with nginx(place, file, listen) as front, Web(front.url) as web:
        for _ in range(10):
            assert web.get("/").status == 502
        with serving(place, *away):
            began = moment()
            eventually(lambda: web.get("/").status == 200)
            assert moment() - began < 2


def test_what_clients_may_and_may_not(place: Place, servers: list[Server]) -> None:
    """Parts of a stream come as they are sent, a WebSocket passes; too much and too often are answered as orch does."""
    config = Config(command=("any",), http_max_body_bytes=1024, health="/healthz")
    file, listen = written(place, servers, Options(rate=40), config)
    file.write_text(file.read_text().replace("allow 127.0.0.1;", ""))  # as another machine sees it
    with nginx(place, file, listen) as front, Web(front.url) as web:
        with web.raw(b"GET /events HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") as stream:
            found = b""
            while b"data: 0" not in found:
                found += stream.recv(65536)
            assert b"data: 2" not in found
        only_websockets_pass(web)
        health_and_metrics_are_private(front)
        too_large = web.post("/", b"x" * 1025)
        assert (too_large.status, too_large.json["code"]) == (413, "too_large")
        answers = [web.get("/") for _ in range(100)]
        refused = [each for each in answers if each.status == 429]
        assert refused
        assert refused[0].json["code"] == "rate_limit"
        assert refused[0].headers["retry-after"] == "1"


# --- the file


def test_a_refused_file_changes_nothing(place: Place) -> None:
    """What nginx refuses is told in its words, and the file stays as it was, also where it is watched."""
    file, _ = make(place, "nginx")
    before = file.read_text()
    (place.base / "bad.pem").write_text("no certificate")
    words = (f"--config={place.base}/unstarted.toml", f"--tls-cert={place.base}/bad.pem", "--access-log=off")
    done = place.orch("deploy", "nginx", f"--output={file}", *words)
    assert done.code == Exit.BAD_CONFIG
    assert "nginx refuses the configuration: cannot load certificate" in done.error_line()
    assert file.read_text() == before
    assert [each.name for each in place.base.iterdir() if each.name.startswith(f".{file.name}")] == []


def test_https_speaks_http2_and_plain_http_is_sent_on(place: Place, servers: list[Server]) -> None:
    """With a certificate; the method and the body of a request that is sent on are kept (308)."""
    both = place.base / "both.pem"
    certificate(both)
    plain = free_address()
    file, listen = written(
        place, servers, Options(tls_cert=str(both), tls_key=str(both), redirect=(plain,), version=nginx_version())
    )
    secure_port, plain_port = listen.rpartition(":")[2], plain.rpartition(":")[2]
    with nginx(place, file, plain):
        said = curl(
            "--http2", "--cacert", str(both), "-w", " %{http_version}", f"https://localhost:{secure_port}/", "-d", "x"
        )
        assert said.endswith(" 2")
        assert '"x-forwarded-proto": "https"' in said
        said = curl("-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", f"http://localhost:{plain_port}/a?b=1")
        assert said == f"308 https://localhost:{secure_port}/a?b=1"


def certificate(path: Path) -> None:
    """Of localhost, with its key."""
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    key = path.with_suffix(".key")
    subprocess.run(
        [*words.split(), "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(path)],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + key.read_text())


def curl(*words: str) -> str:
    """What it prints."""
    return subprocess.run(["curl", "-sS", *words], check=True, capture_output=True, text=True, timeout=20).stdout
