"""Traces: what a collector of OpenTelemetry gets of requests over HTTP and gRPC."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("grpc_health")
tritonclient = pytest.importorskip("tritonclient.grpc")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest  # noqa: E402

from tests.process.harness import Instance, Place, eventually  # noqa: E402
from tests.process.web import Web, free_address, listens  # noqa: E402

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
ERROR = 2


class Span(NamedTuple):
    """One span as the collector got it. Times in seconds."""

    name: str
    trace: str
    id: str
    parent: str
    service: str
    began: float
    ended: float
    status: int
    attributes: dict[str, Any]


class Collector:
    """Takes spans over OTLP, as protobuf over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector.take(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Not to standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, body: bytes) -> None:
        """Remember them."""
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = next(
                each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
            )
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {
                        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
                    }
                    self.spans.append(
                        Span(
                            span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), service,
                            span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9,
                            span.status.code, attributes,
                        )
                    )  # fmt: skip

    def close(self) -> None:
        """No more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def await_span(self, name: str, **attributes: Any) -> Span:
        """The last of that name."""

        def found() -> list[Span]:
            wanted = {key.replace("_", "."): value for key, value in attributes.items()}
            return [each for each in self.spans if each.name == name and wanted.items() <= each.attributes.items()]

        return eventually(found)[-1]

    def below(self, span: Span) -> dict[str, Span]:
        """Its children."""
        return {each.name: each for each in self.spans if each.parent == span.id}


def streamed(address: str, texts: list[str]) -> list[tuple[Any, Any]]:
    """What comes back over one stream: answers and errors."""
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with tritonclient.InferenceServerClient(address) as client:
        client.start_stream(
            callback=lambda result, error: answers.put((result, error)), headers={"traceparent": TRACEPARENT}
        )
        for text in texts:
            tensor = tritonclient.InferInput("input", [1], "BYTES")
            client.async_stream_infer("Sleeper", [tensor.set_data_from_numpy(np.array([text.encode()], np.object_))])
        found = [answers.get(timeout=10) for _ in texts]
        client.stop_stream()
    return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of our own."""
    found = Collector()
    yield found
    found.close()


def test_a_request_is_a_span_with_its_queue_its_batch_and_its_model_below(place: Place, collector: Collector) -> None:
    """Under the caller's own span; a batch has the times of its slowest row; errors and streams are told apart."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    address = free_address()
    instance = place.up("patient.py:Patient", f"--grpc={address}", http=True, env=environ)
    with Web(instance.url) as web:
        began = web.post("/predict", {"instances": [0.2, 0.1]}, traceparent=TRACEPARENT, x_request_id="mine")
        assert began.json == {"predictions": [0.2, 0.1]}
        span = collector.await_span("POST /predict", orch_rows=2)
        assert (span.trace, span.parent, span.service) == (TRACE, PARENT, "orch")
        assert span.attributes["http.response.status_code"] == 200
        assert span.attributes["orch.request_id"] == "mine"
        parts = collector.below(span)
        assert list(parts) == ["queue", "batch", "compute"]
        ends = [(each.began, each.ended) for each in parts.values()]
        assert span.began <= ends[0][0]
        assert [end for _, end in ends[:2]] == [begin for begin, _ in ends[1:]], "each begins where the last ends"
        assert ends[2][1] <= span.ended
        compute = parts["compute"]
        # One of the two waits for the other, in the queue or at its worker.
        assert 0.09 < compute.ended - compute.began < 0.29
        assert compute.began - parts["queue"].began > 0.09

        assert web.post("/predict", "no number").status == 500
        failed = collector.await_span("POST /predict", error_type="500")
        assert (failed.status, failed.parent, collector.below(failed)) == (ERROR, "", {})

        list(web.events("/v1/models/Patient:stream", 5))
        stream = collector.await_span("POST /v1/models/{model}:stream")
        assert stream.ended - stream.began > 0.09
        assert stream.status != ERROR

        left = web.raw(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1")
        eventually(lambda: instance.queue()["outstanding"] == 1)
        left.close()
        assert collector.await_span("POST", error_type="the client left").status == ERROR
    with tritonclient.InferenceServerClient(address) as client:
        text = tritonclient.InferInput("input", [1], "BYTES").set_data_from_numpy(np.array([b"0.1"], np.object_))
        client.infer("Patient", [text], headers={"traceparent": TRACEPARENT})
        call = collector.await_span("inference.GRPCInferenceService/ModelInfer")
        assert (call.trace, call.parent, list(collector.below(call))) == (TRACE, PARENT, ["queue", "batch", "compute"])


def test_a_stream_of_grpc_is_one_span(place: Place, collector: Collector) -> None:
    """From its first request to its end, with the parts of its slowest below; an error in it does not end it."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    address = free_address()
    place.up("plain.py:Sleeper", f"--grpc={address}", http=True, env=environ)
    eventually(lambda: listens(address))
    found = streamed(address, ["0.1", "0.2", '"no number"'])
    assert [error is None for _, error in found] == [True, True, False]
    whole = collector.await_span("inference.GRPCInferenceService/ModelStreamInfer", orch_rows=2)
    assert (whole.trace, whole.parent, whole.status) == (TRACE, PARENT, 0)
    compute = collector.below(whole)["compute"]
    assert 0.19 < compute.ended - compute.began <= whole.ended - whole.began


def test_a_collector_that_is_away_and_an_exporter_that_is_missing_stop_nothing(place: Place) -> None:
    """The log says so; requests are answered, and the instance ends in time."""

    def answers(instance: Instance) -> bool:
        with Web(instance.url) as web:
            return bool(web.post("/predict", 0).json == 0)

    away = place.up("patient.py:Patient", http=True, env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    missing = place.up("patient.py:Patient", name="b", http=True, env={"OTEL_TRACES_EXPORTER": "none,zipkin"})
    assert answers(away)
    assert answers(missing)
    missing.await_log("no package is installed that brings the exporter 'zipkin'", "g0")
