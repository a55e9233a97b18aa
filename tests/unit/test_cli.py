"""The command line: what it accepts, what it says of wrong input, and the exit code that goes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from orch.config import SETTINGS, Config
from orch.errors import ConfigError, DoesNotFit, Exit, NotRunning, OrchError, Overloaded
from orch.setting import ARGUMENTS
from orch.supervising.events import Event
from orch_cli import detach, display, logs, main, request, show, up
from orch_cli.down import outcome, sentence

GIB = 2**30


def orch(*words: str, env: Mapping[str, str] | None = None) -> Result:
    """Run one command in this process."""
    return CliRunner().invoke(main.main, words, env=env, prog_name="orch")


def error_line(result: Result) -> str:
    """The one line on standard error that a refusal is; nothing is on standard output."""
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("orch: ")
    return result.stderr.removeprefix("orch: ").rstrip("\n")


# --- help and version


def test_help_lists_every_command_with_a_sentence() -> None:
    """A new user finds all commands at once, none of them cut short."""
    result = orch("--help")

    assert result.exit_code == 0
    for name in main.COMMANDS:
        assert f"  {name}" in result.stdout
    assert "..." not in result.stdout.partition("Commands:")[2]


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    """No command needs another one's modules, a GPU or a running instance to show its help."""
    assert orch(name, "--help").exit_code == 0


def test_every_setting_is_an_option_of_up() -> None:
    """What the file and the environment can say, the command line can."""
    options = {name for parameter in up.up.params for name in parameter.opts}

    assert {setting.flag for setting in SETTINGS.values()} - set(ARGUMENTS.values()) <= options


def test_the_version_is_printed() -> None:
    """Name and number, nothing else."""
    assert orch("--version").stdout.startswith("orch 0.")


# --- wrong input


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["up"], "no target given", Exit.BAD_CONFIG),
        (["up", "nope.py:Model"], "there is no file nope.py", Exit.BAD_CONFIG),
        (["up", "model.py"], "it names no class or function", Exit.BAD_CONFIG),
        (["up", "pkg:f", "--replicas", "0"], "replicas = 0 (from --replicas)", Exit.BAD_CONFIG),
        (["up", "pkg:f", "--replicas", "-1"], "replicas = -1 (from --replicas)", Exit.BAD_CONFIG),
        (["up", "pkg:f", "--listen", "tcp://0.0.0.0:5555"], "CURVE", Exit.BAD_CONFIG),
        (["up", "pkg:f", "--set", "depth"], "'depth' has no =", Exit.BAD_CONFIG),
        (["up", "pkg:f", "--config", "nope.toml"], "config = nope.toml (from --config): no such file", Exit.BAD_CONFIG),
        (["plan", "nope.py:Model"], "there is no file nope.py", Exit.BAD_CONFIG),
        (["plan", "--replicas", "0"], "replicas = 0 (from --replicas)", Exit.BAD_CONFIG),
        (["plan", "--device", "cpu", "--replicas", "4000"], "4000 replicas do not fit", Exit.DOES_NOT_FIT),
        (["plan", "--vram-per-replica", "7XB"], "XB is not a unit", Exit.BAD_CONFIG),
        (["plan", "--gpu", "rtx-4091"], "rtx-4090", Exit.BAD_CONFIG),
        (["plan", "--gpu", "small:1GiB", "--vram-per-replica", "7GiB"], "not one replica fits", Exit.DOES_NOT_FIT),
        (["scale", "0"], "use orch down", Exit.BAD_CONFIG),
        (["scale", "many"], "replicas = many", Exit.BAD_CONFIG),
        (["down", "--timeout", "soon"], "drain_timeout = soon (from --timeout)", Exit.BAD_CONFIG),
        (["logs", "-n", "some"], "lines = some (from --lines)", Exit.BAD_CONFIG),
        (["status", "--name", "a/b"], "name = a/b (from --name)", Exit.BAD_CONFIG),
        (["request", "--json", "{"], "(from --json) is not JSON", Exit.BAD_CONFIG),
        (["request", "--file", "nope.json"], "(from --file nope.json) cannot be read", Exit.BAD_CONFIG),
        (["request", "text", "--timeout", "0"], "timeout = 0 (from --timeout)", Exit.BAD_CONFIG),
    ],
)
@pytest.mark.usefixtures("place")
def test_wrong_input_gives_one_line_and_its_exit_code(words: list[str], says: str, code: Exit) -> None:
    """Value, limit and way out, as a new user would meet them."""
    result = orch(*words)

    assert says in error_line(result)
    assert result.exit_code == code


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            ["up", "--replicas", "2", "python", "srv.py", "{port}"],
            "command stands behind --: orch up --replicas 2 -- python srv.py {port}",
        ),
        (["up", "./srv.py", "--port", "{port}"], "command stands behind --: orch up -- ./srv.py --port {port}"),
        (
            ["up", "python", "-m", "a b", ":{port}", "{{port}$"],
            "command stands behind --: orch up -- python -m 'a b' :{port} '{{port}$'",
        ),
        (["plan", "python", "srv.py"], "command stands behind --: orch plan -- python srv.py"),
        (["up", "m.py:M", "more"], ""),
        (["up", "m.py:M", "--replica", "2"], ""),
    ],
)
@pytest.mark.usefixtures("place")
def test_a_command_without_its_dashes_is_shown_with_them(words: list[str], hint: str) -> None:
    """A model that stands beside something else is none."""
    result = orch(*words)
    assert result.exit_code == Exit.USAGE
    assert ("stands behind --" in result.stderr) == bool(hint)
    assert result.stderr.rstrip().endswith(hint)


