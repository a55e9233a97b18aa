"""What a proxy is told: which servers, by which limits, and what a running HAProxy hears of a change."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orch.config import Config
from orch.errors import ConfigError, RemoteProtocolError
from orch_cli.deploy.proxying import options_of
from orch_cli.main import main
from orch_deploy import proxy, seal, told
from orch_deploy.checking import NOT_ALLOWED, complaint
from orch_deploy.haproxy import orders, render_haproxy, slots, structure
from orch_deploy.nginx import render_nginx
from orch_deploy.proxy import Options
from orch_deploy.seal import Standing
from orch_deploy.site import Server, Site, site

COMMAND = Config(command=("python", "server.py", "{port}"), name="speech")
MODEL = Config(target="emb.py:Embedder", name="search")


def workers(*numbers: int, draining: tuple[int, ...] = ()) -> Site:
    """Command workers of these numbers."""
    found = [Server(f"r{each}", f"127.0.0.1:{9100 + each}") for each in numbers]
    return site(COMMAND, [*found, *(Server(f"r{each}", f"127.0.0.1:{9100 + each}", True) for each in draining)])


def upstream(text: str) -> list[str]:
    """The servers of an nginx configuration."""
    return [line.split()[1] for line in text.splitlines() if line.strip().startswith("server ") and "max_fails" in line]


# --- nginx


def test_a_draining_server_is_not_in_the_upstream() -> None:
    """Those that may get requests are, by number."""
    text = render_nginx(workers(10, 9, 0, draining=(1,)), Options())
    assert upstream(text) == ["127.0.0.1:9100", "127.0.0.1:9109", "127.0.0.1:9110"]


def test_a_server_that_has_drained_changes_nothing_more() -> None:
    """That it is gone for good needs no reload."""
    assert render_nginx(workers(0, draining=(1,)), Options()) == render_nginx(workers(0), Options())


def test_nobody_to_serve_is_an_answer_of_its_own() -> None:
    """An upstream without a server is none that nginx takes."""
    for nobody in (workers(), workers(draining=(0,))):
        text = render_nginx(nobody, Options())
        assert "upstream speech" not in text
        assert "proxy_pass" not in text
        assert text.count("return 503;") == 2


def test_posts_are_repeated_where_that_was_promised() -> None:
    """By orch's contract for models, by its user for a command; never else."""
    said = "proxy_next_upstream error timeout non_idempotent;"
    gateways = site(MODEL, [Server("g0", "unix:/run/orch/search/g0.http")])
    assert said in render_nginx(gateways, Options())
    assert said in render_nginx(workers(0), Options(retry_posts=True))
    assert said not in render_nginx(workers(0), Options())


def test_http2_is_asked_for_as_the_version_wants_it() -> None:
    """Behind `listen` up to 1.25.0, and where nothing is known; as a directive from 1.25.1 on."""
    tls = Options(tls_cert="/c", tls_key="/k")
    old, new = (
        render_nginx(workers(0), Options(tls_cert="/c", tls_key="/k", version=version))
        for version in ((1, 22, 1), (1, 25, 1))
    )
    assert "listen 443 ssl http2;" in old
    assert "listen 443 ssl http2;" in render_nginx(workers(0), tls)
    assert "listen 443 ssl;\n" in new
    assert "http2 on;" in new


def test_limits_are_those_of_the_instance() -> None:
    """A proxy that gave up earlier would hide orch's own answer; kept connections end at the proxy first."""
    config = Config(command=("x",), timeout_s=20, max_attempts=2, http_max_body_bytes=3 * 1024 * 1024)
    limits = proxy.limits(site(config, []))
    assert limits.read_s == 50
    assert limits.tries == 2
    assert "client_max_body_size 3m;" in render_nginx(site(config, []), Options())
    assert proxy.limits(site(MODEL, [])).server_kept_s < MODEL.http_keep_alive_s


@pytest.mark.parametrize("address", ["127.0.0.1:1; return 200", "unix:/run/with blank/g0", "x{y}:1", "$host:80"])
def test_what_could_mean_something_else_is_refused(address: str) -> None:
    """Text from elsewhere stays text."""
    with pytest.raises(ConfigError, match="cannot stand in a proxy's file"):
        render_nginx(site(MODEL, [Server("g0", address)]), Options())
    with pytest.raises(ConfigError, match="cannot stand in a proxy's file"):
        render_haproxy(site(MODEL, [Server("g0", address)]), Options())


