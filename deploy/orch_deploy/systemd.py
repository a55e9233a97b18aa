"""The texts of systemd's unit files for one instance. Pure.

Directives are those of systemd.exec(5), systemd.service(5), systemd.socket(5) and systemd.resource-control(5) as of
systemd 252, the oldest that is supported: that of Debian 12.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from orch.config import Config
from orch.errors import ConfigError
from orch.http_settings import DEFAULT_HOST, DEFAULT_PORT, split
from orch_deploy.render import render

# After the drain: ten seconds for a batch that runs, three for the balancer's and the gateways' last answers, and some.
STOP_MARGIN_S: Final = 30
# Before the load: the interpreter's start, the plan, and the first replica's second try.
START_MARGIN_S: Final = 60
FIRST_FREE_PORT: Final = 1024  # below it a listener needs CAP_NET_BIND_SERVICE
HOMES: Final = ("/home", "/root", "/run/user")
CONFIG_DIR: Final = "/etc/orch"
MIN_WATCHDOG_S: Final = 2.0
WEIGHT: Final = re.compile(r"[1-9][0-9]{0,3}|10000")
MEMORY: Final = re.compile(r"infinity|[1-9][0-9]?%|100%|[1-9][0-9]*[KMGT]?")


# What a service finds programs in besides the folder of its interpreter, as root's shell does.
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Folders of which a service of the host has its own (PrivateTmp).
PRIVATE: Final = ("/tmp", "/var/tmp")  # noqa: S108  nothing is put there


@dataclass(frozen=True, slots=True)
class Options:
    """How the instance is run.

    python: the interpreter's absolute path. settings: that of the settings file. directory: where a relative target or
    command is looked for. reads: what else has to be seen, such as where a link to an interpreter leads. user: for a
    user's manager, without root. socket: the manager holds the port. named: the name stands in no file and has to be
    given. cpu_weight, memory_high, memory_max: of all instances of the host together, in systemd's words.
    """

    python: str
    settings: str
    directory: str
    reads: tuple[str, ...] = ()
    user: bool = False
    socket: bool = True
    named: bool = False
    watchdog_s: float = 30.0
    cpu_weight: str = "100"
    memory_high: str = "85%"
    memory_max: str = "90%"


def unit_name(instance: str) -> str:
    """Of the service and of its socket, without the suffix."""
    return f"orch-{instance}"


def units(config: Config, options: Options) -> dict[str, str]:
    """Texts by file name: the service, the socket where it is wanted, and for the host's manager the slice.

    Raises:
        ConfigError: an option that systemd would not take, or a socket for an instance that serves no HTTP.
    """
    _check(config, options)
    name = unit_name(config.name)
    texts = {f"{name}.service": _service(config, options)}
    if options.socket:
        texts[f"{name}.socket"] = render(
            "systemd.socket.j2", name=name, instance=config.name, listen=listen_address(config)
        )
    if not options.user:
        texts["orch.slice"] = render(
            "systemd.slice.j2",
            cpu_weight=options.cpu_weight,
            memory_high=options.memory_high,
            memory_max=options.memory_max,
        )
    return texts


def serves_http(config: Config) -> bool:
    """Whether there are gateways, whose port a manager can hold."""
    return not config.command and config.http != "off"


def listen_address(config: Config) -> str:
    """Where HTTP is served; a manager holds one port, so that "auto" is its first choice."""
    return f"{DEFAULT_HOST}:{DEFAULT_PORT}" if config.http == "auto" else config.http


def search_path(python: str) -> str:
    """Where a service finds programs: those of orch's environment first, as in the shell that has it active."""
    return f"{PurePosixPath(python).parent}:{SYSTEM_PATH}"


def out_of_sight(options: Options) -> str | None:
    """A path of the instance that a service of the host cannot see, as its /tmp is another one; None: all are seen."""
    paths = () if options.user else (options.directory, options.python, *options.reads)
    return next((path for path in paths for each in PRIVATE if path == each or path.startswith(each + "/")), None)