@pytest.mark.usefixtures("place")
def test_a_command_cannot_be_tuned() -> None:
    """Whether it is given or nothing is: no sentence offers it."""
    given, nothing = orch("tune", "--", "python", "srv.py", "{port}"), orch("tune")
    assert (given.exit_code, nothing.exit_code) == (Exit.BAD_CONFIG, Exit.BAD_CONFIG)
    assert "orch tune makes requests for models only" in error_line(given)
    assert "HTTP server" not in error_line(nothing)


def test_keys_are_refused_where_nobody_asks_for_them(place: Path) -> None:
    """The settings here are for a command: its servers answer without; an instance of another name may be a model's."""
    (place / "orch.toml").write_text('command = ["serve", "{port}"]\n')
    refused = orch("keys", "add", "bob")
    assert refused.exit_code == Exit.BAD_CONFIG
    assert "default is for a command (serve {port}): its servers answer HTTP themselves" in error_line(refused)
    assert orch("keys", "add", "bob", "--name", "other").exit_code == Exit.OK


@pytest.mark.parametrize(
    "words",
    [["serve"], ["up", "--replica", "2"], ["request"], ["request", "a", "--json", "1"], ["plan", "--gpu"]],
)
@pytest.mark.usefixtures("place")
def test_what_click_cannot_read_is_a_usage_error(words: list[str]) -> None:
    """Unknown commands and options, and arguments that contradict each other."""
    assert orch(*words).exit_code == Exit.USAGE


@pytest.mark.parametrize(
    "words", [["status"], ["status", "--watch"], ["scale", "2"], ["restart"], ["restart", "r0"], ["down"], ["logs"]]
)
@pytest.mark.usefixtures("place")
def test_a_command_about_an_instance_that_does_not_run_says_so(words: list[str]) -> None:
    """The line names the instance that was looked for."""
    result = orch(*words, "--name", "nobody")

    assert "nobody" in error_line(result)
    assert result.exit_code == Exit.NOT_RUNNING


def test_a_settings_file_that_is_no_toml_is_refused(place: Path) -> None:
    """Also one that is not even text, or is a directory."""
    (place / "orch.toml").write_text("replicas = = 2")
    assert "orch.toml is not TOML" in error_line(orch("config"))
    (place / "orch.toml").write_bytes(b"\xff\xfe")
    assert "orch.toml is not TOML" in error_line(orch("config"))
    assert "cannot be read" in error_line(orch("config", "--config", str(place)))


# --- settings


