"""Unit files: what they say of an instance, and that systemd itself finds nothing wrong with them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from orch.config import Config, resolve
from orch.errors import ConfigError
from orch_cli.main import main
from orch_deploy.layout import Wanted, files
from orch_deploy.systemd import SYSTEM_PATH, Options, out_of_sight, units, word

# As `systemd-analyze security` counts: 0 is locked in, 10 may do everything (times ten here).
EXPOSURE = {"cpu": 17, "cuda": 20}


def config(**given: object) -> Config:
    """Settings of a model, but for what is given."""
    return resolve({}, {}, {"target": "model.py:Model", **given}).config


def options(**given: object) -> Options:
    """Of the usual installation, but for what is given."""
    paths = {"python": "/usr/bin/python3", "settings": "/etc/orch/web.toml", "directory": "/tmp"}
    return Options(**{**paths, **given})  # type: ignore[arg-type]


def lines(text: str, key: str) -> list[str]:
    """The values of a directive."""
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def test_times_follow_the_settings() -> None:
    """A start may take as long as a load and what is around it, a stop as long as a drain and what follows it."""
    text = units(config(load_timeout="20m", drain_timeout="90s"), options())["orch-default.service"]
    assert lines(text, "TimeoutStartSec") == ["1260"]
    assert lines(text, "TimeoutStopSec") == ["120"]
    assert lines(text, "ExecStart") == ["/usr/bin/python3 -P -m orch_cli up --config=/etc/orch/web.toml"]


def test_the_socket_is_where_http_is_served() -> None:
    """By default at the first port; without HTTP there is nothing to hold."""
    assert "ListenStream=127.0.0.1:8000\n" in units(config(), options())["orch-default.socket"]
    assert "ListenStream=[::1]:9000\n" in units(config(http="[::1]:9000"), options())["orch-default.socket"]
    assert "orch-default.socket" not in units(config(http="off"), options(socket=False))
    with pytest.raises(ConfigError, match="--no-socket"):
        units(config(http="off"), options())
    with pytest.raises(ConfigError, match="give a port"):
        units(config(http="127.0.0.1:0"), options())
    command = resolve({}, {}, {"command": ["python3", "server.py", "{port}"]}).config
    with pytest.raises(ConfigError, match="ports of their own"):
        units(command, options())


def test_a_gpu_is_let_through_and_nothing_else() -> None:
    """Only where the instance may use one; a home directory only where something of it lies there."""
    gpu = units(config(), options())["orch-default.service"]
    assert lines(gpu, "DeviceAllow") == ["char-nvidia* rw"]
    assert lines(gpu, "PrivateDevices") == ["no"]
    cpu = units(config(device="cpu"), options())["orch-default.service"]
    assert (lines(cpu, "DeviceAllow"), lines(cpu, "PrivateDevices")) == ([], ["yes"])
    assert lines(cpu, "ProtectHome") == ["yes"]
    at_home = units(config(), options(reads=("/home/ann/venv/bin/python",)))["orch-default.service"]
    assert lines(at_home, "ProtectHome") == ["read-only"]


def test_a_low_port_needs_a_capability_unless_systemd_holds_it() -> None:
    """The socket is opened by the manager, which may."""
    held = units(config(http="127.0.0.1:80"), options())["orch-default.service"]
    own = units(config(http="127.0.0.1:80"), options(socket=False))["orch-default.service"]
    assert lines(held, "AmbientCapabilities") == [""]
    assert lines(own, "AmbientCapabilities") == ["CAP_NET_BIND_SERVICE"]


def test_a_users_manager_gets_what_it_can_do() -> None:
    """No other user, no slice, no view of the file system of its own."""
    found = units(config(), options(user=True))
    assert list(found) == ["orch-default.service", "orch-default.socket"]
    text = found["orch-default.service"]
    for key in ("User", "Slice", "ProtectSystem", "PrivateTmp", "DevicePolicy", "LimitMEMLOCK", "After=network"):
        assert not lines(text, key), key
    assert lines(text, "WantedBy") == ["default.target"]


def test_programs_are_found_as_in_orchs_environment() -> None:
    """That of the interpreter first."""
    text = units(config(), options(python='/opt/my "venv"/bin/python'))["orch-default.service"]
    assert f'"PATH=/opt/my \\"venv\\"/bin:{SYSTEM_PATH}"' in lines(text, "Environment")


def test_a_service_does_not_see_what_lies_in_tmp() -> None:
    """That of a user's manager does."""
    assert out_of_sight(options(directory="/srv")) is None
    assert (
        out_of_sight(options(directory="/tmpfiles", reads=("/var/tmp/venv/bin/python",))) == "/var/tmp/venv/bin/python"
    )
    assert out_of_sight(options(directory="/tmp/x", user=True)) is None


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sh", "server.sh", "{port}"], None),
        (["no-such-program", "{port}"], "the service finds no program no-such-program in /"),
        (["./server", "{port}"], "the service finds no program ./server in"),
    ],
)
def test_a_command_is_found_before_a_unit_is_made(place: Path, command: list[str], said: str | None) -> None:
    """Whatever the shell's PATH is."""
    (place / "orch.toml").write_text(f"command = {json.dumps(command)}\n")
    done = CliRunner().invoke(main, ["deploy", "systemd", "--no-socket"])
    assert done.exit_code == (3 if said else 0), done.output
    assert (said or "ExecStart=") in done.output


