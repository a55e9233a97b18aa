"""The gRPC front on a real socket, spoken to by tritonclient. Behind it stands a gateway that answers by itself."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from orch import Tensor, errors
from orch_gateway.facts import Duration, Statistics
from orch_gateway.faults import Unsupported
from orch_gateway.inference import Inference, ModelSpec

pytest.importorskip("grpc")
tritonclient = pytest.importorskip("tritonclient.grpc")

import grpc  # noqa: E402  only where it is
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase  # noqa: E402
from tritonclient.grpc import aio  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from orch_gateway.grpc_service import GrpcServer  # noqa: E402

WITHIN_S = 20.0
ARRAYS = {
    "BOOL": np.array([[True, False], [False, True]]),
    "INT8": np.array([[-128, 127], [0, 1]], np.int8),
    "UINT64": np.array([[2**64 - 1, 0], [1, 2]], np.uint64),
    "FP16": np.array([[0.5, -2.0], [65504, 0]], np.float16),
    "BF16": np.array([[0.5, -2.0], [3e38, 0]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.5, -2.0], [3e38, 0]], np.float32),
    "FP64": np.array([[0.1, -2.0], [1e300, 0]]),
    "BYTES": np.array([[b"a", b""], [b"\xff\0", b"x" * 300]], np.object_),
}
SPECS = [
    *(ModelSpec(name, inputs=(Tensor("x", name, (2,)),), outputs=(Tensor("y", name, (2,)),)) for name in ARRAYS),
    ModelSpec("tokens", inputs=(Tensor("n", "INT32", ()),), outputs=(Tensor("t", "INT32", ()),), streams=True),
    ModelSpec("slow", max_batch_size=4),
    ModelSpec("failing"),
]


class Echo:
    """Answers what it was asked. "slow" answers when `release` is set; "failing" never does; "tokens" counts."""

    def __init__(self) -> None:
        self.release, self.started, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.seen: list[Inference] = []

    def models(self) -> Sequence[ModelSpec]:
        return SPECS

    def unready(self, spec: ModelSpec) -> str:
        return "loading" if spec.name == "failing" else ""

    async def infer(self, inference: Inference) -> Sequence[Any]:
        self.seen.append(inference)
        if inference.model == "failing":
            raise errors.Overloaded("the queue is full", 1.0)
        if inference.model == "slow" and inference.payloads == ["wait"]:
            self.started.set()
            try:
                await self.release.wait()
            finally:
                if not self.release.is_set():
                    self.cancelled.set()
        return [row.get("x", row.get("n")) if isinstance(row, dict) else row for row in inference.payloads]

    async def stream(self, inference: Inference) -> AsyncIterator[Any]:
        for i in range(int(inference.payloads[0]["n"])):
            yield np.int32(i)

    async def statistics(self, spec: ModelSpec) -> Statistics:
        return Statistics(num_rows=3, success=Duration(3, 30))

    async def load(self, name: str) -> None:
        raise Unsupported(f"model '{name}' cannot be loaded")

    async def unload(self, name: str) -> None:
        raise RuntimeError("a bug")


def with_server(history: Callable[[Echo, GrpcServer, str], Awaitable[None]]) -> None:
    """Run a history against a server on a port of its own, which is gone afterwards."""

    async def run() -> None:
        echo = Echo()
        server = GrpcServer(echo, max_message_bytes=1_000_000)
        port = await server.start("127.0.0.1:0")
        try:
            await asyncio.wait_for(history(echo, server, f"127.0.0.1:{port}"), WITHIN_S)
        finally:
            await server.stop(0)

    asyncio.run(run())


def tensor(array: Any, name: str = "x", datatype: str | None = None) -> Any:
    """An input of tritonclient's."""
    found = tritonclient.InferInput(name, list(array.shape), datatype or tritonclient.np_to_triton_dtype(array.dtype))
    return found.set_data_from_numpy(array)


