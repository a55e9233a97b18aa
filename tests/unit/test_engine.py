"""Running a model so that one bad input fails alone."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from orch import page
from orch.model import Model
from orch.wire import Kind, Record
from orch_worker import device
from orch_worker.engine import WARMUP_BATCHES, DeviceLost, Engine, Failure, Warmup, WrongOutputs
from orch_worker.shared import Shared
from orch_worker.target import describe
from orch_worker.work import Work


class Doubler(Model):
    """Doubles numbers, raises what it is given to raise, and remembers its batches."""

    max_batch_size = 8

    def __init__(self, samples: list[Any] | None = None) -> None:
        self.batches: list[list[Any]] = []
        self.samples = samples
        self.device = ""

    def load(self, device: str) -> None:
        self.device = device

    def warmup(self) -> list[Any] | None:
        return self.samples

    def predict(self, inputs: list[Any]) -> list[Any]:
        self.batches.append(inputs)
        for each in inputs:
            if isinstance(each, BaseException):
                raise each
        return [2 * each for each in inputs]


class Returns(Model):
    """Returns the same thing whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls = 0

    def predict(self, inputs: list[Any]) -> Any:
        self.calls += 1
        return self.answer


def test_each_row_gets_its_own_output() -> None:
    """In one call of the model."""
    model = Doubler()
    assert Engine(model, 8).run([1, 2, 3]) == [2, 4, 6]
    assert model.batches == [[1, 2, 3]]


@pytest.mark.parametrize("place", range(7))
def test_one_bad_input_does_not_fail_its_neighbours(place: int) -> None:
    """The batch is split until the offender is alone; it alone gets the error."""
    inputs: list[Any] = list(range(7))
    inputs[place] = ValueError("not\n  a number")
    outputs = Engine(Doubler(), 8).run(inputs)
    assert outputs[place] == Failure("ValueError: not a number")
    assert [output for i, output in enumerate(outputs) if i != place] == [2 * i for i in range(7) if i != place]


def test_finding_one_offender_takes_a_logarithm_of_runs() -> None:
    """Not one run per row."""
    model = Doubler()
    Engine(model, 64).run([*range(63), KeyError("x")])
    assert len(model.batches) == 1 + 2 * 6


def test_several_bad_inputs_each_get_their_own_error() -> None:
    """Also when all are bad."""
    outputs = Engine(Doubler(), 8).run([KeyError("a"), 1, ValueError("b"), RuntimeError()])
    assert outputs == [Failure("KeyError: 'a'"), 2, Failure("ValueError: b"), Failure("RuntimeError")]
    assert Engine(Doubler(), 8).run([KeyError("a"), KeyError("b")]) == [
        Failure("KeyError: 'a'"),
        Failure("KeyError: 'b'"),
    ]


def test_a_row_that_may_not_run_again_gets_the_error_of_its_batch() -> None:
    """It is left out when the others are run again."""
    model = Doubler()
    outputs = Engine(model, 8).run([1, 2, ValueError("bad"), 4], once=[1])
    assert outputs == [2, Failure("ValueError: bad (in a batch, and not rerun)"), Failure("ValueError: bad"), 8]
    assert sum(2 in batch for batch in model.batches) == 1


def test_a_batch_in_which_nothing_may_run_again_runs_once() -> None:
    """All get its error."""
    model = Doubler()
    outputs = Engine(model, 8).run([1, ValueError("bad")], once=[0, 1])
    assert outputs == [Failure("ValueError: bad (in a batch, and not rerun)")] * 2
    assert len(model.batches) == 1


def test_a_model_may_do_with_its_list_what_it_likes() -> None:
    """What it was asked is asked again where its batch has failed."""

    class Empties(Doubler):
        def predict(self, inputs: list[Any]) -> list[Any]:
            try:
                return super().predict(list(inputs))
            finally:
                inputs.clear()

    inputs = [1, ValueError("bad"), 3]
    assert Engine(Empties(), 8).run(inputs) == [2, Failure("ValueError: bad"), 6]
    assert len(inputs) == 3


def test_a_row_alone_is_not_run_again_to_fail_again() -> None:
    """What it raised is its answer."""
    model = Doubler()
    assert Engine(model, 8).run([ValueError("bad")]) == [Failure("ValueError: bad")]
    assert len(model.batches) == 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_model_cannot_end_its_worker_by_an_exception(error: BaseException) -> None:
    """sys.exit() in predict is an answer like any other mistake."""
    first, failure = Engine(Doubler(), 8).run([1, error])
    assert first == 2
    assert isinstance(failure, Failure)
    assert failure.text.startswith(type(error).__name__)


