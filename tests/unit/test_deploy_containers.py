"""What an instance is in a container: its settings, its compose file and its Kubernetes manifest."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from orch import keys
from orch.config import Config, resolve
from orch.errors import ConfigError
from orch_cli.main import main
from orch_deploy.containers import compose
from orch_deploy.inside import Choices, dns_name, inside
from orch_deploy.kubernetes import LEAVE_S, kubernetes
from orch_deploy.settings_text import as_file, as_variables

SPEECH = {"command": ["python", "api_server.py", "--listen", "127.0.0.1:{port}"], "replicas": 3}


def config(**settings: Any) -> Config:
    """As from an orch.toml."""
    return resolve(file={"target": "m.py:M", **settings} if "command" not in settings else settings).config


def composed(settings: Config, choices: Choices | None = None) -> dict[str, Any]:
    """The compose file, read."""
    found: dict[str, Any] = yaml.safe_load(compose(settings, choices or Choices(), image="orch:1"))
    return found


def manifest(settings: Config, choices: Choices | None = None, **more: Any) -> dict[str, dict[str, Any]]:
    """The documents of the manifest by kind."""
    text = kubernetes(settings, choices or Choices(), image="orch:1", **more)
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


# --- settings as text

EVERYTHING = {
    "name": "a.B-c", "replicas": 3, "max_batch_wait": "2ms", "drain_timeout": "1m", "timeout": 0.25,
    "queue_bytes": "3GiB", "max_payload": 123_457, "shared_memory": 0, "gpu_utilization": 0.1,
    "listen": "unix:///run/x.sock", "insecure": True, "http": "[::1]:8000",
    "set": {"rate": 1e-5, "whole": 2.0, "deep": {"a b": [1, "x", True]}, "text": 'q"\\\n\x7fé$'},
    "env": {"PATH_TO": "/a b/$c", "QUOTED": '"'},
}  # fmt: skip


@pytest.mark.parametrize("settings", [{}, EVERYTHING, {**SPEECH, "health": "/v1/health?deep=1"}])
def test_settings_come_back_from_both_texts(settings: dict[str, Any]) -> None:
    """Nothing is lost, and nothing is written that is the default anyway."""
    wanted = config(**settings)
    assert resolve(file=tomllib.loads(as_file(wanted))).config == wanted
    assert resolve(environ=as_variables(wanted)).config == wanted
    assert as_file(config()) == 'target = "m.py:M"\n'


@trials(max_examples=25)
@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(st.characters(codec="utf-8")), max_size=3))
def test_any_text_survives(given_settings: dict[str, str]) -> None:
    """Quotes, backslashes and control characters mean themselves."""
    wanted = config(set=given_settings)
    assert resolve(file=tomllib.loads(as_file(wanted))).config == wanted
    assert resolve(environ=as_variables(wanted)).config.set == wanted.set
    variables = composed(wanted)["services"]["orch"]["environment"]
    box = inside(wanted, Choices()).config
    assert json.loads(variables["ORCH_SET"].replace("$$", "$") if wanted.set else "{}") == wanted.set
    assert resolve(file=tomllib.loads(manifest(wanted)["ConfigMap"]["data"]["orch.toml"])).config == box


def test_a_null_cannot_be_written_as_toml() -> None:
    """TOML has no word for it; the error says so."""
    with pytest.raises(ConfigError, match="null"):
        as_file(resolve({"target": "m.py:M", "set": ("x=null",)}).config)


# --- what changes inside


def test_a_container_listens_everywhere_and_is_published_where_the_settings_say() -> None:
    """By default that is loopback; ports of root's are moved inside."""
    box = inside(config(), Choices())
    assert (box.config.http, box.ports[0].host, box.ports[0].outside) == ("0.0.0.0:8000", "127.0.0.1", 8000)
    box = inside(config(http="[::]:443", grpc=":8001"), Choices())
    assert [(port.host, port.outside, port.inside) for port in box.ports] == [
        ("[::]", 443, 8443),
        ("0.0.0.0", 8001, 8001),
    ]
    box = inside(config(), Choices(publish="0.0.0.0:80"))
    assert (box.config.http, box.ports[0].host, box.ports[0].outside) == ("0.0.0.0:8000", "0.0.0.0", 80)


def test_keys_are_wanted_unless_the_user_insists() -> None:
    """Who listens everywhere needs keys, so the file expects them; a command has no gateway that would ask for one."""
    assert inside(config(), Choices()).has_keys
    assert not inside(config(insecure=True), Choices()).has_keys
    assert not inside(config(http="off"), Choices()).has_keys
    assert not inside(config(**SPEECH), Choices()).has_keys


