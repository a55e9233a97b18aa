"""What every protocol's front asks for, done: a `Serving` over the supervisor's snapshot and the balancer's client."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from orch.errors import NotRunning
from orch_gateway.asking import Supervisor
from orch_gateway.facts import Statistics, statistics_of
from orch_gateway.faults import Unsupported
from orch_gateway.inference import Inference, ModelSpec
from orch_gateway.models import Models
from orch_gateway.service import Options, Service


class Served:
    """It decides nothing about load: every row goes to the balancer at once. draining: nothing new is taken."""

    def __init__(self, known: Models, service: Service, supervisor: Supervisor) -> None:
        self._known, self._service, self._supervisor = known, service, supervisor
        self.draining = False

    def models(self) -> Sequence[ModelSpec]:
        """All of them."""
        return [spec for spec, _ in self._known.all]

    def unready(self, spec: ModelSpec) -> str:
        """Why it does not serve."""
        return self._known.find(spec.name)[1]

    async def infer(self, inference: Inference) -> Sequence[Any]:
        """One result for each row."""
        return await self._service.many(inference.payloads, self._options(inference))

    async def stream(self, inference: Inference) -> AsyncGenerator[Any, None]:
        """The parts of one row's answer."""
        parts = self._service.stream(inference.payloads[0], self._options(inference))
        try:
            async for part in parts:
                yield part
        finally:
            await parts.aclose()

    async def statistics(self, spec: ModelSpec) -> Statistics:
        """What the balancer has counted."""
        return statistics_of(await self._supervisor.status(), time.time() - time.monotonic())

    async def load(self, name: str) -> None:
        """A model of this instance is loaded as long as the instance runs."""
        self._known.taking(name)

    async def unload(self, name: str) -> None:
        """Nobody but its owner stops an instance."""
        self._known.find(name)
        raise Unsupported(f"'{name}' is served until `orch down`; it cannot be unloaded over the network")

    def _options(self, inference: Inference) -> Options:
        if self.draining:
            raise NotRunning("the instance is stopping and takes no new requests")
        spec = self._known.taking(inference.model, inference.version)
        return Options(spec.name, inference.timeout_s, inference.priority)
