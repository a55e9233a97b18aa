"""What a user's model looks like to a worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

MAX_BATCH_SIZE = 1024  # rows whose tickets fit a worker's status page


class Model:
    """A model that workers load once and call with batches. Subclass it and name it as `path/to/file.py:Name`.

    A plain function that takes and returns a list will do as well. `--set key=value` options are passed to the
    constructor as keyword arguments. One instance lives in one process, and one method runs at a time.
    """

    #: Rows given to one `predict` at most; 1 to 1024.
    max_batch_size: ClassVar[int] = 1
    #: Seconds that the first row of a batch may wait for company; 0: never wait.
    max_batch_wait: ClassVar[float] = 0.0
    #: Seconds after which a running batch counts as hung and its worker is killed; None: the instance's --timeout.
    timeout: ClassVar[float | None] = None

    def load(self, device: str) -> None:
        """Load weights onto `device`: "cpu" or "cuda:0" (a worker sees only the GPU it was given)."""

    def warmup(self) -> list[Any] | None:
        """Sample inputs, the largest kinds first. They are run in full batches before the worker is READY."""
        return None

    def predict(self, inputs: list[Any]) -> list[Any]:
        """One output per input, in order. An exception fails only the inputs that cause it: the batch is split."""
        raise NotImplementedError(f"{type(self).__name__} has no predict(); define predict(self, inputs: list) -> list")

    def predict_stream(self, input: Any) -> Iterator[Any]:  # noqa: A002  the contract's word
        """Answer one input in parts, for `client.stream(...)`. Without it a stream is predict()'s one output."""
        yield from self.predict([input])
