"""Installing, bringing up to date and taking away: histories of a host that is a dictionary of files."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest

from orch.config import resolve
from orch.errors import ConfigError
from orch_deploy import installing, layout, steps
from orch_deploy.installing import Host
from orch_deploy.layout import Wanted
from orch_deploy.proxy import Options as ProxyOptions
from orch_deploy.steps import Do, Manifest, Step, told
from orch_deploy.systemd import Options

SERVICE, SETTINGS = "/etc/systemd/system/orch-web.service", "/etc/orch/web.toml"
UNITS = ("orch-web.socket", "orch-web.service")


def wanted(
    settings: str = 'target = "m:M"\n',
    name: str = "web",
    proxy: str = "none",
    watchdog_s: float = 30.0,
    memory_max: str = "",
) -> Wanted:
    """An instance of that name."""
    config = resolve({"name": name, "target": "m:M"}).config
    units = Options(python="/opt/orch/bin/python", settings="/srv/orch.toml", directory="/srv", watchdog_s=watchdog_s)
    choices = {"proxy": proxy}
    if memory_max:
        units, choices = dataclasses.replace(units, memory_max=memory_max), {**choices, "memory_max": memory_max}
    return Wanted(config, settings, units, proxy, ProxyOptions(), choices)


class Fake:
    """A host with systemd: it has files, a user and running units, and notes the commands."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.has_user = False
        self.active: set[str] = set()
        self.directories: set[str] = set()
        self.commands: list[str] = []
        self.fails_at = ""

    def host(self, name: str = "web") -> Host:
        """As an instance sees it."""
        others = {
            path.rpartition("/")[2].removesuffix(".json"): steps.load(text, path)
            for path, text in self.files.items()
            if path.startswith(layout.MANIFESTS) and not path.endswith(f"/{name}.json")
        }
        return Host(self.files.get, self.has_user, frozenset(self.active), frozenset(self.directories), others)

    def manifest(self, name: str = "web") -> Manifest | None:
        """What is listed there."""
        text = self.files.get(layout.manifest_path(name))
        return None if text is None else steps.load(text, "the list")

    def install(self, what: Wanted, *, again: bool = False, version: str = "1.0") -> list[Step]:
        """Carry it out; the steps, but for those that only tell."""
        done = installing.install(what, self.manifest(what.name), self.host(what.name), version, again=again)
        return self.perform(done)

    def uninstall(self, name: str = "web", *, purge: bool = False) -> list[Step]:
        """Carry it out."""
        manifest = self.manifest(name)
        assert manifest is not None
        return self.perform(installing.uninstall(name, manifest, self.host(name), purge=purge))

    def perform(self, done: list[Step]) -> list[Step]:
        """Each in turn."""
        for step in done:
            match step.do:
                case Do.WRITE:
                    assert self.files.get(step.path) == step.was
                    assert self.has_user or step.group == "root", "the group comes before its files"
                    self.files[step.path] = step.text
                case Do.REMOVE:
                    del self.files[step.path]
                case Do.CLEAR | Do.EMPTY:
                    self.directories.discard(step.path)
                case Do.RUN:
                    self._run(step.command)
        return [step for step in done if step.do is not Do.KEEP]

    def _run(self, command: tuple[str, ...]) -> None:
        if self.fails_at and self.fails_at in command:
            raise ConfigError(f"{command[0]} failed")
        self.commands.append(" ".join(command))
        if command[:2] == ("systemctl", "disable"):
            assert all(f"{layout.UNITS}/{unit}" in self.files for unit in command[2:] if unit != "--now")
        if command[0] == "systemd-sysusers":
            self.has_user = True
        if command[0] == "userdel":
            self.has_user = False
        if command[0] == "systemd-tmpfiles":
            self.directories |= {layout.STATE, layout.CACHE, layout.RUN, "/etc/orch", layout.MANIFESTS}
        if command[:2] == ("systemctl", "start"):
            self.active |= set(command[2:])
            self.directories.add(f"{layout.STATE}/web")  # its logs
        if command[:2] == ("systemctl", "disable"):
            self.active -= set(command[2:])


def test_a_second_install_has_nothing_to_do() -> None:
    """Everything is there, runs, and is as it would be written."""
    host = Fake()
    first = host.install(wanted(proxy="nginx"))
    assert {step.do for step in first} == {Do.WRITE, Do.RUN}
    assert host.active == set(UNITS)
    assert host.install(wanted(proxy="nginx")) == []


