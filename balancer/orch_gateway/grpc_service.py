"""The protocol over gRPC: a server of grpc.aio for inference.proto, with the standard health service and reflection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from orch import errors
from orch.version import __version__
from orch_gateway import facts, grpc_codec
from orch_gateway.faults import Fault, NotFound
from orch_gateway.grpc_messages import POOL, SERVICE, ModelStreamInferResponse, message
from orch_gateway.inference import ModelSpec, model_named
from orch_gateway.serving import Serving

log = logging.getLogger(__name__)

# Requests of one stream that are under way at once; what comes beyond waits with its client, by gRPC's flow control.
MAX_STREAMED = 64

CODES: Sequence[tuple[type[Exception], grpc.StatusCode]] = (
    (errors.Overloaded, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.WorkerLost, grpc.StatusCode.UNAVAILABLE),
    (errors.NotRunning, grpc.StatusCode.UNAVAILABLE),
    (errors.Closed, grpc.StatusCode.UNAVAILABLE),
    (errors.NoSuchModel, grpc.StatusCode.NOT_FOUND),
    (errors.PayloadTooLarge, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Poisoned, grpc.StatusCode.FAILED_PRECONDITION),
)
BY_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    501: grpc.StatusCode.UNIMPLEMENTED,
}
HEALTH = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


class GrpcServer:
    """Owns the listening socket and the calls on it; what they mean is its Serving's business.

    max_message_bytes: of one request; a larger one is refused by gRPC itself. share_port: several processes listen on
    one address, and the kernel deals out the connections. interceptors: of grpc.aio, for keys.
    """

    def __init__(
        self,
        serving: Serving,
        *,
        max_message_bytes: int,
        share_port: bool = False,
        interceptors: Sequence[Any] = (),
    ) -> None:
        options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(share_port)),
        ]
        self._server = grpc.aio.server(interceptors=interceptors, options=options)
        self._server.add_generic_rpc_handlers((_handlers(_Front(serving)),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for module in (health_pb2, reflection_pb2):  # reflection tells of them too, and looks in one pool only
            POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=POOL)

    async def start(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on `host:port` or `unix:path`, with TLS if there are credentials; the port.

        Raises:
            AddressInUse: nothing can listen there.
        """
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as err:
            await self._server.stop(None)
            raise errors.AddressInUse(f"cannot listen on {address} for gRPC; choose another with --grpc") from err
        await self._server.start()
        return int(port)

    async def tell_health(self, *, ready: bool) -> None:
        """What the health service says from now on, to those who ask and those who watch."""
        for name in ("", SERVICE.full_name):
            await self._health.set(name, HEALTH[ready])

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; those that are under way are cut off after the grace time."""
        await self._server.stop(grace_s)


def code_of(err: Exception) -> grpc.StatusCode:
    """The status that an error of ours ends a call with."""
    if isinstance(err, Fault):
        return BY_STATUS.get(err.status, grpc.StatusCode.INTERNAL)
    return next((code for kind, code in CODES if isinstance(err, kind)), grpc.StatusCode.INTERNAL)


def text_of(err: Exception) -> str:
    """Its one line; what nobody expected goes to the log."""
    if isinstance(err, (Fault, errors.OrchError)):
        return str(err)
    log.error("a gRPC call failed", exc_info=err)
    return "the gateway failed; its log says why"


class _Front:
    """A method for each rpc of the protocol, under the rpc's name: a request message in, a response message out."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def ServerLive(self, _request: Any) -> dict[str, Any]:  # noqa: N802  the rpc's name, here and below
        return {"live": True}

    async def ServerReady(self, _request: Any) -> dict[str, Any]:  # noqa: N802
        models = self._serving.models()
        return {"ready": bool(models) and not any(map(self._serving.unready, models))}

    async def ModelReady(self, request: Any) -> dict[str, Any]:  # noqa: N802
        with contextlib.suppress(NotFound):
            return {"ready": not self._serving.unready(self._spec(request.name, request.version))}
        return {"ready": False}

    async def ServerMetadata(self, _request: Any) -> dict[str, Any]:  # noqa: N802
        return facts.server_metadata(__version__)

    async def ModelMetadata(self, request: Any) -> dict[str, Any]:  # noqa: N802
        return facts.model_metadata(self._spec(request.name, request.version))

    async def ModelConfig(self, request: Any) -> dict[str, Any]:  # noqa: N802
        return {"config": facts.model_config(self._spec(request.name, request.version))}

    async def ModelStatistics(self, request: Any) -> dict[str, Any]:  # noqa: N802
        specs = [self._spec(request.name, request.version)] if request.name else self._serving.models()
        return facts.model_statistics([(spec, await self._serving.statistics(spec)) for spec in specs])

    async def RepositoryIndex(self, request: Any) -> dict[str, Any]:  # noqa: N802
        found = [(spec, self._serving.unready(spec)) for spec in self._serving.models()]
        return {"models": facts.repository_index(found, only_ready=request.ready)}

    async def RepositoryModelLoad(self, request: Any) -> dict[str, Any]:  # noqa: N802
        await self._serving.load(request.model_name)
        return {}

    async def RepositoryModelUnload(self, request: Any) -> dict[str, Any]:  # noqa: N802
        await self._serving.unload(request.model_name)
        return {}

    async def ModelInfer(self, request: Any) -> Any:  # noqa: N802
        spec = self._spec(request.model_name)
        inference = grpc_codec.read(request, spec)
        return grpc_codec.write(inference, spec, await self._serving.infer(inference))

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        """Answer each request as it comes: in their order, but a model that answers in parts sends each at once."""
        slots, writing = asyncio.Semaphore(MAX_STREAMED), asyncio.Lock()
        before = asyncio.Event()
        before.set()

        async def answer(request: Any, before: asyncio.Event, turn: asyncio.Event) -> None:
            async with contextlib.aclosing(self._answers(request)) as responses:
                async for response, in_order in responses:
                    if in_order:
                        await before.wait()
                    async with writing:
                        await context.write(response)
            await before.wait()
            turn.set()
            slots.release()

        async with asyncio.TaskGroup() as tasks:
            async for request in requests:
                await slots.acquire()
                turn = asyncio.Event()
                tasks.create_task(answer(request, before, turn))
                before = turn

    async def _answers(self, request: Any) -> Any:
        """The responses to one request of a stream, each with whether it must wait for those to earlier requests."""
        in_order = True
        try:
            spec = self._spec(request.model_name)
            inference = grpc_codec.read(request, spec)
            if not spec.streams or len(inference.payloads) > 1:
                whole = grpc_codec.write(inference, spec, await self._serving.infer(inference), final=True)
                yield ModelStreamInferResponse(infer_response=whole), True
                return
            in_order = False
            parts: Any = self._serving.stream(inference)
            async with contextlib.aclosing(parts):
                async for part in parts:
                    response = grpc_codec.write(inference, spec, [part], final=False)
                    yield ModelStreamInferResponse(infer_response=response), False
            if request.parameters["triton_enable_empty_final_response"].bool_param:
                last = grpc_codec.blank(inference, final=True)
                yield ModelStreamInferResponse(infer_response=last), False
        except Exception as err:  # noqa: BLE001  one request's failure is told, and the stream goes on
            failed = ModelStreamInferResponse(error_message=text_of(err))
            failed.infer_response.id = request.id
            yield failed, in_order

    def _spec(self, name: str, version: str = "") -> ModelSpec:
        spec = model_named(self._serving.models(), name)
        spec.version(version)
        return spec


def _handlers(front: _Front) -> grpc.GenericRpcHandler:
    """Each rpc of the service, bound to the method of its name."""
    found = {}
    for method in SERVICE.methods:
        bound = getattr(front, method.name)
        takes, gives = message(method.input_type.name), message(method.output_type.name)
        forms = {"request_deserializer": takes.FromString, "response_serializer": gives.SerializeToString}
        if method.client_streaming:
            found[method.name] = grpc.stream_stream_rpc_method_handler(bound, **forms)
        else:
            found[method.name] = grpc.unary_unary_rpc_method_handler(_guarded(bound, gives), **forms)
    return grpc.method_handlers_generic_handler(SERVICE.full_name, found)


def _guarded(bound: Callable[[Any], Awaitable[Any]], gives: Any) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(request: Any, context: Any) -> Any:
        try:
            answer = await bound(request)
            return ParseDict(answer, gives()) if isinstance(answer, dict) else answer
        except Exception as err:  # noqa: BLE001  a client sees a line, whatever happened
            await context.abort(code_of(err), text_of(err))

    return call