def text(value: str) -> Any:
    """One row for a model that declares nothing."""
    return tensor(np.array([value], np.object_), "input")


def test_each_datatype_comes_back_through_tritonclient() -> None:
    """In a batch of two, with its id, from the blocking client and from the one for asyncio."""

    async def history(_echo: Echo, _server: GrpcServer, url: str) -> None:
        def blocking() -> None:
            with tritonclient.InferenceServerClient(url) as client:
                for name, array in ARRAYS.items():
                    found = client.infer(name, [tensor(array)], request_id=name)
                    assert found.as_numpy("y").tolist() == array.tolist()
                    assert found.as_numpy("y").dtype == array.dtype
                    assert (found.get_response().id, found.get_response().model_name) == (name, name)

        await asyncio.to_thread(blocking)
        async with aio.InferenceServerClient(url) as client:
            for name, array in ARRAYS.items():
                found = await client.infer(name, [tensor(array)], outputs=[tritonclient.InferRequestedOutput("y")])
                assert found.as_numpy("y").tolist() == array.tolist()

    with_server(history)


def test_priority_timeout_and_classes_are_understood() -> None:
    """As tritonclient sends them."""

    async def history(echo: Echo, _server: GrpcServer, url: str) -> None:
        async with aio.InferenceServerClient(url) as client:
            wish = tritonclient.InferRequestedOutput("y", class_count=1)
            found = await client.infer(
                "FP32", [tensor(ARRAYS["FP32"])], outputs=[wish], priority=1, timeout=1_500_000, parameters={"k": "v"}
            )
            assert found.as_numpy("y")[0].tolist() == [b"0.500000:0"]
            (seen,) = echo.seen
            assert (seen.priority, seen.timeout_s, seen.parameters["k"]) == ("high", 1.5, "v")

    with_server(history)


def test_the_server_and_its_models_tell_about_themselves() -> None:
    """Health, metadata, configuration, statistics and the index."""

    async def history(_echo: Echo, _server: GrpcServer, url: str) -> None:
        async with aio.InferenceServerClient(url) as client:
            assert await client.is_server_live()
            assert not await client.is_server_ready()  # one of its models is not
            assert await client.is_model_ready("FP32")
            assert not await client.is_model_ready("failing")
            assert not await client.is_model_ready("none")
            assert (await client.get_server_metadata()).name == "orch"
            metadata = await client.get_model_metadata("FP32", as_json=True)
            assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "2"]}]
            assert (await client.get_model_config("slow")).config.max_batch_size == 4
            statistics = await client.get_inference_statistics("FP32")
            assert statistics.model_stats[0].inference_stats.success.ns == 30
            assert len((await client.get_inference_statistics()).model_stats) == len(SPECS)
            index = await client.get_model_repository_index()
            assert [each.state for each in index.models if each.name == "failing"] == ["UNAVAILABLE"]

    with_server(history)


def test_errors_have_the_status_that_clients_know() -> None:
    """With one line each, also where the gateway itself is at fault."""

    async def history(_echo: Echo, _server: GrpcServer, url: str) -> None:
        async with aio.InferenceServerClient(url) as client:
            calls = {
                "NOT_FOUND": client.infer("none", [text("1")]),
                "INVALID_ARGUMENT": client.infer("FP32", [tensor(np.zeros((1, 3), np.float32))]),
                "UNAVAILABLE": client.infer("failing", [text("1")]),
                "UNIMPLEMENTED": client.load_model("FP32"),
                "INTERNAL": client.unload_model("FP32"),
                "RESOURCE_EXHAUSTED": client.infer("slow", [text("1" * 2_000_000)]),
            }
            for status, call in calls.items():
                with pytest.raises(InferenceServerException) as caught:
                    await call
                assert caught.value.status() == f"StatusCode.{status}"
                assert "\n" not in caught.value.message()
            with pytest.raises(InferenceServerException, match="the gateway failed; its log says why"):
                await client.unload_model("FP32")
            with pytest.raises(InferenceServerException, match="Method not found"):
                await client.get_system_shared_memory_status()

    with_server(history)