def test_uninstall_leaves_nothing_but_data() -> None:
    """Logs and the user whose they are stay until --purge."""
    host = Fake()
    host.install(wanted(proxy="nginx"))
    host.uninstall()
    assert list(host.files) == [layout.manifest_path("web")]
    assert host.active == set()
    assert (host.has_user, f"{layout.STATE}/web" in host.directories) == (True, True)
    assert host.commands[-2:] == [
        "systemctl reset-failed orch-web.socket orch-web.service",
        "systemctl try-reload-or-restart nginx",
    ]


def test_uninstall_with_purge_leaves_nothing_at_all() -> None:
    """Neither directories nor the user."""
    host = Fake()
    host.install(wanted())
    host.uninstall(purge=True)
    assert (host.files, host.directories, host.has_user) == ({}, set(), False)


def test_a_user_that_was_there_before_stays() -> None:
    """What orch has not made, it does not remove."""
    host = Fake()
    host.has_user = True
    host.install(wanted())
    host.uninstall(purge=True)
    assert host.has_user
    assert not any("userdel" in command for command in host.commands)


def test_what_somebody_has_changed_stays_and_the_new_one_lies_beside_it() -> None:
    """An upgrade writes FILE.new; uninstall removes that, and not the changed file."""
    host = Fake()
    host.install(wanted())
    host.files[SERVICE] += "Nice=5\n"
    mine = host.files[SERVICE]
    host.install(wanted(watchdog_s=60.0), again=True)
    assert host.files[SERVICE] == mine
    assert "WatchdogSec=60" in host.files[SERVICE + ".new"]
    assert host.install(wanted(watchdog_s=60.0)) == [], "told once"
    host.uninstall()
    assert host.uninstall() == [], "the rest stays"
    assert host.files.pop(layout.manifest_path("web"))
    assert host.files == {SERVICE: mine}


def test_a_file_of_somebody_else_is_not_taken_over() -> None:
    """It was there before orch came: it stays as it is, also at the end."""
    host = Fake()
    host.files[SERVICE] = "[Service]\nExecStart=/bin/true\n"
    told_lines = [line for step in installing.install(wanted(), None, host.host(), "1.0") for line in told(step)]
    assert any("not from orch" in line for line in told_lines)
    host.install(wanted())
    host.uninstall(purge=True)
    assert host.files == {SERVICE: "[Service]\nExecStart=/bin/true\n"}


def test_an_upgrade_restarts_only_what_it_has_to() -> None:
    """New settings, units or a new orch: the service starts anew. Otherwise its replicas do, one by one."""
    host = Fake()
    host.install(wanted())
    del host.commands[:]
    host.install(wanted(), again=True)
    assert host.commands == ["systemctl reload orch-web.service"]
    del host.commands[:]
    host.install(wanted('target = "m:M"\nreplicas = 3\n'), again=True)
    assert host.commands[-1] == "systemctl restart orch-web.service"
    del host.commands[:]
    host.install(wanted('target = "m:M"\nreplicas = 3\n'), again=True, version="1.1")
    assert host.commands[-1] == "systemctl restart orch-web.service"
    del host.commands[:]
    host.install(wanted('target = "m:M"\nreplicas = 3\n', proxy="none", watchdog_s=10.0), again=True, version="1.1")
    assert "systemctl daemon-reload" in host.commands


def test_what_is_not_wanted_any_more_goes() -> None:
    """A proxy that is chosen no longer, and a socket that systemd is to hold no longer."""
    host = Fake()
    host.install(wanted(proxy="nginx"))
    without = wanted()
    host.install(dataclasses.replace(without, units=dataclasses.replace(without.units, socket=False)), again=True)
    assert not any("nginx" in path or path.endswith(".socket") for path in host.files)
    assert "systemctl disable --now orch-web.socket" in host.commands
    assert host.active == {"orch-web.service"}


def test_another_port_takes_the_socket_down_first() -> None:
    """A socket that hands its port to a running service cannot be started anew."""
    host = Fake()
    host.install(wanted())
    elsewhere = wanted()
    elsewhere = dataclasses.replace(elsewhere, config=dataclasses.replace(elsewhere.config, http="127.0.0.1:9000"))
    host.install(elsewhere, again=True)
    again = ["systemctl stop orch-web.service", "systemctl restart orch-web.socket"]
    assert host.commands[-3:] == [*again, "systemctl start orch-web.socket orch-web.service"]


