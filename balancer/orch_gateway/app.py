"""The application: every request's way in and out. It finds the route, and sees to manners; handlers do the rest."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from orch_gateway.encoding import WORTH_BYTES, chosen, fold
from orch_gateway.manners import Keys, Origins, request_id
from orch_gateway.messages import Request, Response
from orch_gateway.refusals import BUG, NOT_RUNNING, Refused, error_of, refusal_of
from orch_gateway.routes import UNKNOWN, Match, Route, Routes

if TYPE_CHECKING:
    from orch_gateway.otel import Tracing

log = logging.getLogger(__name__)

# A larger body is compressed by a thread, which lets the loop go on.
LARGE_BYTES: Final = 64 * 1024


class App:
    """Owns the table of routes. Its `handle` raises nothing but CancelledError."""

    def __init__(
        self,
        routes: list[Route],
        keys: Keys,
        origins: Origins,
        clock: Callable[[], float],
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        self.routes = Routes(routes)
        self._keys, self._origins, self._clock = keys, origins, clock
        prefix = secrets.token_hex(6)
        self._ids = (f"{prefix}-{number:x}" for number in itertools.count(1))
        self.draining = False

    def handle(self, request: Request) -> Awaitable[Response]:
        """The answer to one request."""
        return self._handle(request) if self._tracing is None else self._tracing.http(request, self._handle)

    async def _handle(self, request: Request) -> Response:
        given = request.find(b"x-request-id")
        request.request_id = (given and request_id(given, "")) or next(self._ids)
        match = self.routes.find(request.method, request.path)
        request.route = match.route.template if match.route is not None else UNKNOWN
        try:
            if match.route is None:
                response = self._no_route(request, match)
            else:
                self._admit(request, match.route)
                response = await match.route.handler(request, **match.parts)
            if b"accept-encoding" in request.headers and response.parts is None:
                await self._compress(request, response)
        except Exception as err:
            if error_of(err)[2] == BUG:
                log.exception("request %s to %s failed", request.request_id, request.route)
            response = refusal_of(err)
            if response.status == HTTPStatus.UNAUTHORIZED:
                response.headers.append((b"www-authenticate", b"Bearer"))
        response.headers.append((b"x-request-id", request.request_id.encode()))
        if b"origin" in request.headers:
            response.headers += self._origins.headers(request)
        return response

    def _admit(self, request: Request, route: Route) -> None:
        if not route.is_open:
            request.key = self._keys.admit(request.header(b"authorization"), self._clock())
            if b"origin" in request.headers:
                self._origins.check(request, has_key=bool(request.key))
        if route.runs and self.draining:
            raise Refused(503, "the instance is stopping and takes no new requests", NOT_RUNNING)

    @staticmethod
    def _no_route(request: Request, match: Match) -> Response:
        if not match.allowed:
            raise Refused(
                404, f"there is nothing at {request.path[:200]}; /openapi.json lists what there is", "not_found"
            )
        allow = (b"allow", ", ".join((*match.allowed, "OPTIONS")).encode())
        if request.method == "OPTIONS":  # a browser's question before the request itself comes without a key
            return Response(204, (), b"", [allow])
        response = refusal_of(Refused(405, f"{request.path[:200]} takes {' and '.join(match.allowed)}", "method"))
        response.headers.append(allow)
        return response

    @staticmethod
    async def _compress(request: Request, response: Response) -> None:
        encoding = chosen(request.header(b"accept-encoding"))
        num_bytes = response.num_bytes
        if not encoding or num_bytes < WORTH_BYTES:
            return
        if num_bytes < LARGE_BYTES:
            response.buffers = (fold(response.buffers, encoding),)
        else:
            response.buffers = (await asyncio.to_thread(fold, response.buffers, encoding),)
        response.headers += [(b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding")]
