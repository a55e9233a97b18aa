"""The routes that tell something: health, models, status, metrics, the page, and the document about all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from orch.version import __version__
from orch_gateway import facts, openapi, plain
from orch_gateway.asking import Supervisor
from orch_gateway.faults import BadRequest
from orch_gateway.messages import JSON, Header, Request, Response
from orch_gateway.metrics import exposition
from orch_gateway.models import Models
from orch_gateway.refusals import NOT_RUNNING, Refused
from orch_gateway.routes import Route
from orch_gateway.served import Served

PAGE: Final = Path(__file__).with_name("page")
INDEX: Final = "index.html"
TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
# The page is all ours: it loads nothing from elsewhere, and nobody may show it inside another.
PAGE_HEADERS: Final[list[Header]] = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
]
LIVE: Final[list[Header]] = [(b"cache-control", b"no-store")]


class About:
    """Handlers that give no model work."""

    def __init__(self, models: Models, served: Served, supervisor: Supervisor) -> None:
        self._models, self._served, self._supervisor = models, served, supervisor
        self._document = b""
        self._page = {path.name: path.read_bytes() for path in sorted(PAGE.glob("*")) if path.suffix in TYPES}

    def routes(self) -> list[Route]:
        """The table."""
        page = [Route("GET", f"/{name}", self.page, is_open=True) for name in self._page]
        return [
            Route("GET", "/", self.page, is_open=True),
            *page,
            Route("GET", "/openapi.json", self.openapi, is_open=True),
            Route("GET", "/healthz", self.live, "Whether the gateway answers.", is_open=True),
            Route("GET", "/readyz", self.ready, "Whether a model serves.", is_open=True),
            Route("GET", "/metrics", self.metrics, "Figures for Prometheus.", gives="Metrics"),
            Route("GET", "/v1/models", self.models, "The models, and what they take and give.", gives="Models"),
            Route(
                "GET", "/v1/status", self.status, "All that `orch status` shows, and the last minutes.", gives="Status"
            ),
            Route("GET", "/v1/gpu/info", self.gpus, "The GPUs and the replicas on them.", gives="Gpus"),
            Route("GET", "/v2", self.server, "The server and its extensions.", gives="Server"),
            Route("GET", "/v2/health/live", self.live, "Whether the gateway answers.", is_open=True),
            Route("GET", "/v2/health/ready", self.ready, "Whether every model serves.", is_open=True),
            Route("GET", "/v2/models/stats", self.stats, "Counts of every model.", gives="ModelStatistics"),
            Route(
                "POST",
                "/v2/repository/index",
                self.index,
                "The models, and whether they serve.",
                takes="IndexRequest",
                gives="Index",
            ),
            Route(
                "POST", "/v2/repository/models/{model}/load", self.load, "Whether the model serves; nothing is loaded."
            ),
            Route("POST", "/v2/repository/models/{model}/unload", self.unload, "Refused.", refuses=True),
            *self._of_models(""),
            *self._of_models("/versions/{version}"),
        ]

    def _of_models(self, version: str) -> list[Route]:
        base = f"/v2/models/{{model}}{version}"
        return [
            Route("GET", base, self.metadata, "What a model takes and gives.", gives="Model"),
            Route("GET", f"{base}/ready", self.model_ready, "Whether a model serves.", is_open=True),
            Route("GET", f"{base}/config", self.config, "A model's configuration.", gives="ModelConfig"),
            Route("GET", f"{base}/stats", self.stats, "Counts of one model.", gives="ModelStatistics"),
        ]

    # --- health --------------------------------------------------------------------------------------------------

    async def live(self, _request: Request) -> Response:
        """It answers."""
        return Response(200, (), b"", list(LIVE))

    async def ready(self, _request: Request) -> Response:
        """200 while every model serves."""
        reasons = [f"{spec.name} is {reason}" for spec, reason in self._models.all if reason]
        if reasons or not self._models.all:
            raise Refused(503, ", ".join(reasons) or "the instance is starting", NOT_RUNNING)
        return Response(200, (), b"", list(LIVE))

    async def model_ready(self, _request: Request, model: str, version: str = "") -> Response:
        """200 while it serves."""
        spec, reason = self._models.find(model, version)
        if reason:
            raise Refused(503, f"{spec.name} is {reason}", NOT_RUNNING)
        return Response(200, (), b"", list(LIVE))

    # --- models --------------------------------------------------------------------------------------------------

    async def server(self, _request: Request) -> Response:
        """GET /v2."""
        return _json(facts.server_metadata(__version__))

    async def metadata(self, _request: Request, model: str, version: str = "") -> Response:
        """What it takes and gives."""
        return _json(facts.model_metadata(self._models.taking(model, version)))

    async def config(self, _request: Request, model: str, version: str = "") -> Response:
        """The same in Triton's words."""
        return _json(facts.model_config(self._models.taking(model, version)))

    async def stats(self, _request: Request, model: str = "", version: str = "") -> Response:
        """What has happened to one model, or to all."""
        specs = [self._models.find(model, version)[0]] if model else self._served.models()
        return _json(facts.model_statistics([(spec, await self._served.statistics(spec)) for spec in specs]))

    async def models(self, _request: Request) -> Response:
        """For people: names, whether they serve, and their tensors."""
        shown = [
            {
                "name": spec.name,
                "ready": not reason,
                "reason": reason,
                "max_batch_size": spec.max_batch_size,
                "streams": spec.streams,
                "inputs": [tensor._asdict() for tensor in spec.inputs],
                "outputs": [tensor._asdict() for tensor in spec.outputs],
            }
            for spec, reason in self._models.all
        ]
        return _json({"models": shown})

    async def index(self, request: Request) -> Response:
        """The repository, which is what this instance serves."""
        try:
            asked = plain.loads(request.body) if request.body else {}
        except ValueError as err:
            raise BadRequest(f"failed to parse the request JSON buffer: {err}") from None
        if not isinstance(asked, dict) or not isinstance(asked.get("ready", False), bool):
            raise BadRequest("the body must be an object; 'ready' in it is true or false")
        return _json(facts.repository_index(self._models.all, only_ready=asked.get("ready", False)))

    async def load(self, _request: Request, model: str) -> Response:
        """Nothing is done for one that serves."""
        await self._served.load(model)
        return Response(200, (), b"")

    async def unload(self, _request: Request, model: str) -> Response:
        """Refused."""
        await self._served.unload(model)
        return Response(200, (), b"")

    # --- the instance --------------------------------------------------------------------------------------------

    async def status(self, _request: Request) -> Response:
        """The supervisor's own words."""
        return _json(await self._supervisor.status(), list(LIVE))

    async def gpus(self, _request: Request) -> Response:
        """The part of it about devices."""
        status = await self._supervisor.status()
        told = {key: status.get(key) for key in ("gpus", "mps", "host")}
        told["replicas"] = [
            {key: replica.get(key) for key in ("id", "state", "device", "gpu", "footprint_bytes", "memory_bytes")}
            for replica in status.get("replicas", ())
        ]
        return _json(told, list(LIVE))

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        body, content_type = exposition(await self._supervisor.status(), request.header(b"accept"))
        return Response(200, (body,), content_type.encode(), list(LIVE))

    async def page(self, request: Request) -> Response:
        """The status page and its parts."""
        name = request.path.strip("/") or INDEX
        if name not in self._page:
            raise Refused(404, "this build of orch has no status page", "not_found")
        return Response(200, (self._page[name],), TYPES[Path(name).suffix], list(PAGE_HEADERS))

    async def openapi(self, _request: Request) -> Response:
        """What all of this is, for programs."""
        return Response(200, (self._document,), JSON)

    def describe(self, routes: list[Route]) -> None:
        """Write the OpenAPI document of these routes."""
        self._document = plain.dumps(openapi.document(routes, __version__))


def _json(value: Any, headers: list[Header] | None = None) -> Response:
    return Response(200, (plain.dumps(value),), JSON, headers or [])
