"""gRPC beside HTTP: the server with its keys and certificate. A key is the metadata entry `authorization`, as in HTTP.

Imported only where gRPC is wanted: it needs the extra `grpc`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from orch_gateway.grpc_service import GrpcServer
from orch_gateway.manners import Keys
from orch_gateway.refusals import Refused
from orch_gateway.serving import Serving

if TYPE_CHECKING:
    from orch_gateway.otel import Tracing

MAX_MESSAGE_BYTES: Final = 2**31 - 1  # gRPC counts a message's bytes in 32 bits, with a sign
# Whoever watches over an instance asks these, and has no key.
OPEN: Final = (
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ModelReady",
)
TRACED: Final = ("ModelInfer", "ModelStreamInfer")
CODES: Final = {401: grpc.StatusCode.UNAUTHENTICATED, 429: grpc.StatusCode.RESOURCE_EXHAUSTED}


def server(serving: Serving, interceptors: Sequence[Any], max_body_bytes: int, *, share_port: bool) -> GrpcServer:
    """A server that listens nowhere yet. interceptors: the first one is the outermost."""
    num_bytes = min(max_body_bytes, MAX_MESSAGE_BYTES)
    return GrpcServer(serving, max_message_bytes=num_bytes, share_port=share_port, interceptors=interceptors)


def credentials(certificate: str | None, key: str | None) -> grpc.ServerCredentials | None:
    """For a server with this certificate, whose files can be read; None without one."""
    if certificate is None or key is None:
        return None
    return grpc.ssl_server_credentials([(Path(key).read_bytes(), Path(certificate).read_bytes())])


class AsksForKeys(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Refuses calls without a key that is known, or beyond its rate."""

    def __init__(self, keys: Keys, clock: Callable[[], float]) -> None:
        self._keys, self._clock = keys, clock

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.startswith(OPEN):
            return handler
        given = dict(details.invocation_metadata).get("authorization", "")
        try:
            self._keys.admit(given if isinstance(given, str) else "", self._clock())
        except Refused as err:
            return _refusing(handler, CODES[err.status], str(err))
        return handler


class Traces(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """A span for each call that runs inferences; that of a stream is as long as the stream."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        name = details.method.lstrip("/")
        method = name.rpartition("/")[2]
        if handler is None or method not in TRACED:
            return handler
        headers = {key: value for key, value in details.invocation_metadata if isinstance(value, str)}
        inner = handler.stream_stream if handler.request_streaming else handler.unary_unary

        async def call(request: Any, context: Any) -> Any:
            span = self._tracing.begin(name, headers, {"rpc.system": "grpc", "rpc.method": method})
            if not span.is_sampled:
                return await inner(request, context)
            with span.told_times(lambda _: context.code().name if context.code() else "CANCELLED"):
                answer = await inner(request, context)
            span.end({"rpc.grpc.status_code": grpc.StatusCode.OK.value[0]})
            return answer

        return _handler_like(handler, call, handler.request_deserializer, handler.response_serializer)


def _refusing(handler: Any, code: grpc.StatusCode, text: str) -> Any:
    """A handler of the same form that ends every call so."""

    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(code, text)

    return _handler_like(handler, refuse)


def _handler_like(handler: Any, call: Callable[[Any, Any], Awaitable[Any]], *forms: Any) -> Any:
    """A handler of the same form that does something else. forms: its deserializer and serializer."""
    takes = "stream" if handler.request_streaming else "unary"
    gives = "stream" if handler.response_streaming else "unary"
    return getattr(grpc, f"{takes}_{gives}_rpc_method_handler")(call, *forms)