def test_config_shows_each_value_and_its_origin(place: Path) -> None:
    """One run with all four sources."""
    (place / "orch.toml").write_text('replicas = 2\nname = "prod"\n[set]\ndepth = 3\n')
    result = orch("config", "--name", "beta", "--set", "mode=fast", "--json", env={"ORCH_QUEUE_LIMIT": "9"})
    shown = json.loads(result.stdout)

    assert shown["config"]["name"] == "beta"
    assert shown["config"]["set"] == {"depth": 3, "mode": "fast"}
    assert {name: shown["origins"][name] for name in ("target", "replicas", "queue_limit", "name", "set")} == {
        "target": "default",
        "replicas": "orch.toml",
        "queue_limit": "ORCH_QUEUE_LIMIT",
        "name": "--name",
        "set": "orch.toml + --set",
    }


@pytest.mark.usefixtures("place")
def test_config_is_a_table_for_people() -> None:
    """With the same keys that the file has."""
    lines = orch("config").stdout.splitlines()

    assert ["drain_timeout", "30s", "default"] in [line.split() for line in lines]


@pytest.mark.usefixtures("place")
def test_an_unknown_variable_is_warned_of_on_standard_error() -> None:
    """Standard output stays what a program expects."""
    result = orch("config", "--json", env={"ORCH_REPLICA": "2"})

    assert result.stderr == "orch: warning: ORCH_REPLICA means nothing to orch; did you mean ORCH_REPLICAS?\n"
    assert json.loads(result.stdout)["config"]["replicas"] == "auto"


def test_commands_find_the_instance_that_the_settings_name(place: Path) -> None:
    """In the order of all settings; a mistake elsewhere in the file is no reason not to stop an instance."""
    (place / "orch.toml").write_text('name = "filed"\nreplicas = "bad"\n')

    assert "'filed'" in error_line(orch("status"))
    assert "'varied'" in error_line(orch("status", env={"ORCH_NAME": "varied"}))
    assert "'flagged'" in error_line(orch("status", "--name", "flagged", env={"ORCH_NAME": "varied"}))


# --- plan


@pytest.mark.usefixtures("place")
def test_a_card_that_is_not_there_can_be_planned_for() -> None:
    """Three replicas of 7 GiB on a 4090, and the sum that says so."""
    result = orch("plan", "--gpu", "rtx-4090", "--vram-per-replica", "7GiB")

    assert result.stdout.startswith("3 replicas: 3 on gpu 0 (NVIDIA GeForce RTX 4090); limited by memory\n")
    assert "so 3" in result.stdout


@pytest.mark.usefixtures("place")
def test_a_plan_for_programs_has_the_same_numbers() -> None:
    """Two cards, of which the larger takes more."""
    words = ["plan", "--gpu", "rtx-4090", "--gpu", "big:80GiB", "--vram-per-replica", "7GiB", "--json"]
    shown = json.loads(orch(*words).stdout)

    assert shown["total"] == 3 + 10
    assert {entry["gpu"]: entry["replicas"] for entry in shown["placement"]} == {
        shown["gpus"][0]["uuid"]: 3,
        shown["gpus"][1]["uuid"]: 10,
    }


@pytest.mark.usefixtures("place")
def test_without_a_footprint_the_plan_says_what_will_be_measured() -> None:
    """One replica to start with, and the option that makes measuring needless."""
    result = orch("plan", "--gpu", "rtx-4090")

    assert result.stdout.startswith("1 replica for now, which is measured")
    assert "--vram-per-replica" in result.stdout


# --- what is raised


def a_command_that_raises(error: BaseException) -> Result:
    """What the user of a command sees that ends in this exception."""
    coat = main.Coat()

    @coat.command()
    def work() -> None:
        raise error

    return CliRunner().invoke(coat, ["work"])


@pytest.mark.parametrize(
    "error", [ConfigError("no"), DoesNotFit("no"), NotRunning("no"), Overloaded("no"), OrchError("no")]
)
def test_an_error_of_orch_is_one_line_and_its_own_exit_code(error: OrchError) -> None:
    """The tree of errors decides, not the command."""
    result = a_command_that_raises(error)

    assert (error_line(result), result.exit_code) == ("no", error.exit_code)