def test_your_own_files_are_never_written_again() -> None:
    """Variables and keys are made once, empty."""
    host = Fake()
    host.install(wanted())
    host.files["/etc/orch/web.env"] = "HF_HOME=/data\n"
    host.files["/etc/orch/web.keys.json"] = '{"keys": ["mine"]}'
    assert host.install(wanted()) == []
    host.uninstall()
    yours = {"/etc/orch/web.env", "/etc/orch/web.keys.json"}
    assert set(host.files) == {*yours, layout.manifest_path("web")}
    host.install(wanted())
    assert host.files["/etc/orch/web.env"] == "HF_HOME=/data\n"
    host.uninstall()
    host.uninstall(purge=True)
    assert (host.files, host.has_user, host.directories) == ({}, False, set()), "whenever it is asked for"


def test_an_install_that_failed_goes_on_where_it_was() -> None:
    """What was made before is known for orch's own: nothing is kept beside, and uninstall finds it."""
    host = Fake()
    host.fails_at = "daemon-reload"
    with pytest.raises(ConfigError):
        host.install(wanted())
    host.fails_at = "start"
    with pytest.raises(ConfigError):
        host.install(wanted(watchdog_s=40.0))
    host.fails_at = ""
    rest = host.install(wanted(watchdog_s=45.0))
    assert not any(step.path.endswith(".new") for step in rest)
    assert host.active == set(UNITS)
    host.uninstall(purge=True)
    assert (host.files, host.has_user) == ({}, False)


@pytest.mark.parametrize(
    "fails_at", ["systemd-sysusers", "systemd-tmpfiles", "-t", "reload-or-restart", "daemon-reload", "enable", "start"]
)
def test_a_command_that_failed_runs_again(fails_at: str) -> None:
    """Though the files before it are all there; and an uninstall instead leaves nothing."""
    host = Fake()
    host.fails_at = fails_at
    for _ in range(2):
        with pytest.raises(ConfigError):
            host.install(wanted(proxy="nginx"))
    broken = copy.deepcopy(host)
    host.fails_at = broken.fails_at = ""
    host.install(wanted(proxy="nginx"))
    assert any(fails_at in command.split() for command in host.commands)
    assert host.active == set(UNITS)
    assert host.install(wanted(proxy="nginx")) == []
    broken.uninstall(purge=True)
    assert (broken.files, broken.has_user, broken.directories) == ({}, False, set())


def test_what_two_instances_share_goes_with_the_last_of_them() -> None:
    """The user, its directories and the slice."""
    host = Fake()
    host.install(wanted())
    host.install(wanted(name="other"))
    host.uninstall(purge=True)
    assert {layout.SYSUSERS, layout.TMPFILES, "/etc/systemd/system/orch.slice"} <= set(host.files)
    assert (host.has_user, layout.STATE in host.directories) == (True, True)
    host.uninstall("other", purge=True)
    assert (host.files, host.has_user) == ({}, False)


def test_what_two_instances_share_is_nobody_elses_to_either() -> None:
    """One writes it anew: the other knows it for orch's own, keeps its limits, and the last of them removes it."""
    host = Fake()
    slice_path, member = "/etc/systemd/system/orch.slice", "/etc/sysusers.d/orch-nginx.conf"
    host.install(wanted())
    host.install(wanted(name="other", proxy="nginx", memory_max="48G"))
    assert "MemoryMax=48G" in host.files[slice_path]
    assert "systemd-sysusers orch-nginx.conf" in host.commands
    web = host.manifest()
    assert web is not None
    assert web.choices["memory_max"] == "48G"
    host.uninstall("other", purge=True)
    assert member not in host.files
    assert "MemoryMax=48G" in host.files[slice_path]
    host.install(wanted(memory_max="50G"), again=True)
    assert "MemoryMax=50G" in host.files[slice_path]
    assert not any(path.endswith(".new") for path in host.files)
    host.uninstall(purge=True)
    assert host.files == {}


@pytest.mark.parametrize("fails_at", ["daemon-reload", "reset-failed", "try-reload-or-restart", "userdel"])
def test_an_uninstall_that_broke_off_goes_on_where_it_was(fails_at: str) -> None:
    """The list of what there is goes last."""
    host = Fake()
    host.install(wanted(proxy="nginx"))
    host.fails_at = fails_at
    with pytest.raises(ConfigError):
        host.uninstall(purge=True)
    host.fails_at = ""
    host.uninstall(purge=True)
    assert (host.files, host.directories, host.has_user, host.active) == ({}, set(), False, set())