@pytest.mark.parametrize("name", ["~^.*", "a b", "*.", "a.*", "x;y", "a\nb", ""])
def test_a_server_name_is_one_that_both_proxies_know(name: str) -> None:
    """No regular expression, which only nginx has, and nothing that ends a directive."""
    for written in (render_nginx, render_haproxy):
        with pytest.raises(ConfigError, match="server_name"):
            written(workers(0), Options(server_name=name))


def test_a_name_may_stand_for_all_below_a_domain() -> None:
    """For HAProxy that is how a host ends."""
    assert "server_name *.example.org;" in render_nginx(workers(0), Options(server_name="*.example.org"))
    assert "-m end -i .example.org\n" in render_haproxy(workers(0), Options(server_name="*.example.org"))
    assert "field(1,:) -i api.example.org\n" in render_haproxy(workers(0), Options(server_name="api.example.org"))


@pytest.mark.parametrize(
    ("said", "is_only_rights"),
    [
        ("nginx: [emerg] bind() to 0.0.0.0:80 failed (13: Permission denied)", True),
        ('2026/11/21 [emerg] 27953#27953: open() "/var/log/nginx/x.log" failed (13: Permission denied)', True),
        ("nginx: [emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)", False),
        ('nginx: [emerg] cannot load certificate "/c.pem": BIO_new_file() failed', False),
    ],
)
def test_what_only_this_user_may_not_do_is_no_fault_of_a_file(said: str, is_only_rights: bool) -> None:
    """Port 80, or a log of root's: whoever runs nginx may."""
    assert (NOT_ALLOWED.search(said) is not None) == is_only_rights


def test_no_two_instances_have_one_identifier() -> None:
    """Two files in one nginx would collide; and what nginx names by it must not be too long for it."""
    names = ["web", "a.b", "a-b", "a_b", "x" * 28, "x" * 29, "x" * 64, "x" * 63 + "y"]
    found = [proxy.identifier(name) for name in names]
    assert found[0] == "orch_web"
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"\w+", each) and len(each) <= 33 for each in found)


def test_what_is_private_is_that_and_nothing_else() -> None:
    """However it ends; and all below the metrics."""
    pattern = proxy.private_paths(site(dataclasses.replace(COMMAND, health="/v1.0/health?deep=1"), []))
    for path in ("/metrics", "/metrics/", "/metrics/x", "/v1.0/health", "/v1.0/health/"):
        assert re.search(pattern, path), path
    for path in ("/", "/metricsx", "/v1/metrics", "/v1x0/health", "/v1.0/health/x", "/v1.0"):
        assert not re.search(pattern, path), path
    assert re.search(proxy.private_paths(site(MODEL, [])), "/v2/health/ready")


def test_a_health_path_may_have_a_query() -> None:
    """What it has besides must mean nothing in a file, and is told as it was given."""
    asked = dataclasses.replace(COMMAND, health="/v1/health?deep=1&fast=yes")
    assert "uri /v1/health?deep=1&fast=yes ver" in render_haproxy(site(asked, []), Options())
    for health in ("/a;b", "/a{b}", "/a?x=$y", '/a"b'):
        with pytest.raises(ConfigError, match="health = "):
            render_nginx(site(dataclasses.replace(COMMAND, health=health), []), Options())


# --- HAProxy


def test_command_workers_have_slots_to_spare() -> None:
    """In steps of eight; from three to five and to two there is nothing to reload for."""
    assert [name for name, _ in slots(workers(0, 1, 2))] == [f"r{number}" for number in range(8)]
    assert len(list(slots(workers(8)))) == 16
    texts = [render_haproxy(workers(*range(count)), Options()) for count in (3, 5, 2)]
    assert len({structure(text) for text in texts}) == 1
    assert len(set(texts)) == 3


