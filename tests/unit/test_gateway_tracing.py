"""Where traces go, and what a request's time is made of."""

from __future__ import annotations

import pytest

from orch_gateway.tracing import Times, exporters

HTTP = "otlp_proto_http"


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, ()),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, (HTTP,)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c"}, (HTTP,)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, (HTTP,)),
        ({"OTEL_TRACES_EXPORTER": "otlp, console"}, (HTTP, "console")),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c"}, ()),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ("otlp_proto_grpc",)),
        (
            {
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            (HTTP,),
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "True"}, ()),
    ],
)
def test_traces_go_where_the_environment_says_and_nowhere_unasked(
    environ: dict[str, str], names: tuple[str, ...]
) -> None:
    """The variables are OpenTelemetry's own."""
    assert exporters(environ) == names


def test_the_parts_of_a_rows_time_follow_each_other_and_fill_it() -> None:
    """Also where clocks disagree, and the parts together seem longer than the whole."""
    second = 1_000_000_000
    times = Times(10 * second, 11 * second, 0.25, 0.5)
    assert times.stages == [
        ("queue", 10 * second, 10 * second + second // 4),
        ("batch", 10 * second + second // 4, 10 * second + second // 2),
        ("compute", 10 * second + second // 2, 11 * second),
    ]
    for waited_s, took_s in ((2.0, 0.5), (0.5, 2.0), (2.0, 2.0), (0.0, 0.0)):
        stages = times._replace(waited_s=waited_s, took_s=took_s).stages
        points = [stages[0][1], *(end for _, _, end in stages)]
        assert points == sorted(points)
        assert (points[0], points[-1]) == (10 * second, 11 * second)