def test_gpus_are_counted_anew() -> None:
    """The indexes are those of the host; a container sees its own from 0."""
    box = inside(config(device="cuda:2,3"), Choices())
    assert (box.gpus, box.config.device) == ((2, 3), "cuda")
    assert inside(config(device="cpu"), Choices()).gpus == ()
    assert inside(config(), Choices()).gpus is None
    assert inside(config(), Choices(gpus=2)).gpus == 2


@pytest.mark.parametrize(
    ("settings", "choices", "word"),
    [
        ({"device": "cpu"}, Choices(gpus=1), "device is cpu"),
        ({"device": "cuda:0"}, Choices(gpus=1), "names them already"),
        ({"http": "off"}, Choices(publish="0.0.0.0:80"), "http is off"),
        ({"http": "off"}, Choices(nginx=True), "nothing to stand before"),
        ({"target": "/srv/m.py:M"}, Choices(), "from that folder"),
        ({"target": "../m.py:M"}, Choices(), "from that folder"),
        ({**SPEECH, "replicas": "auto"}, Choices(), "give a number"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], choices: Choices, word: str) -> None:
    """In one line, before anything is written."""
    with pytest.raises(ConfigError, match=word) as refused:
        inside(config(**settings), choices)
    assert "\n" not in str(refused.value)


def test_a_proxy_of_the_host_is_not_reached_from_inside() -> None:
    """The file that orch keeps true for it stays outside."""
    assert inside(config(nginx="/etc/nginx/conf.d/orch.conf"), Choices()).config.nginx is None


def test_names_become_those_that_containers_may_have() -> None:
    """RFC 1123: lower-case letters, digits and dashes, a letter or digit at both ends, at most 63 with `orch-`."""
    assert [dns_name(each) for each in ("default", "S.x_1", "..", "A" * 64)] == [
        "default",
        "s-x-1",
        "instance",
        "a" * 40,
    ]


# --- compose


def test_compose_reserves_gpus_as_docker_wants_it() -> None:
    """All of them, a count, or some by their indexes; never a count beside indexes."""

    def devices(found: dict[str, Any]) -> Any:
        return found["services"]["orch"]["deploy"]["resources"]["reservations"]["devices"]

    assert devices(composed(config())) == [{"driver": "nvidia", "capabilities": ["gpu"], "count": "all"}]
    assert devices(composed(config(), Choices(gpus=2)))[0]["count"] == 2
    by_index = devices(composed(config(device="cuda:1,3")))[0]
    assert (by_index["device_ids"], "count" in by_index) == (["1", "3"], False)
    assert "deploy" not in composed(config(device="cpu"))["services"]["orch"]


def test_compose_waits_for_the_drain_and_hands_settings_over_whole() -> None:
    """Docker waits 10 s by default; a dollar would be replaced if it were not doubled."""
    service = composed(config(drain_timeout="2m", set={"path": "$HOME"}))["services"]["orch"]
    assert service["stop_grace_period"] == "140s"
    variables = {key: value.replace("$$", "$") for key, value in service["environment"].items()}
    assert resolve(environ=variables).config.set == {"path": "$HOME"}
    assert variables["ORCH_KEYS_FILE"] == "/run/secrets/keys"
    assert service["secrets"] == ["keys"]


def test_only_nginx_is_published_before_a_command() -> None:
    """It shares the network of the servers, which listen on loopback, and has a line for each of them."""
    found = composed(config(**SPEECH), Choices(publish="0.0.0.0:80"))
    assert found["services"]["orch"]["network_mode"] == "service:nginx"
    assert "ports" not in found["services"]["orch"]
    assert found["services"]["nginx"]["ports"] == ["0.0.0.0:80:8080"]
    assert found["configs"]["nginx"]["content"].count("server 127.0.0.1:91") == 3


# --- kubernetes


def test_a_pod_is_given_the_time_that_it_needs() -> None:
    """To load, twice; to leave its Service, to drain and to stop."""
    spec = manifest(config(load_timeout="100s", drain_timeout="1m"))["Deployment"]["spec"]["template"]["spec"]
    probe = spec["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 200
    assert spec["terminationGracePeriodSeconds"] == LEAVE_S + 60 + 20
    assert spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", str(LEAVE_S)]


def test_a_gpu_is_never_asked_to_hold_two_pods() -> None:
    """The old one goes first, one at a time, and so it does when a node is drained."""
    found = manifest(config(), pods=3)
    assert found["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    limits = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": 1}
    assert "resources" not in manifest(config(device="cpu"))["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def test_a_pod_can_do_little() -> None:
    """No root, no capability, nothing writable but what it is given."""
    for settings in (config(), config(**SPEECH)):
        spec = manifest(settings)["Deployment"]["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_volume_is_mounted_and_every_mount_is_there() -> None:
    """Also with TLS, a claim and keys, and before a command."""
    for settings in (config(), config(tls_cert="c", tls_key="k"), config(**SPEECH), config(insecure=True)):
        spec = manifest(settings, claim="models")["Deployment"]["spec"]["template"]["spec"]
        mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_settings_travel_as_a_file_and_other_settings_make_other_pods() -> None:
    """A ConfigMap alone would be changed below running pods."""
    first, second = manifest(config()), manifest(config(drain_timeout=5))
    assert resolve(file=tomllib.loads(second["ConfigMap"]["data"]["orch.toml"])).config.drain_timeout_s == 5
    notes = [each["Deployment"]["spec"]["template"]["metadata"]["annotations"] for each in (first, second)]
    assert notes[0] != notes[1]


def test_what_serves_no_metrics_is_not_scraped() -> None:
    """A command's servers may have none; without HTTP there is nothing to select, and probes ask the supervisor."""
    assert {"Service", "PodMonitor"} <= manifest(config()).keys()
    assert "PodMonitor" not in manifest(config(**SPEECH))
    silent = manifest(config(http="off"))
    assert not {"Service", "PodMonitor"} & silent.keys()
    probe = silent["Deployment"]["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]
    assert probe["exec"]["command"] == ["orch", "status", "--check"]


# --- the commands


def test_the_commands_write_what_the_settings_say(place: Path) -> None:
    """From orch.toml and options, to standard output or into a file."""
    (place / "orch.toml").write_text('target = "m.py:M"\nname = "x"\n')
    printed = CliRunner().invoke(main, ["deploy", "compose", "--replicas", "2"])
    assert printed.exit_code == 0, printed.output
    assert yaml.safe_load(printed.output)["services"]["orch"]["environment"]["ORCH_REPLICAS"] == "2"
    done = CliRunner().invoke(main, ["deploy", "kubernetes", "--pods", "2", "--output", "k.yaml"])
    assert done.exit_code == 0
    assert "kubectl apply -f k.yaml" in done.output
    documents = list(yaml.safe_load_all((place / "k.yaml").read_text()))
    assert documents[1]["spec"]["replicas"] == 2


def test_a_file_that_is_not_as_orch_wrote_it_stays(place: Path) -> None:
    """Neither yours nor one that you have changed is replaced, but by --force; one that is as it was is."""
    file = place / "compose.yaml"

    def write(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["deploy", "compose", "m.py:M", "--output", "compose.yaml", *words])
        return done.exit_code, done.output

    assert write() == (
        0,
        "orch: compose.yaml written; next (after what its head says): docker compose up -d\n",
    )
    assert write("--gpus=2")[0] == 0
    for text, why in (
        ("services: {}\n", "was not made by"),
        (file.read_text() + "# mine\n", "no longer as orch wrote it"),
    ):
        file.write_text(text)
        code, said = write()
        assert (code, why in said, "--force" in said) == (3, True, True)
        assert file.read_text() == text
    assert write("--force")[0] == 0
    assert "# mine" not in file.read_text()
    file.write_text(CliRunner().invoke(main, ["deploy", "kubernetes", "m.py:M"]).output)
    assert write()[0] == 3


def test_the_proxy_beside_it_has_limits_too(place: Path) -> None:
    """Where there is one; else it is said how to have one."""
    words = ["deploy", "compose", "m.py:M", "--rate=50", "--allow=10.0.0.0/8"]
    done = CliRunner().invoke(main, [*words, "--with-nginx"])
    front = yaml.safe_load(done.output)["configs"]["nginx"]["content"]
    assert "rate=50r/s;" in front
    assert front.count("allow 10.0.0.0/8;") == 1
    done = CliRunner().invoke(main, words)
    assert (done.exit_code, "add --with-nginx" in done.output) == (3, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compose"], "no target given"),
        (["compose"], "behind --, as ORCH_COMMAND"),
        (["compose", "m.py:M", "--image", ""], "from --image"),
        (["compose", "m.py:M", "--gpus", "0"], "from 1 to 64"),
        (["compose", "m.py:M", "--publish", "8000"], "such as 0.0.0.0:443"),
        (["kubernetes", "m.py:M", "--pods", "many"], "from 1 to 1000"),
        (["kubernetes", "m.py:M", "--claim", "A_b"], "lower-case"),
        (["kubernetes", "m.py:M", "--output", "no/such/folder/k.yaml"], "cannot be written"),
    ],
)
def test_a_slip_is_told_in_one_line(place: Path, words: list[str], said: str) -> None:
    """With the value and what is allowed."""
    done = CliRunner().invoke(main, ["deploy", *words])
    assert done.exit_code == 3
    assert said in done.output
    assert done.output.count("\n") == 1


def test_keys_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    """A secret of a container is mounted where it likes."""
    environ = {"ORCH_KEYS_FILE": str(tmp_path / "k.json"), "ORCH_STATE_DIR": "/elsewhere"}
    assert keys.path_of("any", environ) == tmp_path / "k.json"