def test_an_option_is_called_by_its_name(place: Path) -> None:
    """Not by the setting that is read like it."""
    (place / "orch.toml").write_text('target = "m:M"\n')
    for text in ("3x", "1", "-"):
        done = CliRunner().invoke(main, ["deploy", "systemd", "--watchdog", text])
        assert (done.exit_code, done.output) == (
            3,
            f"orch: watchdog = {text} (from --watchdog): use 2 to 86400 seconds\n",
        )


def test_words_mean_themselves() -> None:
    """Blanks, quotes, backslashes, percent and dollar signs reach the program as they are."""
    assert word("/srv/a-b_c.toml") == "/srv/a-b_c.toml"
    assert word("/srv/my model/a") == '"/srv/my model/a"'
    assert word('50%"$x\\') == '"50%%\\"$$x\\\\"'
    with pytest.raises(ConfigError, match="control character"):
        word("a\nExecStartPre=/bin/rm")
    for directory in ("/srv\nUser=root", "/srv/a\\", "/srv/a ", "srv"):
        with pytest.raises(ConfigError, match="absolute path in one line"):
            units(config(), options(directory=directory))


@pytest.mark.parametrize(
    ("key", "value"), [("cpu_weight", "0"), ("memory_high", "lots"), ("memory_max", "12Q"), ("watchdog_s", 0.5)]
)
def test_limits_that_systemd_would_not_take_are_refused(key: str, value: object) -> None:
    """The message names the limit, the value and what may be said."""
    with pytest.raises(ConfigError, match=rf"{key.removesuffix('_s')} = .*: use "):
        units(config(), options(**{key: value}))


@pytest.mark.parametrize("device", EXPOSURE)
def test_systemd_has_nothing_to_say(tmp_path: Path, device: str) -> None:
    """`verify` is silent about service, socket and slice, and the exposure is no higher than documented."""
    texts = units(config(device=device), options())
    command = resolve({}, {}, {"command": ["/usr/bin/python3", "{port}"]}).config
    behind = Wanted(command, "", options(python="/usr/bin/python3", socket=False), "nginx")
    watch = next(file for file in files(behind) if file.path.endswith("-nginx.service"))
    texts |= {"orch-default-nginx.service": watch.text}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    verified = systemd_analyze("verify", *(str(tmp_path / name) for name in texts))
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    service = str(tmp_path / "orch-default.service")
    rated = systemd_analyze("security", "--offline=true", f"--threshold={EXPOSURE[device]}", service)
    assert rated.returncode == 0, rated.stdout[-400:]


def test_systemd_has_nothing_to_say_of_a_users_units(tmp_path: Path) -> None:
    """The same for what a user's manager reads."""
    texts = units(config(), options(user=True))
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    verified = systemd_analyze("--user", "verify", *(str(tmp_path / name) for name in texts), runtime=str(tmp_path))
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")


def systemd_analyze(*words: str, runtime: str = "/nowhere") -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    environ = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "XDG_RUNTIME_DIR": runtime, "HOME": runtime}
    return subprocess.run(["systemd-analyze", *words], env=environ, capture_output=True, text=True, check=False)