def test_the_traceback_goes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets one line; whoever serves the model gets the rest."""
    with caplog.at_level(logging.WARNING):
        Engine(Doubler(), 8).run([1, ValueError("bad")])
    assert "a batch of 2 failed (ValueError: bad) and is split" in caplog.text
    assert "Traceback" in caplog.text


def test_a_long_split_is_not_taken_for_a_hang() -> None:
    """Somebody is told between the runs."""
    signs: list[int] = []
    Engine(Doubler(), 8, alive=lambda: signs.append(1)).run([ValueError()] * 8)
    assert len(signs) == 14


class Greedy(Model):
    """Has memory for so many rows, and no more."""

    def __init__(self, room: int, error: type[BaseException]) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def predict(self, inputs: list[Any]) -> list[Any]:
        self.sizes.append(len(inputs))
        if len(inputs) > self.room:
            raise self.error("tried to allocate 20.00 GiB")
        return inputs


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_halves_the_batch_until_it_fits(error: type[BaseException]) -> None:
    """Every row is answered, by smaller batches."""
    model = Greedy(2, error)
    assert Engine(model, 8).run(list(range(8))) == list(range(8))
    assert model.sizes == [8, 4, 2, 2, 4, 2, 2]


def test_a_row_that_is_out_of_memory_alone_fails_alone() -> None:
    """There is nothing left to halve."""
    failures = Engine(Greedy(0, torch.OutOfMemoryError), 8).run([1, 2])
    assert failures == [Failure("OutOfMemoryError: tried to allocate 20.00 GiB")] * 2


@pytest.mark.parametrize(
    ("outputs", "complaint"),
    [
        ([1, 2], "returned 2 outputs for 3 inputs"),
        ([], "returned 0 outputs for 3 inputs"),
        (np.zeros((4, 2)), "returned 4 outputs for 3 inputs"),
        (None, "returned a NoneType"),
        ("abc", "returned a str"),
        (b"abc", "returned a bytes"),
        ({1: 1, 2: 2, 3: 3}, "returned a dict"),
        (iter([1, 2, 3]), "returned a list_iterator"),
        (7, "returned a int"),
    ],
)
def test_a_wrong_number_of_outputs_fails_the_batch_with_the_counts(outputs: Any, complaint: str) -> None:
    """Whose answer would be whose? The model is not run again: it would do the same."""
    model = Returns(outputs)
    failures = Engine(model, 8).run([1, 2, 3])
    assert len(failures) == 3
    assert all(isinstance(failure, Failure) and complaint in failure.text for failure in failures)
    assert model.calls == 1


@pytest.mark.parametrize("outputs", [(1, 2, 3), np.arange(3), torch.arange(3), range(3), [[], None, "x"]])
def test_any_sequence_of_one_output_per_input_will_do(outputs: Any) -> None:
    """A tensor's first dimension is the batch."""
    found = Engine(Returns(outputs), 8).run([1, 2, 3])
    assert isinstance(found, list)
    assert [*map(repr, found)] == [*map(repr, outputs)]


def test_the_model_is_loaded_on_the_device_it_was_given() -> None:
    """What load() raises is not hidden."""
    model = Doubler()
    Engine(model, 8).load("cuda:0")
    assert model.device == "cuda:0"

    class Broken(Doubler):
        def load(self, device: str) -> None:
            raise OSError("no such weights")

    with pytest.raises(OSError, match="no such weights"):
        Engine(Broken(), 8).load("cpu")


def test_warm_up_runs_full_batches_of_the_samples() -> None:
    """So that the memory measured afterwards is that of the largest batch."""
    model = Doubler(samples=[1, 2, 3])
    assert Engine(model, 5).warmup().batches == WARMUP_BATCHES
    assert model.batches == [[1, 2, 3, 1, 2]] * WARMUP_BATCHES


def test_the_last_batch_of_the_warm_up_is_timed() -> None:
    """The first pays for compilation. The samples are asked for once."""
    took_s = [3.0, 0.5]
    now = [100.0]

    class Compiles(Doubler):
        def warmup(self) -> list[Any]:
            samples, self.samples = self.samples, None
            return samples or []

        def predict(self, inputs: list[Any]) -> list[Any]:
            now[0] += took_s.pop(0)
            return inputs

    engine = Engine(Compiles([1, 2, 3]), 2, clock=lambda: now[0])
    assert engine.warmup() == Warmup(WARMUP_BATCHES, 0.5, [1, 2, 3])