def test_a_message_of_several_lines_becomes_one() -> None:
    """Logs and scripts read lines."""
    assert error_line(a_command_that_raises(ConfigError("one\n  two\n"))) == "one; two"


def test_an_unexpected_exception_is_owned_up_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that calls it a bug; the traceback for whoever asks."""
    monkeypatch.delenv("ORCH_DEBUG", raising=False)
    result = a_command_that_raises(ZeroDivisionError("by zero"))
    assert error_line(result).startswith("ZeroDivisionError: by zero (this is a bug in orch; set ORCH_DEBUG=1")
    assert result.exit_code == Exit.BUG

    monkeypatch.setenv("ORCH_DEBUG", "1")
    assert "Traceback" in a_command_that_raises(ZeroDivisionError("by zero")).stderr


def test_an_interrupt_and_a_closed_pipe_are_quiet() -> None:
    """They end the command as a shell expects, without a word."""
    interrupted, unread = a_command_that_raises(KeyboardInterrupt()), a_command_that_raises(BrokenPipeError())

    assert (interrupted.output, interrupted.exit_code) == ("", 130)
    assert (unread.output, unread.exit_code) == ("", 141)


# --- up


HISTORY = [
    Event("plan", "2 replicas on the CPU", data={"total": 2, "because": ["cores: 2", "the limit is cores"]}),
    Event("log", "loading weights", "r0"),
    Event("replica", "r0: LOADING", "r0", {"state": "LOADING"}),
    Event(
        "replica", "r0: READY", "r0",
        {"state": "READY", "device": "cpu", "footprint_bytes": 2 * GIB, "load_s": 1.25, "restarts": 0},
    ),
    Event("replica", "r1: READY", "r1", {"state": "READY", "restarts": 2}),
    Event("ready", "2 replicas at unix:///run/orch/default/front.sock"),
    Event("replica", "r1: READY -> BACKOFF (killed by signal 9)", "r1", {"state": "BACKOFF"}),
    Event("warning", "r1 died"),
    Event("stopped", "stopped"),
]  # fmt: skip
LINES = [
    "orch: 2 replicas on the CPU",
    "orch:   cores: 2",
    "orch:   the limit is cores",
    "r0 | loading weights",
    "orch: r0: LOADING",
    "orch: r0 ready on cpu, 2.0 GiB, loaded in 1.2 s",
    "orch: r1 ready restarts: 2",
    "orch: 2 replicas at unix:///run/orch/default/front.sock",
    'orch: try: orch request "…"   in Python: orch.Client().request(…)',
    "orch: r1: READY -> BACKOFF (killed by signal 9)",
    "orch: warning: r1 died",
    "orch: stopped",
]


@pytest.mark.parametrize("kind", [display.Lines, display.Bar])
def test_a_history_is_told_line_by_line_on_standard_error(
    kind: type[display.Lines], capsys: pytest.CaptureFixture[str]
) -> None:
    """With a bar or without, the same lines in the same order, and nothing on standard output."""
    with kind(Config()) as shown:
        for event in HISTORY:
            shown.report(event)
    told = capsys.readouterr()

    assert told.out == ""
    assert [line.rstrip() for line in told.err.splitlines() if line.startswith(("orch:", "r0 |"))] == LINES


def test_the_output_of_children_can_be_left_to_their_files(capsys: pytest.CaptureFixture[str]) -> None:
    """A detached instance's own log would otherwise hold everything twice."""
    display.Lines(Config(), show_output=False).report(Event("log", "noise", "r0"))

    assert capsys.readouterr().err == ""


def test_the_hint_names_the_instance(capsys: pytest.CaptureFixture[str]) -> None:
    """So that it can be typed as it stands."""
    display.Lines(Config(name="prod")).report(Event("ready", "serves"))

    assert 'orch request --name prod "…"' in capsys.readouterr().err


