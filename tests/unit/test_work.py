"""What a worker makes of a batch in which bundles are: every request gets its own answer, whatever the others get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import bundles, page, payload, wire
from orch.model import Model
from orch.page import StatusPage
from orch.wire import Flag, Kind, Record
from orch_worker.engine import Engine
from orch_worker.shared import Shared
from orch_worker.work import Batch, Work

UNREADABLE = b"\xc1"
LARGE = wire.FRAME_BYTES


class Answers(Model):
    """Doubles numbers, and does what words say."""

    def predict(self, inputs: list[Any]) -> list[Any]:
        if "raise" in inputs:
            raise ValueError("bad")
        return [self.answer(each) for each in inputs]

    def answer(self, word: Any) -> Any:
        match word:
            case "large":
                return bytes(LARGE)
            case "long":
                return "x" * (LARGE - 100)
            case "array":
                return np.arange(3)
            case "object":
                return object()
            case _:
                return 2 * word


class Bench:
    """A worker's part that needs no balancer; what it runs can be read on its page."""

    def __init__(self) -> None:
        fd = page.create()
        try:
            self._pages = StatusPage(fd, 0), StatusPage(fd, 0)
        finally:
            os.close(fd)
        mine, self.page = self._pages
        self.work = Work(Engine(Answers(), 64), mine, Shared())

    def close(self) -> None:
        for each in self._pages:
            each.close()

    def runs(self, *requests: Record) -> Batch:
        batch = Batch(0.0)
        self.work.unpack(list(requests), batch)
        self.work.run(batch)
        return batch

    def answers(self, *requests: Record) -> list[Record]:
        """As the balancer reads them."""
        batch = self.runs(*requests)
        self.work.finish(batch)
        assert not batch.requests
        return [each for head, *frames in wire.messages(batch.answers) for each in wire.decode(head, frames)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    """With a model that does what it is told."""
    with closing(Bench()) as made:
        yield made


def a_bundle(*inputs: Any, first: int = 1, flags: int = 0) -> Record:
    """Requests for these; UNREADABLE for a body that is nothing."""
    bodies = tuple(each if isinstance(each, bytes) else payload.encode(each)[0] for each in inputs)
    return Record(
        Kind.REQUEST, Flag.BUNDLE | flags, request_id=first, ticket=first + 1000, rows=len(bodies), frames=bodies
    )


def opened(records: list[Record]) -> list[Record]:
    """Each by itself."""
    return [one for each in records for one in (bundles.singles(each) if each.flags & Flag.BUNDLE else [each])]


def said(answer: Record) -> Any:
    """Its value, or an error's code and text."""
    if answer.kind == Kind.ERROR:
        fields = wire.read_map(answer.body, wire.ERROR_FIELDS)
        return fields["code"], fields["message"]
    return payload.decode(answer.body, answer.frames)


def test_a_bundle_has_one_answer_for_all_of_it(bench: Bench) -> None:
    """With its numbers, its tickets, and how its batch went."""
    (answer,) = bench.answers(a_bundle(1, 2, 3, first=7))
    assert (answer.kind, answer.flags, answer.rows) == (Kind.RESULT, Flag.BUNDLE, 3)
    assert (answer.request_id, answer.ticket) == (7, 1007)
    assert answer.deadline_ns > 0
    assert [said(each) for each in opened([answer])] == [2, 4, 6]


def test_the_tickets_of_all_are_on_the_page_while_they_run(bench: Bench) -> None:
    """Else a death would be nobody's fault. So are those that cannot be read: they are part of the batch."""
    single = Record(Kind.REQUEST, request_id=50, ticket=5, body=payload.encode(5)[0])
    batch = bench.runs(a_bundle(1, 2, first=1), single, a_bundle(1, UNREADABLE, 3, first=20), a_bundle(4, first=30))
    assert bench.page.running() == (1001, 1002, 5, 1020, 1021, 1022, 1030)
    assert batch.num_rows == 7


def test_answers_are_in_the_order_of_the_requests(bench: Bench) -> None:
    """Bundles between others, and the part of one that a full batch has left over."""
    single = Record(Kind.REQUEST, request_id=50, ticket=5, body=payload.encode(5)[0])
    answers = bench.answers(a_bundle(1, 2, first=1), single, a_bundle(3, first=20), a_bundle(4, 5, first=30))
    assert [(each.request_id, said(each)) for each in opened(answers)] == [
        (1, 2), (2, 4), (50, 10), (20, 6), (30, 8), (31, 10),
    ]  # fmt: skip
    assert [bool(each.flags & Flag.BUNDLE) for each in answers] == [True, False, True, True]


def test_a_body_that_cannot_be_read_fails_alone(bench: Bench) -> None:
    """The others of its bundle run."""
    answers = {each.ticket: each for each in opened(bench.answers(a_bundle(1, UNREADABLE, 3), a_bundle(4, first=9)))}
    assert [said(answers[ticket]) for ticket in (1001, 1003, 1009)] == [2, 6, 8]
    code, text = said(answers[1002])
    assert code == "failed"
    assert "could not be read" in text
    assert len(answers) == 4


def test_a_bundle_of_which_nothing_can_be_read_runs_nothing(bench: Bench) -> None:
    """Each is told."""
    answers = bench.answers(a_bundle(UNREADABLE, UNREADABLE))
    assert [(each.kind, each.ticket) for each in answers] == [(Kind.ERROR, 1001), (Kind.ERROR, 1002)]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("raise", ("model", "ValueError: bad")),
        ("object", ("model", "its output cannot travel")),
        ("long", ("too_large", "the limit is 1000")),
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_an_output_that_is_none_fails_alone(bench: Bench, word: str, told: tuple[str, str], place: int) -> None:
    """The others of its bundle have their answers."""
    bench.work.max_payload_bytes = 1000
    inputs: list[Any] = [1, 2, 3]
    inputs[place] = word
    answers = bench.answers(a_bundle(*inputs))
    assert [each.ticket for each in opened(answers)] == [1001, 1002, 1003]
    for i, each in enumerate(opened(answers)):
        if i == place:
            code, text = said(each)
            assert code == told[0]
            assert told[1] in text
        else:
            assert said(each) == 2 * inputs[i]


def test_what_may_not_run_again_is_not_run_again(bench: Bench) -> None:
    """One bad input then fails its whole bundle, but for others of the batch that may."""
    answers = bench.answers(a_bundle(1, "raise", flags=Flag.NO_RETRY), a_bundle(4, first=9))
    assert [each.kind for each in answers] == [Kind.ERROR, Kind.ERROR, Kind.RESULT]
    assert all("not rerun" in said(each)[1] for each in answers[:2])
    assert said(opened(answers[2:])[0]) == 8


def test_what_may_run_again_does_wherever_it_stands(bench: Bench) -> None:
    """Behind what cannot be read, and among others that may not."""
    single = Record(Kind.REQUEST, request_id=50, ticket=5, body=payload.encode(5)[0])
    careful = [
        single._replace(ticket=ticket, flags=Flag.NO_RETRY, body=body)
        for ticket, body in ((6, UNREADABLE), (7, single.body))
    ]
    raises = a_bundle("raise", first=20)
    others = a_bundle(1, 2, first=1), a_bundle(3, 4, first=30, flags=Flag.NO_RETRY), a_bundle(6, first=40)
    answers = {each.ticket: said(each) for each in opened(bench.answers(*careful, *others, raises, single))}
    assert [answers.pop(ticket) for ticket in (1001, 1002, 1040, 5)] == [2, 4, 12, 10]
    assert "could not be read" in answers.pop(6)[1]
    assert answers.pop(1020) == ("model", "ValueError: bad")
    assert sorted(answers) == [7, 1030, 1031]
    assert all("not rerun" in text for _, text in answers.values())


def test_a_large_output_has_an_answer_with_frames(bench: Bench) -> None:
    """And so each of the others has one of its own."""
    answers = bench.answers(a_bundle(1, "large", 3))
    assert [(each.flags, each.ticket, len(each.frames)) for each in answers] == [
        (0, 1001, 0),
        (0, 1002, 1),
        (0, 1003, 0),
    ]
    assert [said(each) for each in answers] == [2, bytes(LARGE), 6]


def test_outputs_that_are_too_much_for_one_record_have_one_each(bench: Bench) -> None:
    """Each record fits a message."""
    answers = bench.answers(a_bundle(*["long"] * 5))
    assert [(each.flags, each.ticket) for each in answers] == [(0, 1001 + i) for i in range(5)]
    assert all(len(head) <= wire.MAX_INLINE_BYTES for head, *_ in wire.messages(answers))


def test_nothing_waits_until_bodies_are_sent(bench: Bench) -> None:
    """Only frames may be memory of the model's own, which its next batch could change."""
    assert bench.runs(a_bundle("array", "array")).sent is None
    assert bench.runs(a_bundle("array", "large")).sent is not None


words = st.integers(0, 9) | st.sampled_from(("raise", "large", "long", "array", "object")) | st.just(UNREADABLE)


@given(st.lists(st.lists(words, min_size=1, max_size=5), min_size=1, max_size=4), st.sampled_from((500, 1 << 62)))
def test_every_request_is_answered_as_if_it_had_come_by_itself(groups: list[list[Any]], limit: int) -> None:
    """Once, and with the same, whatever its neighbours are."""
    bundles = [a_bundle(*inputs, first=10 * i) for i, inputs in enumerate(groups, 1)]
    found: list[list[Record]] = []
    for requests in (bundles, opened(bundles)):
        with closing(Bench()) as bench:
            bench.work.max_payload_bytes = limit
            answers = opened(bench.answers(*requests))
        found.append(sorted((each._replace(deadline_ns=0) for each in answers), key=lambda each: each.ticket))
    assert found[0] == found[1]
    assert [each.ticket for each in found[0]] == [each.ticket for each in opened(bundles)]