@pytest.mark.parametrize("samples", [None, []])
def test_without_samples_there_is_no_warm_up(samples: list[Any] | None) -> None:
    """It is optional."""
    model = Doubler(samples)
    assert Engine(model, 5).warmup() == Warmup(0, None, ())
    assert model.batches == []


def test_a_failing_warm_up_is_not_hidden() -> None:
    """A replica that cannot run its own samples is not READY."""
    with pytest.raises(ValueError, match="bad sample"):
        Engine(Doubler(samples=[ValueError("bad sample")]), 5).warmup()
    with pytest.raises(WrongOutputs):
        Engine(ShortWarmup(), 5).warmup()


class ShortWarmup(Returns):
    """Has samples, and answers too few of them."""

    def __init__(self) -> None:
        super().__init__([1])

    def warmup(self) -> list[Any]:
        return [1]


class Counter(Model):
    """Streams numbers up to the input, and fails at 3."""

    def predict_stream(self, input: int) -> Iterator[int]:  # noqa: A002  the contract's word
        for number in range(input):
            if number == 3:
                raise ValueError("three")
            yield number


def test_a_stream_gives_its_parts_as_they_come_and_raises_what_the_model_raises() -> None:
    """The parts before the mistake are good."""
    engine = Engine(Counter(), 1)
    assert list(engine.stream(3)) == [0, 1, 2]
    parts = engine.stream(5)
    assert [next(parts) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(parts)


def test_a_model_without_streaming_streams_its_one_output() -> None:
    """The inherited predict_stream()."""
    assert list(Engine(Doubler(), 1).stream(4)) == [8]


class Forks(Model):
    """Forks in the middle of a call, and returns in both processes."""

    def __init__(self) -> None:
        self.children: list[int] = []

    def fork(self) -> None:
        sys.stdout.flush()
        child = os.fork()
        if child:
            self.children.append(child)

    def predict(self, inputs: list[Any]) -> list[Any]:
        self.fork()
        if inputs == ["raise"]:
            raise ValueError("in both")
        return inputs

    def predict_stream(self, input: Any) -> Iterator[Any]:  # noqa: A002  the contract's word
        self.fork()
        yield input
        self.fork()


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_child_that_the_model_has_forked_does_not_answer_too() -> None:
    """It ends where it would return into the worker; only the worker goes on."""
    model = Forks()
    engine = Engine(model, 8)
    assert engine.run(["a", "b"]) == ["a", "b"]
    assert engine.run(["raise"]) == [Failure("ValueError: in both")]
    assert list(engine.stream("c")) == ["c"]
    assert len(model.children) == 4
    assert [os.waitpid(child, 0)[1] for child in model.children] == [0, 0, 0, 0]


def answering(monkeypatch: pytest.MonkeyPatch, err: BaseException) -> Callable[[Record, Any], Record]:
    """How a worker makes a result of an output; packing one raises `err`."""

    def encode(_output: Any) -> None:
        raise err

    monkeypatch.setattr("orch.payload.encode", encode)
    pages_fd = page.create()
    try:
        work = Work(Engine(Doubler(), 8), page.StatusPage(pages_fd, 0), Shared())
    finally:
        os.close(pages_fd)
    return lambda request, output: work.pack(request, output, Kind.RESULT)


def test_a_device_error_that_shows_only_when_an_output_is_read_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are asynchronous: the request is not to blame, and runs again elsewhere."""
    err = TypeError("cannot travel")
    err.__cause__ = RuntimeError("CUDA error: an illegal memory access was encountered")
    answer = answering(monkeypatch, err)
    assert answer(Record(Kind.REQUEST), None).kind == Kind.ERROR
    monkeypatch.setattr(device, "is_lost", lambda: True)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        answer(Record(Kind.REQUEST), None)


def test_an_output_for_which_there_is_no_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker goes on."""
    assert answering(monkeypatch, MemoryError())(Record(Kind.REQUEST), None).kind == Kind.ERROR


def test_an_exception_that_cannot_say_what_it_is_is_named() -> None:
    """A model may raise anything."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert describe(Mute()) == "Mute"
