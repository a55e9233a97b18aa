"""Which path means what. Pure."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from orch_gateway.messages import Request, Response

Handler = Callable[..., Awaitable[Response]]
# Paths of which the meaning is remembered; more than that are somebody trying names.
MAX_KNOWN: Final = 1024
UNKNOWN: Final = "(no route)"


@dataclass(frozen=True, slots=True)
class Route:
    """One template such as "/v2/models/{model}/infer", whose parts in braces hold no slash and no colon.

    summary: for the OpenAPI document; "" leaves it out. is_open: asks for no key. runs: gives the model work, which a
    draining instance does not take. takes, gives: what the bodies are, by their names in that document; "": there is
    none. refuses: it never does what it is asked.
    """

    method: str
    template: str
    handler: Handler
    summary: str = ""
    is_open: bool = False
    runs: bool = False
    takes: str = ""
    gives: str = ""
    refuses: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """A route and its parts; or no route, and the methods that the path knows."""

    route: Route | None
    parts: dict[str, str] = field(default_factory=dict)
    allowed: tuple[str, ...] = ()


class Routes:
    """Owns the table."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.all = tuple(routes)
        self._patterns = [(re.compile(_pattern(each.template)), each) for each in self.all]
        self._known: dict[tuple[str, str], Match] = {}

    def find(self, method: str, path: str) -> Match:
        """What a request means; HEAD means what GET does."""
        method = "GET" if method == "HEAD" else method
        found = self._known.get((method, path))
        if found is None:
            found = self._find(method, path)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[method, path] = found
        return found

    def _find(self, method: str, path: str) -> Match:
        allowed = []
        for pattern, route in self._patterns:
            if (parts := pattern.fullmatch(path)) is not None:
                if route.method == method:
                    return Match(route, parts.groupdict())
                allowed.append(route.method)
        return Match(None, allowed=tuple(dict.fromkeys(allowed)))


def _pattern(template: str) -> str:
    pieces = re.split(r"\{(\w+)\}", template)
    return "".join(f"(?P<{piece}>[^/:]+)" if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))


__all__ = ["UNKNOWN", "Handler", "Match", "Request", "Route", "Routes"]