def test_a_folder_that_is_to_become_a_host_has_nothing_started() -> None:
    """The programs of systemd are told of it, and none of them that would talk to a manager runs."""
    host = dataclasses.replace(Fake().host(), root="/image")
    done = installing.install(wanted(proxy="nginx"), None, host, "1.0")
    commands = [" ".join(step.command) for step in done if step.do is Do.RUN]
    assert commands == [
        "systemd-sysusers --root=/image orch.conf",
        "systemd-sysusers --root=/image orch-nginx.conf",
        "systemd-tmpfiles --root=/image --create orch.conf",
        "systemctl --root=/image enable orch-web.socket orch-web.service",
    ]


def test_a_proxy_finds_the_port_that_outlives_a_restart() -> None:
    """Where systemd holds it; otherwise each gateway's own socket."""
    config = resolve({"target": "m:M", "http": "0.0.0.0:8000", "gateways": "2"}).config
    assert [each.address for each in layout.servers_of(config, socket=True)] == ["127.0.0.1:8000"]
    assert [each.address for each in layout.servers_of(config, socket=False)] == [
        "unix:/run/orch/default/g0.http",
        "unix:/run/orch/default/g1.http",
    ]


def a_command(server_name: str = "_") -> Wanted:
    """Servers of the user's own behind nginx."""
    config = resolve({"name": "web"}, {}, {"command": ["/srv/server", "{port}"], "replicas": 2}).config
    units = Options(python="/opt/orch/bin/python", settings="/srv/orch.toml", directory="/srv", socket=False)
    return Wanted(config, "command = []\n", units, "nginx", ProxyOptions(server_name=server_name), {"proxy": "nginx"})


def test_a_file_that_is_kept_true_by_a_service_is_left_to_it() -> None:
    """Replicas of a command come and go: a service of its own writes nginx's file, and uninstall removes both."""
    host = Fake()
    host.install(a_command())
    watch, path = "/etc/systemd/system/orch-web-nginx.service", "/etc/nginx/conf.d/orch-web.conf"
    assert f"--watch --config={SETTINGS} --name=web --output={path}" in host.files[watch]
    host.files[path] = "what the watch has written"
    assert host.install(a_command()) == []
    del host.commands[:]
    host.install(a_command("example.org"))
    assert host.files[path] == "what the watch has written"
    assert host.commands == ["systemctl daemon-reload", "systemctl restart orch-web-nginx.service"]
    host.uninstall(purge=True)
    assert host.files == {}


def test_steps_are_told_with_what_is_in_them() -> None:
    """A new file whole, a changed one by its difference, a command as it could be typed."""
    new = Step(Do.WRITE, "why", "/a", "one\n", None, 0o640, "orch")
    assert told(new, whole=True) == ["write   /a   (why; mode 0640, root:orch)", "        | one"]
    assert told(dataclasses.replace(new, was="two\n"), whole=True)[-2:] == ["        | -two", "        | +one"]
    assert told(Step(Do.RUN, "", command=("echo", "a b"))) == ["run     echo 'a b'"]


def test_what_a_settings_file_puts_into_the_environment_is_not_shown() -> None:
    """It may be a secret: neither what is written, nor what it was."""
    was = 'target = "m:M"\nenv = {A = "old"}\n'
    text = 'target = "m:M"\n[env]  # of ours\nTOKEN = """\nhidden"""\n# B = "old"\n[set]\nrate = 2\n'
    new = Step(Do.WRITE, "", "/a", text, has_env=True)
    assert [line[10:] for line in told(new, whole=True)[1:]] == [
        'target = "m:M"', "[env]  # of ours", "TOKEN = ...", "...", "# B = ...", "[set]", "rate = 2",
    ]  # fmt: skip
    shown = "\n".join(told(dataclasses.replace(new, was=was), whole=True))
    assert "rate = 2" in shown
    assert not {"old", "hidden"} & set(re.findall(r"\w+", shown))
    other = dataclasses.replace(new, was=text.replace("hidden", "other"))
    assert told(other, whole=True)[1:] == ["        | values of variables, which are not shown"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}'])
def test_a_list_that_is_none_is_an_error_of_its_file(text: str) -> None:
    """Nothing is removed by a list that cannot be read."""
    with pytest.raises(ConfigError, match="/the/list"):
        steps.load(text, "/the/list")
