"""A real HAProxy in front of real servers: nothing fails while they come, go and die, and it is not reloaded for it."""

from __future__ import annotations

from pathlib import Path

from orch.config import Config
from orch_deploy.haproxy import render_haproxy
from orch_deploy.proxy import Options
from orch_deploy.reloading import haproxy_pid
from orch_deploy.site import Server, site
from tests.process.fronts import (
    COMMAND,
    Asking,
    haproxy,
    health_and_metrics_are_private,
    listens,
    make,
    only_websockets_pass,
    serving,
)  # fmt: skip
from tests.process.harness import Place, Process, a_free_port, elapse, eventually
from tests.process.traffic import REQUESTS, Traffic, lose_a_gateway_and_scale, scale
from tests.process.web import Web, free_address


def watching(place: Place, file: Path, listen: str, *options: str) -> Process:
    """`orch deploy haproxy --watch`."""
    words = ("deploy", "haproxy", "--standalone", f"--listen={listen}", f"--output={file}", "--watch", *options)
    return place.start("-m", "orch_cli", *words)


def test_no_request_fails_while_a_server_dies_and_their_number_changes(place: Place) -> None:
    """Three command workers, of which one is killed; then five, then two; all of it by orders to one process."""
    options = (f"--first-port={a_free_port()}", "--health-interval=0.2")
    instance = place.up("", *options, replicas=3, command=COMMAND)
    file, listen = make(place, "haproxy", "--retry-posts")
    with haproxy(place, file, listen) as front, watching(place, file, listen, "--retry-posts") as watch:
        socket = str(place.base / "haproxy-default.sock")
        pid = haproxy_pid(socket)
        with Traffic(front.address, keep=True) as traffic:
            traffic.reach(REQUESTS // 5)
            instance.kill("r1")
            traffic.reach(REQUESTS // 2)
            scale(instance, traffic, 5, 0.7)
            scale(instance, traffic, 2, 1.0)
        assert traffic.failed == []
        assert traffic.repeated == 0
        assert haproxy_pid(socket) == pid
        eventually(lambda: "r4 127.0.0.1:1 disabled" in file.read_text())
        instance.stop()
        eventually(lambda: front.ask("GET").status == 503)
        assert front.ask("GET").json["code"] == "not_running"
        watch.terminate()


def test_no_request_fails_while_a_gateway_dies_and_replicas_change(place: Place) -> None:
    """Two gateways in front of a model."""
    instance = place.up("plain.py:Echo", "--gateways=2", replicas=3, http=True)
    file, listen = make(place, "haproxy")
    with haproxy(place, file, listen) as front:
        with Traffic(front.address, path="/predict", methods=("POST",), keep=True) as traffic:
            lose_a_gateway_and_scale(instance, traffic)
        assert traffic.failed == []


def test_a_post_runs_once_unless_it_may_run_twice(place: Place) -> None:
    """When a server dies with requests, a GET is answered by another; a POST gets 502, and nobody runs it again."""
    first, second = (Server(f"r{number}", free_address()) for number in range(2))
    file, listen = place.base / "haproxy.cfg", free_address()
    options = Options(listen=(listen,), standalone=True, folder=str(place.base))
    file.write_text(render_haproxy(site(Config(command=("any",)), [first, second]), options))
    with serving(place, first), serving(place, second) as (dying,), haproxy(place, file, listen) as front:
        asking = [Asking(front, "POST", "/?ms=600", b"%d" % number) for number in range(2)]
        notes = place.base / "notes"
        eventually(lambda: len(notes.read_text().split()) == 2)
        gets = [Asking(front, "GET", "/?ms=600") for _ in range(2)]
        elapse(0.1)
        dying.kill()
        assert sorted(each.status() for each in asking) == [200, 502]
        assert [each.status() for each in gets] == [200, 200]
        assert sorted(notes.read_text().split()) == ["0", "1"]


def test_a_get_that_kills_its_server_takes_two_of_them(place: Place) -> None:
    """However warm their connections were."""
    servers = [Server(f"r{number}", free_address()) for number in range(3)]
    file, listen = place.base / "haproxy.cfg", free_address()
    options = Options(listen=(listen,), standalone=True, folder=str(place.base))
    file.write_text(render_haproxy(site(Config(command=("any",)), servers), options))
    with serving(place, *servers), haproxy(place, file, listen) as front:
        with Web(front.url) as web:
            assert {web.get("/").status for _ in range(20)} == {200}
        assert front.ask("GET", "/die").status in (502, 503)
        eventually(lambda: sum(map(listens, servers)) == 1)
        eventually(lambda: front.ask("GET").status == 200)


def test_what_only_a_reload_can_change_is_reloaded(place: Place) -> None:
    """A rate, here: `orch deploy haproxy --reload` returns once a process serves that knows it."""
    first = Server("r0", free_address())
    file, listen = place.base / "haproxy.cfg", free_address()
    options = Options(listen=(listen,), standalone=True, folder=str(place.base))
    file.write_text(render_haproxy(site(Config(), [first]), options))
    settings = place.base / "unstarted.toml"
    settings.write_text('target = "any:Any"\n')
    socket = str(place.base / "haproxy-default.sock")
    with serving(place, first), haproxy(place, file, listen) as front:
        before = haproxy_pid(socket)
        done = place.orch("deploy", "haproxy", f"--config={settings}", f"--output={file}", "--reload", "--rate=5")
        assert done.code == 0, done
        assert "HAProxy reloaded" in done.err
        assert haproxy_pid(socket) not in (None, before)
        answers = [front.ask("GET") for _ in range(20)]
        refused = [each for each in answers if each.status == 429]
        assert refused
        assert refused[0].json["code"] == "rate_limit"


def test_requests_go_where_they_may(place: Place) -> None:
    """To the server that can be reached, without orch telling; and to health and metrics for operators alone."""
    first, second = (Server(f"r{number}", free_address()) for number in range(2))
    file, listen = place.base / "haproxy.cfg", free_address()
    options = Options(listen=(listen,), standalone=True, folder=str(place.base))
    config = Config(command=("any",), health="/healthz")
    text = render_haproxy(site(config, [first, second]), options)
    file.write_text(text.replace("{ src 127.0.0.1 ::1 }", "{ src 192.0.2.1 }"))  # as another machine sees it
    with serving(place, first), haproxy(place, file, listen) as front:
        assert not listens(second)
        assert [front.ask("POST", "/", b"1").status for _ in range(20)] == [200] * 20
        health_and_metrics_are_private(front)
        with Web(front.url) as web:
            only_websockets_pass(web)
