"""Running the model on a batch so that one bad input does not fail its neighbours."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from orch.errors import Exit
from orch.model import Model
from orch_worker import device
from orch_worker.target import describe

log = logging.getLogger(__name__)

# Full batches at warm-up, at least: the first pays for compilation and workspaces, the second shows the settled state.
WARMUP_BATCHES = 2
# At most: libraries that try out kernels, and compilers, are done after three or four; what still grows then leaks.
MAX_WARMUP_BATCHES = 8
# Settled: a batch that adds no more than this share. Allocators round up by as much; a plan's headroom is larger.
SETTLED_GROWTH = 0.01


class DeviceLost(Exception):
    """A sticky device error: this process can do nothing more. Nothing of the batch is answered."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a row gets in place of an output. type(error): text, in one line."""

    text: str


@dataclass(frozen=True, slots=True)
class Warmup:
    """What was run before READY. batch_s: seconds that the last full batch took; None: there are no samples."""

    batches: int = 0
    batch_s: float | None = None
    samples: Sequence[Any] = ()


class Engine:
    """Owns the model. `alive` is called between attempts, so that a long split does not look like a hang."""

    def __init__(
        self,
        model: Model,
        max_batch_size: int,
        alive: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._max_batch_size = max_batch_size
        self._alive = alive
        self._clock = clock
        self._pid = os.getpid()

    def load(self, device_name: str) -> None:
        """Load the model; what it raises passes through."""
        self._model.load(device_name)
        self._stay_parent()

    def warmup(self, held_bytes: Callable[[], int | None] = lambda: None) -> Warmup:
        """Run the model's samples in full batches until the device bytes held grow no more, as far as they are known.

        What predict raises passes through.
        """
        samples = self._model.warmup()
        self._stay_parent()
        if not samples:
            return Warmup()
        full = list(islice(cycle(samples), self._max_batch_size))
        held, batch_s = 0, 0.0
        for count in range(1, MAX_WARMUP_BATCHES + 1):
            started = self._clock()
            self._outputs(full)
            device.synchronize()
            batch_s = self._clock() - started
            before, held = held, held_bytes() or 0
            if count >= WARMUP_BATCHES and held <= before * (1 + SETTLED_GROWTH):
                return Warmup(count, batch_s, samples)
        log.warning("after %d batches of warm-up each still takes more device memory", MAX_WARMUP_BATCHES)
        return Warmup(MAX_WARMUP_BATCHES, batch_s, samples)

    def run(self, inputs: list[Any], once: Collection[int] = ()) -> list[Any]:
        """An output, or a Failure, for each input, in order.

        once: the places of those that may not be run again after a failed batch.

        Raises:
            DeviceLost: nothing in this process can work any more.
        """
        try:
            return self._outputs(inputs)
        except WrongOutputs as err:  # the model's mistake, not an input's: running it again would tell nothing new
            log.error("%s", err)
            return [Failure(f"ModelError: {err}")] * len(inputs)
        except BaseException as err:  # noqa: BLE001  sys.exit() in a model too
            failed = err
        # Here, and not above: what the parts of the batch raise did not happen while this was handled.
        try:
            return self._after(failed, inputs, once)
        finally:
            del failed  # it refers to this frame, and so to the inputs: no cycle is to keep them

    def stream(self, input: Any) -> Iterator[Any]:  # noqa: A002  the contract's word
        """The parts of one answer; what the model raises passes through."""
        for part in self._model.predict_stream(input):
            self._stay_parent()
            yield part
        self._stay_parent()

    def check_device(self, err: BaseException) -> None:
        """After any failure.

        Raises:
            DeviceLost: the device does not answer a trivial question either.
        """
        if device.is_lost():
            log.critical("the device is lost: %s", describe(err), exc_info=err)
            raise DeviceLost(describe(err)) from err

    def _outputs(self, inputs: list[Any]) -> list[Any]:
        outputs: Any = self._model.predict(inputs.copy())  # a list that it may keep, or change
        self._stay_parent()
        if type(outputs) is not list and (isinstance(outputs, (str, bytes, dict)) or not hasattr(outputs, "__len__")):
            raise WrongOutputs(f"predict() returned a {type(outputs).__name__}; it must return a list, one per input")
        if len(outputs) != len(inputs):
            raise WrongOutputs(f"predict() returned {len(outputs)} outputs for {len(inputs)} inputs")
        return list(outputs)

    def _after(self, err: BaseException, inputs: list[Any], once: Collection[int]) -> list[Any]:
        self._stay_parent()
        self.check_device(err)
        out_of_memory = device.is_out_of_memory(err)
        if len(inputs) == 1:
            log.error("a request failed: %s", describe(err), exc_info=err)
            if out_of_memory:
                device.release_memory(err)
            return [Failure(describe(err))]
        log.warning("a batch of %d failed (%s) and is split", len(inputs), describe(err))
        if out_of_memory:
            device.release_memory(err)
        once = frozenset(once)
        again = [each for place, each in enumerate(inputs) if place not in once]
        half = (len(again) + 1) // 2
        answers: list[Any] = []
        for part in (again[:half], again[half:]):
            self._alive()
            if part:
                answers += self.run(part)
        rerun = iter(answers)
        not_rerun = Failure(f"{describe(err)} (in a batch, and not rerun)")
        return [not_rerun if place in once else next(rerun) for place in range(len(inputs))]

    def _stay_parent(self) -> None:
        """A model that forks and returns in the child must not answer twice."""
        if os.getpid() != self._pid:
            os._exit(Exit.OK)


class WrongOutputs(Exception):
    """predict() broke its contract; the message says how."""
