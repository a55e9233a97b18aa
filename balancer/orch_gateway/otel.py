"""A span of OpenTelemetry for each request, with its time in the queue, at the worker and in the model below it.

Imported only where traces are wanted: it needs the extra `otel`. What is sampled, how it is named and where it goes is
said by OpenTelemetry's environment variables, which the SDK reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import entry_points
from typing import Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from orch.errors import ConfigError
from orch.version import __version__
from orch_gateway.messages import Request, Response
from orch_gateway.service import TIMES
from orch_gateway.tracing import NAMES, Times

GROUP: Final = "opentelemetry_traces_exporter"
NO_NAME: Final = "unknown_service"
LEFT: Final = "the client left"

Handle = Callable[[Request], Awaitable[Response]]
Attributes = Mapping[str, str | int | float]


class Tracing:
    """Owns the way of the spans to their collector.

    Raises:
        ConfigError: an exporter of that name is not installed.
    """

    def __init__(self, exporters: Sequence[str]) -> None:
        resource = Resource.create()
        if str(resource.attributes.get(SERVICE_NAME, NO_NAME)).startswith(NO_NAME):
            resource = resource.merge(Resource({SERVICE_NAME: "orch"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for name in exporters:
            self._provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
        self._tracer = self._provider.get_tracer("orch_gateway", __version__)
        self._fields = propagate.get_global_textmap().fields

    def begin(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Span:
        """The span of a request, below the one that its headers (names in lower case) tell of."""
        given = {field: headers[field] for field in self._fields if field in headers}
        context = propagate.extract(given) if given else Context()
        kind = trace.SpanKind.SERVER
        return Span(self._tracer, self._tracer.start_span(name, context, kind, dict(attributes)))

    async def http(self, request: Request, handle: Handle) -> Response:
        """What `handle` answers; a stream's span ends with its last part."""
        headers = {field: request.header(field.encode()) for field in self._fields if field.encode() in request.headers}
        about = {"http.request.method": request.method, "url.path": request.path, "client.address": request.peer}
        span = self.begin(request.method, headers, about)
        if not span.is_sampled:
            return await handle(request)
        with span.told_times():
            response = await handle(request)
        span.name(f"{request.method} {request.route}")
        error = f"{response.status}" if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR else ""
        attributes: Attributes = {
            "http.route": request.route,
            "http.response.status_code": response.status,
            "orch.request_id": request.request_id,
        }
        if response.parts is None:
            span.end(attributes, error)
        else:
            response.parts = span.over(response.parts, attributes, error)
        return response

    def stop(self, within_s: float) -> None:
        """Send what is not sent yet, for at most so long."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)  # a collector may not answer
        closing.start()
        closing.join(within_s)


def _word(err: BaseException) -> str:
    return LEFT if isinstance(err, asyncio.CancelledError) else type(err).__name__


class Span:
    """Owns one request's span, and the times of its slowest row."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer, self._span = tracer, span
        self._num_rows = 0
        self._slowest: Times | None = None

    @property
    def is_sampled(self) -> bool:
        """Whether anybody will see it; otherwise there is nothing to tell it, nor to end."""
        return self._span.is_recording()

    def name(self, name: str) -> None:
        """What it is, once that is known."""
        self._span.update_name(name)

    @contextlib.contextmanager
    def told_times(self, word: Callable[[BaseException], str] = _word) -> Iterator[None]:
        """In here, rows that are answered tell their times; an exception, of which there is a word, ends the span."""
        token = TIMES.set(self._row)
        try:
            yield
        except BaseException as err:
            self.end({}, word(err))
            raise
        finally:
            TIMES.reset(token)

    def end(self, attributes: Attributes, error: str = "") -> None:
        """It is answered. error: "" if all went well."""
        span, slowest = self._span, self._slowest
        span.set_attributes(dict(attributes))
        if error:
            span.set_attribute("error.type", error)
            span.set_status(trace.StatusCode.ERROR)
        if slowest is not None:
            span.set_attribute("orch.rows", self._num_rows)
            within = trace.set_span_in_context(span)
            for name, began_ns, ended_ns in slowest.stages:
                self._tracer.start_span(name, within, start_time=began_ns).end(ended_ns)
        span.end()

    async def over(
        self, parts: AsyncGenerator[bytes, None], attributes: Attributes, error: str
    ) -> AsyncGenerator[bytes, None]:
        """The parts; it ends with them, or when nobody takes any more."""
        error = error or LEFT
        try:
            async for part in parts:
                yield part
            error = ""
        finally:
            self.end(attributes, error)
            await parts.aclose()

    def _row(self, began_ns: int, waited_s: float, took_s: float) -> None:
        times = Times(began_ns, time.time_ns(), waited_s, took_s)
        self._num_rows += 1
        if self._slowest is None or times.ended_ns - times.began_ns > self._slowest.ended_ns - self._slowest.began_ns:
            self._slowest = times


def _exporter(name: str) -> Any:
    found = [each for each in entry_points(group=GROUP) if each.name == name]
    if not found:
        raise ConfigError(f"{NAMES}: no package is installed that brings the exporter {name!r}")
    return found[0].load()()