def test_what_is_not_a_server_needs_a_reload() -> None:
    """Another rate, more slots, another gateway."""
    gateways = [Server(f"g{number}", f"unix:/run/orch/search/g{number}.http") for number in range(2)]
    for one, other in (
        (render_haproxy(workers(0), Options()), render_haproxy(workers(0), Options(rate=5))),
        (render_haproxy(workers(0), Options()), render_haproxy(workers(8), Options())),
        (render_haproxy(site(MODEL, gateways[:1]), Options()), render_haproxy(site(MODEL, gateways), Options())),
    ):
        assert structure(one) != structure(other)


def test_a_running_haproxy_hears_of_every_slot() -> None:
    """Whatever it has missed before."""
    assert orders(workers(0, draining=(1,)))[:4] == [
        "set server orch_speech/r0 addr 127.0.0.1 port 9100",
        "set server orch_speech/r0 state ready",
        "set server orch_speech/r1 state drain",
        "set server orch_speech/r2 state maint",
    ]
    gateway = site(MODEL, [Server("g0", "unix:/run/orch/search/g0.http")])
    assert orders(gateway) == ["set server orch_search/g0 state ready"]


def test_haproxy_finds_the_key_in_one_of_two_places() -> None:
    """Where it is elsewhere, the message says where it has to be."""
    assert "ssl crt /c.pem alpn" in render_haproxy(workers(0), Options(tls_cert="/c.pem", tls_key="/c.pem.key"))
    with pytest.raises(ConfigError, match=r"/c\.pem\.key; name it so, or put both into one file"):
        render_haproxy(workers(0), Options(tls_cert="/c.pem", tls_key="/k.pem"))


# --- what files and instances tell


def test_a_file_says_with_which_choices_it_was_made() -> None:
    """What is usual is left out; a folder and a version are those of whoever reads it."""
    options = Options(listen=("443",), tls_cert="/c", tls_key="/k", rate=5, folder="/x", version=(1, 22, 1))
    text = render_nginx(workers(0), options)
    found = proxy.read_stamp(text)
    assert found == {"target": "nginx", "listen": ["443"], "tls_cert": "/c", "tls_key": "/k", "rate": 5}
    assert proxy.options_of(found) == Options(listen=("443",), tls_cert="/c", tls_key="/k", rate=5)
    assert proxy.read_stamp("server { }") == {}


def test_a_change_of_a_file_is_noticed() -> None:
    """By a digest of all the rest; and whose it is, by its first line."""
    text = render_nginx(workers(0), Options())
    assert text.splitlines()[1].startswith(seal.SEAL)
    other = render_nginx(workers(0, 1), Options())
    assert seal.standing("", other) is Standing.ABSENT
    assert seal.standing(text, other) is Standing.OURS
    for changed in (text + "# mine\n", text.replace("80;", "81;"), text.replace(seal.SEAL, "# "), text[:-1]):
        assert seal.standing(changed, other) is Standing.CHANGED
    assert seal.standing("server { }\n", other) is Standing.FOREIGN
    assert seal.standing(render_haproxy(workers(0), Options()), other) is Standing.FOREIGN


def test_a_request_gets_two_servers_at_most() -> None:
    """And nginx keeps no connection to a command's servers: on one of those a failure would be no try."""
    gateways = render_nginx(site(MODEL, [Server("g0", "unix:/run/orch/search/g0.http")]), Options())
    for text in (render_nginx(workers(0, 1, 2), Options()), gateways):
        assert "proxy_next_upstream_tries 2;" in text
    assert "    keepalive 64;" in gateways
    assert "    keepalive " not in render_nginx(workers(0), Options())
    assert "    keepalive 8;" in render_nginx(workers(0), Options(keepalive=8))
    assert "    retries 1\n" in render_haproxy(workers(0), Options())
    once = dataclasses.replace(MODEL, max_attempts=1)
    assert proxy.limits(site(once, [])).tries == 1


GIVEN: dict[str, Any] = {
    "server_name": None, "listen": (), "redirect": (), "tls_cert": None, "tls_key": None, "rate": None, "allow": (),
    "retry_posts": False, "standalone": False,
}  # fmt: skip


