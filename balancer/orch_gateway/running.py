"""The routes that give a model work: plain JSON and its streams, and the Open Inference Protocol's."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from typing import Any, Final

from orch_gateway import generate, instances, plain, v2
from orch_gateway.encoding import unfold
from orch_gateway.faults import BadRequest
from orch_gateway.inference import Inference
from orch_gateway.manners import priority, timeout_s
from orch_gateway.messages import BINARY, EVENTS, HEADER_LENGTH, JSON, Request, Response
from orch_gateway.models import Models
from orch_gateway.refusals import BUG, body_of, error_of
from orch_gateway.routes import Handler, Route
from orch_gateway.service import Options, Service

log = logging.getLogger(__name__)

MAX_DIGITS: Final = 18  # of a number of bytes; no body has more
END_EVENT: Final = b"event: end\ndata: {}\n\n"
# Nothing between us and the client may keep parts back, or answer from a store.
STREAM_HEADERS: Final = [(b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


class Running:
    """Handlers. It decides nothing about load: every row goes to the balancer at once."""

    def __init__(self, models: Models, service: Service, max_body_bytes: int) -> None:
        self._models, self._service, self._max_body_bytes = models, service, max_body_bytes

    def routes(self) -> list[Route]:
        """The table."""

        def runs(template: str, handler: Handler, summary: str, takes: str, gives: str) -> Route:
            return Route("POST", template, handler, summary, runs=True, takes=takes, gives=gives)

        found = [
            runs("/predict", self.predict, "Run one input, or several as `instances`.", "Input", "Output"),
            runs("/v1/models/{model}:predict", self.predict, "The same for a model by name.", "Input", "Output"),
            runs("/v1/models/{model}:stream", self.stream, "Run one input; server-sent events.", "Input", "Events"),
        ]
        for version in ("", "/versions/{version}"):
            path = f"/v2/models/{{model}}{version}"
            batch, one = "Run a batch of tensors (Open Inference Protocol v2).", "Run one input, a flat JSON object."
            found += [
                runs(f"{path}/infer", self.infer, batch, "InferRequest", "InferAnswer"),
                runs(f"{path}/generate", self.generate, one, "GenerateRequest", "GenerateAnswer"),
                runs(
                    f"{path}/generate_stream", self.generate_stream, f"{one[:-1]}; server-sent events.",
                    "GenerateRequest", "Events",
                ),
            ]  # fmt: skip
        return found

    async def predict(self, request: Request, model: str = "") -> Response:
        """Plain JSON, or bytes; with `Accept: text/event-stream` as `stream`."""
        if EVENTS in request.headers.get(b"accept", b""):
            return await self.stream(request, model)
        spec = self._models.taking(model)
        body, options = self._body(request), _options(request, spec.name)
        if not spec.inputs and request.headers.get(b"content-type") == BINARY:  # nothing to look into, nor to copy
            return instances.answer([await self._service.one(body, options)], many=False)
        asked = instances.asked(bytes(body), request.media_type, spec.inputs)
        return instances.answer(await self._service.many(asked.rows, options), many=asked.many)

    async def stream(self, request: Request, model: str = "") -> Response:
        """One input; an event for each part, then the event "end", or "error"."""
        spec = self._models.taking(model)
        asked = instances.asked(bytes(self._body(request)), request.media_type, spec.inputs)
        if asked.many:
            raise BadRequest("a stream is of one input; leave out 'instances'")
        parts = self._service.stream(asked.rows[0], _options(request, spec.name))

        def event(part: Any) -> bytes:
            return b"data: " + instances.written(part) + b"\n\n"

        def failed(message: str, code: str) -> bytes:
            return b"event: error\ndata: " + plain.dumps(body_of(message, code)) + b"\n\n"

        return await _events(parts, event, failed, END_EVENT)

    async def infer(self, request: Request, model: str, version: str = "") -> Response:
        """A batch of rows."""
        spec = self._models.taking(model, version)
        inference = v2.parse(self._body(request), _header_length(request), spec, version)
        results = await self._service.many(inference.payloads, _options(request, spec.name, inference))
        parts, header_length = v2.respond(inference, spec, results)
        if header_length is None:
            return Response(200, parts, JSON)
        return Response(200, parts, BINARY, [(HEADER_LENGTH, b"%d" % header_length)])

    async def generate(self, request: Request, model: str, version: str = "") -> Response:
        """One row."""
        spec = self._models.taking(model, version)
        inference = generate.parse(self._body(request), spec, version)
        result = await self._service.one(inference.payloads[0], _options(request, spec.name, inference))
        return Response(200, (plain.dumps(generate.answer(inference, spec, result)),), JSON)

    async def generate_stream(self, request: Request, model: str, version: str = "") -> Response:
        """One row, in parts."""
        spec = self._models.taking(model, version)
        inference = generate.parse(self._body(request), spec, version)
        parts = self._service.stream(inference.payloads[0], _options(request, spec.name, inference))

        def event(part: Any) -> bytes:
            return generate.event(generate.answer(inference, spec, part))

        return await _events(parts, event, lambda message, _code: generate.event({"error": message}), b"")

    def _body(self, request: Request) -> bytes | memoryview:
        encoding = request.headers.get(b"content-encoding")
        if encoding is None:
            return request.body
        return unfold(request.body, encoding.decode("latin-1"), self._max_body_bytes)


def _options(request: Request, model: str, inference: Inference | None = None) -> Options:
    """What the headers ask for, and an inference's own parameters; of two time-outs the shorter one counts."""
    wait_s = timeout_s(request.find(b"x-request-timeout"))
    level = priority(request.find(b"x-request-priority"))
    if inference is None:
        return Options(model, wait_s, level)
    known = [each for each in (wait_s, inference.timeout_s) if each is not None]
    asked_for_none = inference.priority == "normal"
    return Options(model, min(known, default=None), level if asked_for_none else inference.priority)


def _header_length(request: Request) -> int | None:
    text = request.find(HEADER_LENGTH)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > MAX_DIGITS:
        raise BadRequest(f"Inference-Header-Content-Length = {text[:40]!r}; it must be a number of bytes")
    return int(text)


async def _events(parts: AsyncGenerator[Any, None], event: Any, failed: Any, end: bytes) -> Response:
    """A stream's answer, once its first part is there: an error before it still has a status of its own."""
    try:
        first = [event(await anext(parts))]
    except StopAsyncIteration:
        first = []
    except BaseException:
        await parts.aclose()
        raise

    async def body() -> AsyncGenerator[bytes, None]:
        try:
            for each in first:
                yield each
            async for part in parts:
                yield event(part)
            if end:
                yield end
        except Exception as err:
            _, message, code = error_of(err)
            if code == BUG:
                log.exception("a stream broke off")
            yield failed(message, code)
        finally:
            await parts.aclose()

    return Response(200, (), EVENTS, list(STREAM_HEADERS), body())