def test_a_stream_answers_in_parts_and_each_request_in_its_turn() -> None:
    """Through tritonclient's blocking client, which reads in a thread of its own."""

    async def history(echo: Echo, _server: GrpcServer, url: str) -> None:
        arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()

        def blocking() -> list[Any]:
            with tritonclient.InferenceServerClient(url) as client:
                client.start_stream(lambda result, error: arrived.put((result, error)))
                count = tensor(np.array([3], np.int32), "n")
                client.async_stream_infer("tokens", [count], request_id="t", enable_empty_final_response=True)
                tokens = [arrived.get(timeout=WITHIN_S)[0].get_response() for _ in range(4)]
                for i in range(20):
                    client.async_stream_infer("slow", [text(str(i))], request_id=str(i))
                client.async_stream_infer("none", [text("1")], request_id="missing")
                client.async_stream_infer("slow", [text("21")], request_id="last")
                rest = [arrived.get(timeout=WITHIN_S) for _ in range(22)]
                client.stop_stream()
                return [tokens, rest]

        tokens, rest = await asyncio.to_thread(blocking)
        values = [np.frombuffer(raw, "<i4").item() for each in tokens for raw in each.raw_output_contents]
        assert values == [0, 1, 2]
        assert [each.parameters["triton_final_response"].bool_param for each in tokens] == [False] * 3 + [True]
        assert {each.id for each in tokens} == {"t"}
        assert [result.get_response().id for result, error in rest if not error] == [*map(str, range(20)), "last"]
        assert [error.message() for _, error in rest if error] == ["Request for unknown model: 'none' is not found"]
        assert len(echo.seen) == 21

    with_server(history)


def test_a_client_that_leaves_gives_its_work_up() -> None:
    """In a single call and in a stream."""

    async def history(echo: Echo, _server: GrpcServer, url: str) -> None:
        async with aio.InferenceServerClient(url) as client:
            call = asyncio.ensure_future(client.infer("slow", [text('"wait"')]))
            await echo.started.wait()
            call.cancel()
            await echo.cancelled.wait()
            echo.started.clear()
            echo.cancelled.clear()

            async def requests() -> AsyncIterator[dict[str, Any]]:
                yield {"model_name": "slow", "inputs": [text('"wait"')]}
                await asyncio.Event().wait()

            responses = client.stream_infer(requests())
            reading = asyncio.ensure_future(anext(responses))
            await echo.started.wait()
            reading.cancel()
            responses.cancel()
            await echo.cancelled.wait()

    with_server(history)


def test_health_and_reflection_are_the_standard_ones() -> None:
    """As load balancers and grpcurl ask for them."""

    async def history(_echo: Echo, server: GrpcServer, url: str) -> None:
        def asked() -> tuple[int, list[str], list[str]]:
            with grpc.insecure_channel(url) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                known = ProtoReflectionDescriptorDatabase(channel)
                request = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
                status = stub.Check(request, timeout=WITHIN_S).status
                file = known.FindFileContainingSymbol("inference.ModelInferRequest")
                return status, list(known.get_services()), [message.name for message in file.message_type]

        for ready, status in ((False, "NOT_SERVING"), (True, "SERVING")):
            await server.tell_health(ready=ready)
            found, services, messages = await asyncio.to_thread(asked)
            assert found == health_pb2.HealthCheckResponse.ServingStatus.Value(status)
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)
        assert "ModelInferResponse" in messages

    with_server(history)


def test_an_address_that_is_taken_is_told() -> None:
    """In one line."""

    async def history(echo: Echo, _server: GrpcServer, url: str) -> None:
        second = GrpcServer(echo, max_message_bytes=1000)
        with pytest.raises(errors.AddressInUse, match="cannot listen on"):
            await second.start(url)

    with_server(history)