def test_a_rerun_keeps_the_options_of_its_file(tmp_path: Path) -> None:
    """What is given wins; a new certificate comes with its key."""
    before = Options(listen=("127.0.0.1:8080",), rate=5, allow=("10.0.0.0/8",), keepalive=8, standalone=True)
    again = options_of(GIVEN, before, tmp_path, {"keepalive": None, "access_log": "off"})
    assert (again.listen, again.rate, again.allow, again.keepalive) == (before.listen, 5, before.allow, 8)
    assert (again.standalone, again.access_log, again.folder) == (True, "off", str(tmp_path))
    other = options_of({**GIVEN, "listen": ("81",), "rate": "7"}, before, tmp_path, {})
    assert (other.listen, other.rate) == (("81",), 7)
    (tmp_path / "c.pem").write_text("")
    old = Options(tls_cert="/c", tls_key="/k")
    assert options_of(GIVEN, old, tmp_path, {}).tls_key == "/k"
    new = options_of({**GIVEN, "tls_cert": str(tmp_path / "c.pem")}, old, tmp_path, {})
    assert new.tls_key == new.tls_cert == str(tmp_path / "c.pem")


def test_nobody_runs_and_nothing_is_configured(place: Path) -> None:
    """Then there is nothing to write of; a settings file of another instance does not help."""
    for settings, name, code in (
        ("", "nope", 8),
        ('target = "m.py:M"\nname = "web"\n', "nope", 8),
        ('target = "m.py:M"\n', "nope", 0),
        ('target = "m.py:M"\nname = "web"\n', "web", 0),
    ):
        (place / "orch.toml").write_text(settings)
        done = CliRunner().invoke(main, ["deploy", "nginx", "--name", name])
        assert done.exit_code == code, done.output
        assert ("nor is it configured" in done.output) == bool(code)


def test_a_proxy_that_opens_a_command_is_told_of_without_keys(place: Path) -> None:
    """No keys of orch help there; on loopback there is nothing to say."""
    (place / "orch.toml").write_text('command = ["python3", "server.py", "{port}"]\n')
    said = CliRunner().invoke(main, ["deploy", "nginx"]).output
    assert "whoever reaches the proxy may use default: let your servers ask" in said
    assert "orch keys" not in said
    assert "whoever" not in CliRunner().invoke(main, ["deploy", "nginx", "--listen=127.0.0.1:80"]).output


def test_plain_http_is_sent_on_from_port_80_beside_443_alone() -> None:
    """On the same addresses, unless told otherwise."""
    tls = {"tls_cert": "/c", "tls_key": "/k"}
    assert Options(**tls).redirects == ("80",)  # type: ignore[arg-type]
    assert Options(listen=("127.0.0.1:443",), **tls).redirects == ("127.0.0.1:80",)  # type: ignore[arg-type]
    assert Options(listen=("8443",), **tls).redirects == ()  # type: ignore[arg-type]
    assert Options(listen=("80",)).redirects == ()


def test_a_running_instance_tells_its_servers() -> None:
    """And its kind, whatever the settings at hand say."""
    row = {"id": "r0", "address": "127.0.0.1:9100", "draining": True}
    found = told.site_of({"kind": "command", "revision": 3, "servers": [row]}, MODEL)
    assert (found.kind, found.servers) == ("command", (Server("r0", "127.0.0.1:9100", True),))
    assert told.sentence(found) == "no server (r0 draining)"
    with pytest.raises(RemoteProtocolError):
        told.site_of({"kind": "command", "servers": [{"id": "r0"}]}, MODEL)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ('nginx: [emerg] unknown directive "x" in /tmp/a/staged.conf:3\nnginx: configuration file test failed',
         'unknown directive "x" in the generated file:3'),
        ('2026/01/01 00:00:00 [emerg] 12#12: cannot load "/c"', 'cannot load "/c"'),
        ("[ALERT]    (12) : config : parsing [/tmp/a/staged.conf:4] : unknown keyword",
         "config : parsing [the generated file:4] : unknown keyword"),
        ("", "it says nothing"),
    ],
)  # fmt: skip
def test_of_what_a_proxy_says_the_reason_is_shown(said: str, line: str) -> None:
    """Without its clock, its process and the name of a file that is gone."""
    assert complaint(said, "/tmp/a/staged.conf") == line
