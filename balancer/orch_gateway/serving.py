"""What a protocol's front needs of the gateway: the models, their state, and somebody who runs an inference."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from orch_gateway.facts import Statistics
from orch_gateway.inference import Inference, ModelSpec


class Serving(Protocol):
    """Its coroutines raise a `Fault`, or an `OrchError` of orch's client. Cancelling one gives its work up."""

    def models(self) -> Sequence[ModelSpec]:
        """What is served at present; a model that is being loaded is one of them."""

    def unready(self, spec: ModelSpec) -> str:
        """Why a model answers no requests now, in a word or two; "" if it does."""

    async def infer(self, inference: Inference) -> Sequence[Any]:
        """One result for each payload, in order. A row that fails, fails all of it."""

    def stream(self, inference: Inference) -> AsyncIterator[Any]:
        """The parts of the answer to an inference of one row. Closing the iterator early gives up the rest."""

    async def statistics(self, spec: ModelSpec) -> Statistics:
        """What has happened to a model since it was first loaded."""

    async def load(self, name: str) -> None:
        """Load a model, or load it anew; returns when it is ready."""

    async def unload(self, name: str) -> None:
        """Let a model finish what it has accepted, and end it."""
