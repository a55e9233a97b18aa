"""How clients are treated: request ids, time-outs, keys and their rates, and which web pages may ask. Pure."""

from __future__ import annotations

import hmac
import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from orch_gateway.messages import Header, Request
from orch_gateway.refusals import Refused

REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
MAX_TIMEOUT_S: Final = 86_400.0
NUMBER: Final = re.compile(r"[0-9.]+([eE][+-]?[0-9]+)?")  # what else float() reads, such as "1_0", is none to a client
PRIORITIES: Final = ("high", "normal", "low")
# A key may spend what its rate gives in so many seconds at once.
BURST_S: Final = 1.0
# How long a browser may remember what it was told of another origin (its own limit is 2 hours or less).
CORS_MAX_AGE_S: Final = 600
CORS_HEADERS: Final = b"authorization, content-type, x-request-id, x-request-timeout, x-request-priority"
NO_KEY: Final = "this instance asks for a key: send it as `Authorization: Bearer KEY` (`orch keys add` makes one)"


def request_id(given: str, make: str) -> str:
    """The client's own, if it is one of 1 to 128 visible ASCII characters, else `make`."""
    return given if REQUEST_ID.fullmatch(given) else make


def timeout_s(given: str | None) -> float | None:
    """What X-Request-Timeout says, in seconds; None without it.

    Raises:
        Refused: it is no number of seconds.
    """
    if given is None:
        return None
    try:
        value = float(given) if NUMBER.fullmatch(given) else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value <= MAX_TIMEOUT_S:
        raise Refused(400, f"X-Request-Timeout = {given[:40]!r}; it must be seconds above 0, at most {MAX_TIMEOUT_S:g}")
    return value


def priority(given: str | None) -> str:
    """What X-Request-Priority says; normal without it.

    Raises:
        Refused: it is none.
    """
    if given is None:
        return "normal"
    word = given.strip().lower()
    if word not in PRIORITIES:
        raise Refused(400, f"X-Request-Priority = {given[:40]!r}; it must be one of {', '.join(PRIORITIES)}")
    return word


# --- keys --------------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """One key, known by its digest alone. rate: requests in a second; None: any."""

    name: str
    digest: str
    rate: float | None = None


def paced(due_at: float, rate: float, now: float) -> tuple[float, float]:
    """Count one request of a key: when its next one is due, and seconds until one may come, 0 if this one may.

    due_at: what was said of the last one, or any time that has passed; what no request at this rate can have led to,
    because the rate was lower or the clock has begun anew, holds up nobody. A request may come before it is due, by
    what the rate gives in BURST_S.
    """
    ahead_s = max(0.0, BURST_S - 1 / rate)
    due_at = min(due_at, now + ahead_s + 1 / rate)
    if due_at - now > ahead_s:
        return due_at, due_at - now - ahead_s
    return max(due_at, now) + 1 / rate, 0.0


class Paces:
    """Owns when the next request of each key is due. See `rates.SharedPaces` for more than one process."""

    def __init__(self) -> None:
        self._due_at: dict[str, float] = {}

    def take(self, digest: str, rate: float, now: float) -> float:
        """Count one request; seconds until one may come, 0 if this one may."""
        self._due_at[digest], wait_s = paced(self._due_at.get(digest, -math.inf), rate, now)
        return wait_s


@dataclass(slots=True)
class Keys:
    """Owns the keys of one gateway. digest_of: what is kept of a token; take: of `Paces`.

    required: nobody may come without a key, even where there is none.
    """

    digest_of: Callable[[str], str]
    required: bool = False
    take: Callable[[str, float, float], float] = field(default_factory=lambda: Paces().take)
    by_digest: dict[str, Key] = field(default_factory=dict)

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take what the file says now."""
        found = [Key(str(row["name"]), str(row["digest"]), row.get("rate")) for row in rows]
        self.by_digest = {key.digest: key for key in found}

    def admit(self, authorization: str, now: float) -> str:
        """The name of the key that a request came with; "" where none is asked for.

        Raises:
            Refused: 401 without a key that is known, 429 beyond its rate.
        """
        if not self.required and not self.by_digest:
            return ""
        scheme, _, token = authorization.partition(" ")
        digest = self.digest_of(token.strip()) if scheme.lower() == "bearer" else ""
        key = self.by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise Refused(401, NO_KEY, "unauthorized")
        if key.rate is not None and (wait_s := self.take(key.digest, key.rate, now)):
            raise Refused(429, f"key {key.name!r} may ask {key.rate:g} times a second", "rate_limit", wait_s)
        return key.name


# --- web pages ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origins:
    """Which web pages may use the instance. allowed: "" for none of other hosts, an origin, or "*".

    guarded: only this host can reach the instance, and no page may lend its reader's browser to others.
    """

    allowed: str = ""
    guarded: bool = True

    def check(self, request: Request, *, has_key: bool) -> None:
        """Admit no page of another site, which would use what this host answers to nobody else. A key tells enough.

        Raises:
            Refused: 403, for a page that is not allowed.
        """
        origin = request.header(b"origin")
        if self.guarded and origin and not has_key and not self.allows(origin) and not _is_local(origin):
            raise Refused(
                403, f"pages of {origin[:80]} may not use this instance (`--cors-origin` lets them)", "origin"
            )

    def allows(self, origin: str) -> bool:
        """Whether the settings name it."""
        return self.allowed in ("*", origin)

    def headers(self, request: Request) -> list[Header]:
        """What tells a browser so."""
        origin = request.header(b"origin")
        if not self.allowed or not origin or not self.allows(origin):
            return []
        told = [(b"access-control-allow-origin", b"*" if self.allowed == "*" else origin.encode("latin-1"))]
        told += [(b"access-control-expose-headers", b"x-request-id, retry-after"), (b"vary", b"origin")]
        if request.method == "OPTIONS":
            told += [
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", CORS_HEADERS),
                (b"access-control-max-age", b"%d" % CORS_MAX_AGE_S),
            ]
        return told


def _is_local(origin: str) -> bool:
    """A page that this host has sent itself: a name that only the host's own resolver knows cannot be another site."""
    try:
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
