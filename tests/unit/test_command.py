"""Commands in a model's place: their words, their settings, and what is refused beside them."""

from __future__ import annotations

from typing import Any

import pytest

from orch.command import fill, names_port, title
from orch.config import Config, resolve
from orch.errors import ConfigError
from orch_cli.detach import arguments
from orch_cli.words import command_line

VALUES = {"port": "9102", "replica": "r2", "device": "cuda:0"}
WORDS = ("python", "api_server.py", "--listen", "127.0.0.1:{port}")


def given(words: tuple[str, ...] = WORDS, **flags: Any) -> Config:
    """The configuration with that command."""
    return resolve({"command": words, **flags}).config


@pytest.mark.parametrize(
    ("word", "filled"),
    [
        ("127.0.0.1:{port}", "127.0.0.1:9102"),
        ("--id={replica}-{replica}@{device}", "--id=r2-r2@cuda:0"),
        ('{"a":1}', '{"a":1}'),
        ('{"port": {port}}', '{"port": 9102}'),
        ("{}{ports}{{port}}$" + "{PORT}", "{}{ports}{9102}$" + "{PORT}"),
        ("", ""),
    ],
)
def test_places_are_filled_in_and_every_other_brace_is_left(word: str, filled: str) -> None:
    """A word may be JSON, a format, or a shell's."""
    assert fill(word, VALUES) == filled


def test_a_port_that_is_filled_in_is_not_looked_at_again() -> None:
    """What stands in for a place is a value, whatever it looks like."""
    assert fill("{replica}", {**VALUES, "replica": "{port}"}) == "{port}"


def test_a_command_is_known_by_what_it_runs() -> None:
    """In the status, where the whole would not fit."""
    assert title(("/usr/bin/python3", "srv/api_server.py", "--listen", "{port}")) == "python3 api_server.py"
    assert title(("uvicorn", "--port", "{port}")) == "uvicorn"
    assert title(("./serve", "{port}")) == "serve"
    assert title(("python", "-m", "uvicorn", "app:app", "--port", "{port}")) == "python uvicorn"


def test_a_command_says_where_to_listen() -> None:
    """In an argument, or in a variable; the program's own name is neither."""
    assert names_port(WORDS)
    assert given().title == "python api_server.py"
    assert given(("serve",), env=("PORT={port}",)).command == ("serve",)
    for words in (("serve", "--port", "80"), ("{port}",)):
        with pytest.raises(ConfigError, match=r"no argument has \{port\}.*--listen 127.0.0.1:\{port\}.*--env PORT="):
            given(words)


def test_a_command_comes_from_the_file_or_a_variable_too() -> None:
    """As a list of words; a variable as JSON, or as a shell would read it."""
    assert resolve(file={"command": list(WORDS)}).config.command == WORDS
    assert resolve(environ={"ORCH_COMMAND": "serve 'two words' {port}"}).config.command == (
        "serve",
        "two words",
        "{port}",
    )
    assert resolve(environ={"ORCH_COMMAND": '["serve", "{port}"]'}).config.command == ("serve", "{port}")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"run": "serve"}, "not a list of words"),
        (["serve", 3], "3 is no text"),
        ("serve '{port}", "No closing quotation"),
        ('["serve"', "delimiter"),
        (["", "{port}"], "names no program"),
        (7, "not a list of words"),
    ],
)
def test_what_is_no_command_is_refused(value: object, reason: str) -> None:
    """With the value, its source and an example."""
    with pytest.raises(ConfigError, match=reason):
        resolve(file={"command": value})


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"target": "m.py:M"}, r"target = m.py:M \(from TARGET\) and a command \(from -- COMMAND\) exclude each other"),
        ({"http": "127.0.0.1:80"}, "http = 127.0.0.1:80 .*orch deploy nginx"),
        ({"grpc": "127.0.0.1:80"}, "orch deploy nginx"),
        ({"gateways": "2"}, "gateways = 2 .*orch deploy nginx"),
        ({"listen": "ipc:///run/x"}, "orch deploy nginx"),
        ({"replicas": "best"}, "use auto or a number"),
        ({"set": ("a=1",)}, "set = a=1 .*arguments"),
        ({"max_batch_size": "4"}, "forms its own batches"),
    ],
)
def test_settings_of_models_are_refused_beside_a_command(flags: dict[str, Any], said: str) -> None:
    """Not one of them is ignored in silence."""
    with pytest.raises(ConfigError, match=said):
        given(**flags)


@pytest.mark.parametrize(
    "flags", [{"first_port": "9200"}, {"health": "/x"}, {"health_interval_s": "2"}], ids=lambda flags: next(iter(flags))
)
def test_settings_of_commands_are_refused_beside_a_model(flags: dict[str, Any]) -> None:
    """The other way round; without either, nobody can tell yet."""
    with pytest.raises(ConfigError, match=r"\(from --.*\): it is for a command, any HTTP server behind --"):
        resolve({"target": "m.py:M", **flags})
    assert resolve(flags).config.command == ()


def test_a_command_in_quotes_is_said_to_be_one_word() -> None:
    """A program's name may have a blank, but no place to fill in."""
    with pytest.raises(ConfigError, match="it is a single word; write the program and each argument as a word"):
        given(("python server.py {port}",))
    assert given(("/my programs/serve",), env=("PORT={port}",)).title == "serve"


def test_a_port_to_be_filled_in_leads_to_where_commands_stand() -> None:
    """`orch up ./server.py --listen 127.0.0.1:{port}`: ours is another --listen."""
    with pytest.raises(ConfigError, match=r"not an endpoint; \{port\} is filled in behind -- only"):
        resolve({"listen": "127.0.0.1:{port}"})
    assert resolve({"target": "m.py:M", "set": ("where=:{port}",)}).config.set == {"where": ":{port}"}


def test_what_has_to_be_given_depends_on_who_asks() -> None:
    """Who can do nothing with a command does not offer one."""
    with pytest.raises(ConfigError, match=r"no target given: .*; or any HTTP server behind --$"):
        resolve(required=("target", "command"))
    with pytest.raises(ConfigError, match=r"no target given: .* in orch.toml$"):
        resolve(required=("target",))


def test_no_http_is_no_contradiction() -> None:
    """It is what a command has."""
    assert given(http="off", gateways="1").http == "off"


@pytest.mark.parametrize("path", ["/v1/health", "/", "/health?deep=1"])
def test_health_is_a_path(path: str) -> None:
    """Perhaps with a query."""
    assert given(health=path).health == path


@pytest.mark.parametrize("path", ["v1/health", "http://x/health", "/a b", "/a#b", "/ä", ""])
def test_health_is_nothing_else(path: str) -> None:
    """A request line takes no blank, and the host is known."""
    with pytest.raises(ConfigError, match="use a path such as /v1/health"):
        resolve(file={"command": list(WORDS), "health": path})


def test_a_command_is_given_once_more_as_it_was() -> None:
    """What `--detach` starts."""
    assert command_line({"command": WORDS, "target": None}) == ["--", *WORDS]
    assert command_line({"command": (), "target": "m.py:M"}) == ["--", "m.py:M"]
    assert command_line({"command": ()}) == []
    assert arguments({"command": WORDS, "replicas": "2"}, None) == ["up", "--detached", "--replicas=2", "--", *WORDS]
