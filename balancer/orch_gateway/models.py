"""What the supervisor has told of the models: their declarations, and whether they serve. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orch.errors import NotRunning
from orch.model import Tensor
from orch_gateway.faults import NotFound
from orch_gateway.inference import ModelSpec


class Models:
    """Owns the latest snapshot, each model with why it does not serve ("" if it does)."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[ModelSpec, str]] = {}
        self._accepting: frozenset[str] = frozenset()

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take a snapshot: of each model its name, declaration and batches, and reason: why it does not serve now.

        accepts: requests are taken though it may not serve at this moment; they wait in the balancer's queue.
        """
        rows = list(rows)
        self._accepting = frozenset(row["name"] for row in rows if row["accepts"])
        self._found = {
            row["name"]: (
                ModelSpec(
                    row["name"],
                    inputs=_tensors(row["inputs"]),
                    outputs=_tensors(row["outputs"]),
                    max_batch_size=row["max_batch_size"],
                    max_batch_wait_s=row["max_batch_wait_s"],
                    streams=row["streams"],
                ),
                row["reason"],
            )
            for row in rows
        }

    @property
    def all(self) -> list[tuple[ModelSpec, str]]:
        """Every model, with why it does not serve."""
        return list(self._found.values())

    def find(self, name: str = "", version: str = "") -> tuple[ModelSpec, str]:
        """The model of that name, "" being the first, with why it does not serve.

        Raises:
            NotFound: there is none, or not in that version.
        """
        if not name and self._found:
            return next(iter(self._found.values()))
        if name not in self._found:
            known = ", ".join(self._found) or "none yet"
            raise NotFound(f"Request for unknown model: '{name}' is not found; this instance serves {known}")
        spec, reason = self._found[name]
        spec.version(version)
        return spec, reason

    def taking(self, name: str = "", version: str = "") -> ModelSpec:
        """The same of one that takes requests.

        Raises:
            NotFound: as `find`.
            NotRunning: it has not served yet.
        """
        if not self._found:
            raise NotRunning("the instance is starting")
        spec, reason = self.find(name, version)
        if reason and spec.name not in self._accepting:
            raise NotRunning(f"{spec.name} is {reason}")
        return spec


def _tensors(rows: Iterable[Any]) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, datatype, tuple(shape)) for name, datatype, shape in rows)