def test_a_detached_instance_gets_the_same_options() -> None:
    """Read back, the command line gives what was given, values with blanks and dashes included."""
    words = ["--replicas=-1", "--set", "text=a b", "--set", "x=--y", "--config", "my file.toml", "--", "-odd.py:Model"]
    given = up.up.make_context("up", words).params
    options = {name: value for name, value in given.items() if name in SETTINGS}
    again = up.up.make_context("up", detach.arguments(options, given["config_path"])[1:]).params

    assert again == {**given, "detached": True}


def test_what_a_detached_instance_says_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line, as they become whole; but not what the command has said itself."""
    path = tmp_path / "up.log"
    path.write_text("orch: warning: seen\norch: r0 LOA")
    with path.open("rb") as log:
        relay = detach.Relay(log, known=["orch: warning: seen"])
        relay.pump()
        assert (capsys.readouterr().err, relay.said_nothing) == ("", True)
        with path.open("a") as writer:
            writer.write("DING\norch: warning: port 8000 is taken\n")
        relay.pump()
    assert capsys.readouterr().err == "orch: r0 LOADING\norch: warning: port 8000 is taken\n"
    assert not relay.said_nothing


# --- status and down


STATUS = {
    "name": "prod", "state": "READY", "endpoint": "unix:///run/orch/prod/front.sock", "model": "m.py:[Model]", "pid": 7,
    "uptime_s": 192.4, "plan": {"total": 2, "limit": "cores", "because": ["cores: 2"]},
    "replicas": [
        {"id": "r0", "pid": 8, "state": "READY", "device": "cpu", "outstanding": 1, "answered": 12345, "restarts": 0,
         "footprint_bytes": 7 * GIB, "reason": ""},
        {"id": "r1", "pid": None, "state": "BACKOFF", "device": "cpu", "outstanding": 0, "answered": 0, "restarts": 3,
         "footprint_bytes": None, "reason": "killed by signal 9 [core]"},
    ],
    "queue": {"queued": 5, "outstanding": 1, "answered": 12345, "rejected": 0, "retried": 2},
}  # fmt: skip


def test_a_status_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure, readable; brackets in a reason are text and not markup."""
    show.print_out(show.status_view(STATUS))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert rows[0] == ["prod", "READY", "m.py:[Model]", "up", "3m12s", "pid", "7"]
    assert ["r0", "READY", "cpu", "8", "1", "12,345", "0", "7.0", "GiB"] in rows
    assert ["r1", "BACKOFF", "cpu", "-", "0", "0", "3", "-"] in rows
    assert ["r1:", "killed", "by", "signal", "9", "[core]"] in rows
    assert " ".join(rows[-1]) == "requests queued 5 outstanding 1 answered 12,345 rejected 0 retried 2"


def test_a_status_that_lacks_everything_is_still_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """An instance that only begins knows little."""
    show.print_out(show.status_view({}))

    assert "up -" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.9, "59s"), (247, "4m07s"), (11_520, "3h12m"), (180_000, "2d02h"), (None, "-")]
)
def test_a_duration_has_its_two_largest_units(seconds: float | None, text: str) -> None:
    """Short, and wide enough to tell apart."""
    assert show.duration(seconds) == text


def test_a_stop_says_whether_anything_was_left_unanswered() -> None:
    """Exit code 12 stands for requests that were accepted and not answered."""
    clean = outcome("prod", {"unanswered": 0, "queue": {"answered": 12345}}, 1.5)
    cut = outcome("prod", {"unanswered": 3}, 30.0)

    assert sentence(clean) == "prod stopped after 1.5 s: 12,345 requests answered, nothing left behind"
    assert cut["unanswered"] == 3
    assert "3 accepted requests unanswered" in sentence(cut)
    assert "1 accepted request unanswered" in sentence(outcome("prod", {"unanswered": 1}, 30.0))


# --- logs


