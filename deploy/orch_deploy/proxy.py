"""What a proxy is to do in front of an instance: its user's choices, and what follows from orch's own limits. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from orch.errors import ConfigError
from orch.planning.sizes import KIB, MIB
from orch_deploy.site import Server, Site

# The first lines of a generated file carry the choices it was made with, so that whoever keeps it true finds them.
STAMP: Final = "# orch-options: "
# Characters that mean nothing in either proxy's language, so that a path or a name stands for itself.
PLAIN: Final = re.compile(r"[A-Za-z0-9._/@+,=:\[\]%~-]+")
# Any host, one, or all below a domain, which both proxies know.
SERVER_NAME: Final = re.compile(r"_|(\*\.)?[A-Za-z0-9_.-]{1,253}")

# With what is put around it, it names a variable of nginx, which has 64 bytes for one (variables_hash_bucket_size).
MAX_IDENTIFIER: Final = 28

# A server of this host accepts at once or not at all.
CONNECT_S: Final = 2
# A server that refuses is left alone for so long. It is short because the list of servers is kept true by orch: a
# longer pause would only outlast a moment in which all of them were away.
FAIL_S: Final = 1
MAX_FAILS: Final = 3
# A kept connection is given up by us first, never by the server under a request: gunicorn closes after 2 s, uvicorn
# and Node.js after 5 s. A new one costs some 50 us on one host.
COMMAND_KEPT_S: Final = 1
# The part of orch's own keep-alive after which a proxy gives a connection up.
KEPT_SHARE: Final = 0.8
# Beyond the time that orch itself may take with a request, so that orch's own answer comes first.
MARGIN_S: Final = 10
# A server that gets a request, and one more where that died: those that it had besides get their second chance, and a
# request that kills its servers takes two of them.
MAX_TRIES: Final = 2
# Idle connections to gateways that one proxy process keeps.
KEEPALIVE: Final = 64
# As at orch's gateways: how long a head, or a pause within a body, may take; and an answer of which nothing is taken.
HEAD_S: Final = 20
SEND_S: Final = 30
METRICS: Final = "/metrics"
MODEL_PRIVATE: Final = (
    "/healthz", METRICS, "/readyz", "/v1/gpu/info", "/v1/status", "/v2/health/live", "/v2/health/ready",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The choices of a proxy's user.

    listen, redirect: `PORT` or `HOST:PORT`; empty: the usual ports. redirect: where plain HTTP is sent on to HTTPS.
    rate: requests in a second of one client address. allow: networks that may see health and metrics. retry_posts: a
    request that may change something may be sent again though its server has died with it. standalone: the file is a
    whole configuration that an ordinary user can run, with what belongs to it in `folder`. access_log: a file, "off",
    or "" for the usual place. user: whom a standalone nginx that root starts runs its workers as. keepalive: idle
    connections to the servers that one nginx process keeps; None: the usual number. per_server: requests that one
    server gets at a time (HAProxy; the others wait there); 0: any number. version: of the nginx that reads the file;
    None: unknown.
    """

    server_name: str = "_"
    listen: tuple[str, ...] = ()
    redirect: tuple[str, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    rate: int | None = None
    allow: tuple[str, ...] = ("127.0.0.1", "::1")
    retry_posts: bool = False
    standalone: bool = False
    folder: str = ""
    access_log: str = ""
    user: str = ""
    keepalive: int | None = None
    per_server: int = 0
    version: tuple[int, int, int] | None = None

    @property
    def listens(self) -> tuple[str, ...]:
        """Where the proxy listens; a port that an ordinary user may have, where one is to run it."""
        usual = ("8443" if self.tls_cert else "8080") if self.standalone else ("443" if self.tls_cert else "80")
        return self.listen or (usual,)

    @property
    def redirects(self) -> tuple[str, ...]:
        """Where plain HTTP is sent on: port 80 beside port 443, unless told otherwise."""
        if self.tls_cert is None:
            return ()
        beside = tuple(f"{host}80" for host, port in map(parts, self.listens) if port == "443")
        return self.redirect or beside


@dataclass(frozen=True, slots=True)
class Limits:
    """What a proxy has to keep to, in seconds and bytes, so that it gives up neither earlier nor later than orch."""

    max_body_bytes: int
    read_s: int
    client_kept_s: int
    server_kept_s: int
    tries: int


def limits(site: Site) -> Limits:
    """From the instance's settings. The longest silence is that of a request whose every attempt runs out of time."""
    config = site.config
    kept_s = COMMAND_KEPT_S if site.kind == "command" else max(1, int(config.http_keep_alive_s * KEPT_SHARE))
    return Limits(
        max_body_bytes=config.http_max_body_bytes,
        read_s=math.ceil(config.timeout_s * config.max_attempts) + MARGIN_S,
        client_kept_s=math.ceil(config.http_keep_alive_s),
        server_kept_s=kept_s,
        tries=min(config.max_attempts, MAX_TRIES),
    )


def repeats_posts(site: Site, options: Options) -> bool:
    """Whether a request of any method may be sent again after its server died with it.

    Over HTTP orch promises at least one run, not at most one: its balancer repeats requests itself (README, "The
    contract"), and there is no header that forbids it. A command's own servers have promised nothing.
    """
    return site.kind == "model" or options.retry_posts


def keepalive(site: Site, options: Options) -> int:
    """Idle connections to the servers that one nginx process keeps. To a command's servers none, unless asked for.

    A failure on a kept connection is no try for nginx (ngx_http_upstream_next), which cannot tell a server that has
    closed it from one that has died: a request that kills its servers would go on to the next, and take all of them.
    """
    usual = KEEPALIVE if site.kind == "model" else 0
    return usual if options.keepalive is None else options.keepalive


def private_paths(site: Site) -> str:
    """A regular expression of the paths for operators, not for clients.

    With or without a slash at the end; and of metrics all that is below, where some libraries answer, too.
    """
    of_command = {METRICS, *([site.health.partition("?")[0]] if site.health else [])}
    paths = MODEL_PRIVATE if site.kind == "model" else sorted(of_command)
    each = [re.escape(path.strip("/")) + ("(/|$)" if path == METRICS else "/?$") for path in paths]
    return f"^/({'|'.join(each)})"


def serving(site: Site) -> tuple[Server, ...]:
    """The servers that may get a new request, by name."""
    return tuple(sorted((each for each in site.servers if not each.draining), key=lambda each: natural(each.id)))


def natural(name: str) -> tuple[str, int]:
    """Puts r10 behind r9."""
    found = re.fullmatch(r"(.*?)(\d*)", name)
    assert found is not None
    return found[1], int(found[2] or -1)


def identifier(name: str) -> str:
    """An instance's name where only letters, digits and underscores may stand; that of no other instance."""
    if re.fullmatch(rf"\w{{1,{MAX_IDENTIFIER}}}", name, re.ASCII):
        return f"orch_{name}"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"orch_{re.sub(r'[^A-Za-z0-9]', '_', name)[: MAX_IDENTIFIER - 9]}_{digest}"


def parts(address: str) -> tuple[str, str]:
    """`HOST:` with its colon, or "", and the port of an address to listen on."""
    host, colon, port = address.rpartition(":")
    return host + colon, port


def size(num_bytes: int) -> str:
    """As nginx and people write it: 256m, 64k, or bytes."""
    for unit, letter in ((MIB, "m"), (KIB, "k")):
        if num_bytes % unit == 0:
            return f"{num_bytes // unit}{letter}"
    return str(num_bytes)


def plain(what: str, text: str) -> str:
    """The text, which may stand in a proxy's file as it is.

    Raises:
        ConfigError: it has blanks, quotes or other characters that mean something there.
    """
    if not PLAIN.fullmatch(text):
        raise ConfigError(f"{what} = {text[:80]!r} cannot stand in a proxy's file; use letters, digits and ./_-@+,=:")
    return text


def check_plain(site: Site, options: Options) -> None:
    """Everything that goes into a file as text.

    Raises:
        ConfigError: as `plain`.
    """
    given: list[tuple[str, str | None]] = [("the address of " + each.id, each.address) for each in site.servers]
    given += [("the name of a server", each.id) for each in site.servers]
    given += [("tls_cert", options.tls_cert), ("tls_key", options.tls_key), ("access_log", options.access_log)]
    given += [("the folder", options.folder), ("user", options.user)]
    given += [(key, each) for key in ("listen", "redirect", "allow") for each in getattr(options, key)]
    # In a query, ? and & mean nothing to a proxy either.
    given += [("health", each) for each in re.split(r"[?&]", site.health or "")]
    for what, text in given:
        if text:
            plain(what, text)
    if not SERVER_NAME.fullmatch(options.server_name):
        raise ConfigError(
            f"server_name = {options.server_name[:80]!r}: use a host's name, such as api.example.org or *.example.org"
        )


# --- the stamp


def stamp(target: str, options: Options) -> str:
    """The line of a generated file that says how it was made. target: nginx or haproxy."""
    chosen = {
        entry.name: value
        for entry in dataclasses.fields(options)
        if (value := getattr(options, entry.name)) != entry.default and entry.name not in ("folder", "version")
    }
    return STAMP + json.dumps({"target": target, **chosen}, sort_keys=True)


def read_stamp(text: str) -> dict[str, Any]:
    """The choices that a generated file was made with, `target` among them; none in a file of somebody else."""
    line = next((line for line in text.splitlines() if line.startswith(STAMP)), STAMP + "{}")
    try:
        found = json.loads(line.removeprefix(STAMP))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def options_of(chosen: Mapping[str, Any]) -> Options:
    """Options from what a stamp, or a message, has; what this version does not know is left out."""
    known = {entry.name for entry in dataclasses.fields(Options)}
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in chosen.items() if key in known
    }
    return Options(**given)
