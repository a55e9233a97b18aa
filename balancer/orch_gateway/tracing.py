"""Where traces go, by OpenTelemetry's environment variables, and the parts of a request's time. Pure.

Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

DISABLED, NAMES = "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
NS: Final = 1_000_000_000


def exporters(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The exporters that are asked for, as packages register them: `otlp_proto_http`, `console`.

    () where no variable says where traces should go: unlike other programs, a gateway does not look for a collector
    unasked.
    """
    given = {name: value.strip() for name, value in environ.items() if value.strip()}
    if given.get(DISABLED, "").lower() == "true" or not given.keys() & {NAMES, *ENDPOINTS}:
        return ()
    protocol = next((given[name] for name in PROTOCOLS if name in given), "http/protobuf").partition("/")[0]
    names = [each.strip() for each in given.get(NAMES, "otlp").split(",")]
    return tuple(f"otlp_proto_{protocol}" if each == "otlp" else each for each in names if each and each != "none")


class Times(NamedTuple):
    """Of one row. began_ns, ended_ns: since 1970. waited_s: at its worker for its batch; took_s: that batch."""

    began_ns: int
    ended_ns: int
    waited_s: float
    took_s: float

    @property
    def stages(self) -> list[tuple[str, int, int]]:
        """Each part by its name, with its beginning and its end. queue: with the way to the worker and back."""
        runs_ns = max(self.began_ns, self.ended_ns - round(self.took_s * NS))
        waits_ns = max(self.began_ns, runs_ns - round(self.waited_s * NS))
        return [
            ("queue", self.began_ns, waits_ns),
            ("batch", waits_ns, runs_ns),
            ("compute", runs_ns, max(runs_ns, self.ended_ns)),
        ]