def test_the_last_lines_are_found_across_rotated_files(tmp_path: Path) -> None:
    """As many files as it takes, in the order they were written; r0.log.10 is older than r0.log.9."""
    path = tmp_path / "r0.log"
    path.write_text("7\n8")
    (tmp_path / "r0.log.1").write_text("4\r\n5\n6\n")
    (tmp_path / "r0.log.2").write_text("2\n3\n")
    (tmp_path / "r0.log.10").write_text("1\n")
    (tmp_path / "r0.log.old").write_text("no\n")

    assert logs.last_lines(path, 4) == [b"5", b"6", b"7", b"8"]
    assert logs.last_lines(path, 100) == [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"]
    assert logs.last_lines(path, 0) == []


def test_sources_are_replicas_by_number_and_then_the_others(tmp_path: Path) -> None:
    """Not r10 before r2."""
    for name in ("supervisor", "r10", "balancer", "r2"):
        (tmp_path / f"{name}.log").touch()

    assert logs.sources_in(tmp_path) == ["r2", "r10", "balancer", "supervisor"]


def test_following_goes_on_across_a_rotation_and_finds_new_files(tmp_path: Path) -> None:
    """Nothing is lost, repeated or shown in halves."""
    path = tmp_path / "r0.log"
    path.write_text("before\n")
    follower = logs.Follower(tmp_path)
    assert list(follower.poll()) == []

    with path.open("a") as file:
        file.write("one\nhal")
    assert list(follower.poll()) == [("r0", b"one")]

    with path.open("a") as file:
        file.write("f\nlast of the old\n")
    path.rename(tmp_path / "r0.log.1")
    path.write_text("first of the new\n")
    (tmp_path / "r1.log").write_text("hello\n")
    assert sorted(follower.poll()) == [
        ("r0", b"first of the new"),
        ("r0", b"half"),
        ("r0", b"last of the old"),
        ("r1", b"hello"),
    ]

    path.write_text("cut\n")
    assert list(follower.poll()) == [("r0", b"cut")]
    follower.close()


def test_logs_of_an_instance_that_is_down_are_shown(place: Path) -> None:
    """Each line with the name of who wrote it; a name nobody has is refused with those there are."""
    directory = place / "state" / "prod"
    directory.mkdir(parents=True)
    (directory / "r0.log").write_text("one\ntwo\n")
    (directory / "balancer.log").write_text("up\n")

    assert orch("logs", "--name", "prod").stdout.splitlines() == ["r0 | one", "r0 | two", "balancer | up"]
    assert orch("logs", "--name", "prod", "r0", "-n", "1").stdout == "r0 | two\n"
    refused = orch("logs", "--name", "prod", "r7")
    assert "no logs of r7" in error_line(refused)
    assert "r0, balancer" in error_line(refused)
    assert refused.exit_code == Exit.BAD_CONFIG


# --- request


def test_an_answer_is_printed_as_json_whatever_it_holds() -> None:
    """Arrays as lists, bytes as text or base64, keys as text."""
    answer = {1: np.arange(3, dtype=np.int16), "x": (np.float32(0.5), b"text", b"\xff", None, True), "d": {"n": [1.5]}}

    assert json.loads(json.dumps(request.as_json(answer))) == {
        "1": [0, 1, 2],
        "x": [0.5, "text", {"base64": "/w=="}, None, True],
        "d": {"n": [1.5]},
    }


def test_a_file_is_sent_as_what_it_is(tmp_path: Path) -> None:
    """JSON and arrays by name; else text if it is text."""
    (tmp_path / "a.json").write_text('{"a": [1]}')
    (tmp_path / "a.txt").write_text("grüße")
    (tmp_path / "a.bin").write_bytes(b"\xff\x00")
    np.save(tmp_path / "a.npy", np.arange(3))

    assert request.read_payload(str(tmp_path / "a.json")) == {"a": [1]}
    assert request.read_payload(str(tmp_path / "a.txt")) == "grüße"
    assert request.read_payload(str(tmp_path / "a.bin")) == b"\xff\x00"
    assert request.read_payload(str(tmp_path / "a.npy")).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("name", "content"), [("a.json", b"{"), ("a.json", b"\xff"), ("a.npy", b"no array")])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Before anything is sent."""
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ConfigError, match=name):
        request.read_payload(str(tmp_path / name))


def test_commands_are_plain_click_commands() -> None:
    """Each name leads to one, so that a typing slip in the table is seen here."""
    context = click.Context(main.main)

    assert all(isinstance(main.main.get_command(context, name), click.Command) for name in main.COMMANDS)
