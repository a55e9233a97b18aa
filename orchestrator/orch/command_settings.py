"""The settings of a command that runs in a model's place: fields of `Config`, kept together here. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from orch.command import PORT, names_port
from orch.errors import ConfigError
from orch.http_settings import HttpSettings
from orch.parsing import PORT_MAX, command, http_path, integer, seconds
from orch.setting import declare


@dataclass(frozen=True, slots=True)
class CommandSettings(HttpSettings):
    """What is run, and how its servers are found and looked after."""

    command: tuple[str, ...] = declare(
        (),
        command,
        "-- COMMAND [ARGUMENT]…",
        'a list of words, such as ["python", "api_server.py", "--listen", "127.0.0.1:{port}"]',
        "In TARGET's place, any HTTP server, run once for each replica; {port}, {replica} and {device} are filled in.",
    )
    first_port: int = declare(
        9100,
        integer(1, PORT_MAX),
        "PORT",
        f"a whole number from 1 to {PORT_MAX}",
        "Of a command: the port of r0; r1 has the next, and so on, past those that are taken.",
    )
    health: str | None = declare(
        None,
        http_path,
        "PATH",
        "a path such as /v1/health",
        "Of a command: its server is well while this path answers; unset: while it takes connections.",
    )
    health_interval_s: float = declare(
        5.0,
        # A server that refuses is given up after three looks: within a quarter of a minute.
        seconds(0.1, 3_600),
        "SECONDS",
        "seconds from 0.1 to 3600 (1h)",
        "Of a command: how often its server is asked whether it is well.",
    )


# What is said of a command that stands in quotes as a whole.
ONE_WORD: Final = (
    "it is a single word; write the program and each argument as a word of its own, without quotes around all"
)

# Settings of a model, its queue and its gateways, and what there is instead.
_PROXY: Final = "the servers of a command speak HTTP themselves; `orch deploy nginx` puts one address before them"
_OF_MODELS: Final[Mapping[str, str]] = {
    "http": _PROXY,
    "grpc": _PROXY,
    "gateways": _PROXY,
    "listen": _PROXY,
    "set": "it is handed to models; a command takes its settings as arguments, or from --env",
    "max_batch_size": "a command forms its own batches, if any",
    "max_batch_wait_s": "a command forms its own batches, if any",
}
# The other way round: a model has no server of its own.
_OF_COMMANDS: Final = ("first_port", "health", "health_interval_s")


def check_model(origins: Mapping[str, str], show: Callable[[str], str]) -> None:
    """For a `Config` with a target. show: as of `check_command`.

    Raises:
        ConfigError: it stands beside settings that only commands have.
    """
    for name in _OF_COMMANDS:
        if origins[name] != "default":
            raise ConfigError(
                f"{show(name)}: it is for a command, any HTTP server behind --; a model's HTTP is orch's own (--http), "
                "which answers /healthz"
            )


def check_command(config: Any, origins: Mapping[str, str], show: Callable[[str], str]) -> None:
    """For a `Config` with a command. show: a field as `key = value (from its source)`.

    Raises:
        ConfigError: it says nowhere where to listen, or stands beside settings that only models have.
    """
    if config.target:
        raise ConfigError(f"{show('target')} and a command (from {origins['command']}) exclude each other: give one")
    if len(config.command) == 1 and any(letter.isspace() for letter in config.command[0]) and PORT in config.command[0]:
        raise ConfigError(f"{show('command')}: {ONE_WORD}")
    if not names_port((*config.command[1:], *config.env.values())):
        raise ConfigError(
            f"{show('command')}: no argument has {PORT}, so that all replicas would listen at one place; write it "
            f"where the port goes, as in --listen 127.0.0.1:{PORT}, or in --env PORT={PORT}"
        )
    if config.replicas == "best":
        raise ConfigError(
            f"{show('replicas')}: orch can make no requests for a command, so that what pays cannot be measured; "
            "use auto or a number"
        )
    for name, instead in _OF_MODELS.items():
        if origins[name] != "default" and getattr(config, name) not in ("off", 1):
            raise ConfigError(f"{show(name)}: {instead}")