def environment_file(config: Config, *, user: bool) -> str:
    """Variables of the instance, kept apart from the unit."""
    return f"{'%E/orch' if user else CONFIG_DIR}/{config.name}.env"


def keys_file(config: Config) -> str:
    """API keys of an instance of the host."""
    return f"{CONFIG_DIR}/{config.name}.keys.json"


def word(text: str) -> str:
    """One argument of a command line (systemd.service(5)): quoted where it has to be, `%` and `$` without a meaning.

    Raises:
        ConfigError: a control character is in it.
    """
    if any(ord(char) < 32 or ord(char) == 127 for char in text):  # noqa: PLR2004  ASCII's control characters
        raise ConfigError(f"{text[:80]!r} cannot stand in a unit file: it has a control character")
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[^\s'\";\\]+", text) else f'"{text}"'


def _service(config: Config, options: Options) -> str:
    program = [options.python, "-P", "-m", "orch_cli"]
    named = [f"--name={config.name}"]
    start = [*program, "up", f"--config={options.settings}", *(named if options.named else [])]
    ports = [] if options.socket or not serves_http(config) else [split(listen_address(config))[1]]
    ports += [split(config.grpc)[1]] if config.grpc != "off" else []
    needs_bind = any(0 < port < FIRST_FREE_PORT for port in ports)
    paths = (options.python, options.settings, options.directory, *options.reads)
    return render(
        "systemd.service.j2",
        name=unit_name(config.name),
        instance=config.name,
        user=options.user,
        socket=options.socket,
        gpu=config.device != "cpu",
        directory=_path(options.directory),
        start=" ".join(map(word, start)),
        reload=" ".join(map(word, [*program, "restart", "--wait", *named])),
        search_path=_quoted(search_path(options.python)),
        keys=keys_file(config),
        environment_file=environment_file(config, user=options.user),
        start_s=math.ceil(config.load_timeout_s) + START_MARGIN_S,
        stop_s=math.ceil(config.drain_timeout_s) + STOP_MARGIN_S,
        watchdog_s=f"{options.watchdog_s:g}",
        capabilities="CAP_NET_BIND_SERVICE" if needs_bind else "",
        home_is_read=any(path == home or path.startswith(home + "/") for path in paths for home in HOMES),
    )


def _path(text: str) -> str:
    """A setting that is one path: blanks need no quotes there, and `%` begins a specifier."""
    if not PurePosixPath(text).is_absolute() or not text.isprintable() or text.endswith((" ", "\\")):
        raise ConfigError(
            f"{text[:80]!r} cannot stand in a unit file: it must be an absolute path in one line, and end in no blank "
            "or backslash"
        )
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    """Within double quotes, where `$` has no meaning (Environment=)."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def _check(config: Config, options: Options) -> None:
    if options.socket and not serves_http(config):
        why = "a command's servers have ports of their own" if config.command else "http = off"
        raise ConfigError(f"{why}: there is no socket for the service manager to hold; use --no-socket")
    if options.socket and split(listen_address(config))[1] == 0:
        raise ConfigError(f"http = {config.http}: a socket is where clients look for it; give a port, or --no-socket")
    for path in (options.python, options.settings, options.directory):
        _path(path)
    if not options.watchdog_s >= MIN_WATCHDOG_S:
        raise ConfigError(f"watchdog = {options.watchdog_s:g}: use {MIN_WATCHDOG_S:g} seconds or more")
    if not WEIGHT.fullmatch(options.cpu_weight):
        raise ConfigError(f"cpu_weight = {options.cpu_weight[:80]}: use a whole number from 1 to 10000")
    for key in ("memory_high", "memory_max"):
        if not MEMORY.fullmatch(getattr(options, key)):
            raise ConfigError(
                f"{key} = {getattr(options, key)[:80]}: use a share such as 85%, a size such as 48G, or infinity"
            )
