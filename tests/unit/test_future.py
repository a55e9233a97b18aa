"""The future of a call: one of concurrent.futures, for everybody who holds it."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import CancelledError, Future, as_completed, wait
from typing import Any, cast

import pytest

from orch.client import Client
from orch.driver import Driver
from orch.errors import Closed, ModelError
from orch.future import CallFuture

PATIENCE_S = 10.0


class Process:
    """What a future asks of its driver."""

    def __init__(self, *, abandoned: bool = False) -> None:
        self.abandoned = abandoned


def a_future(*, abandoned: bool = False) -> CallFuture:
    """One that nobody has answered."""
    return CallFuture(cast("Client", object()), cast("Driver", Process(abandoned=abandoned)))


def test_it_has_all_that_a_future_of_this_python_has() -> None:
    """Its constructor stands in for Future's own: what a new Python adds there is missed here."""
    missing = [name for name in vars(Future()) if not hasattr(a_future(), name)]
    assert not missing
    begun = {name: getattr(a_future(), name) for name in vars(Future()) if name != "_condition"}
    assert begun == {name: value for name, value in vars(Future()).items() if name != "_condition"}


def test_an_answer_is_its_result() -> None:
    """Before it, there is nothing to be had."""
    future = a_future()
    assert not future.done()
    with pytest.raises(TimeoutError):
        future.result(timeout=0)
    future.settle("answer", None)
    assert (future.done(), future.result(), future.exception()) == (True, "answer", None)


def test_an_error_is_raised() -> None:
    """And is to be had as it is."""
    future = a_future()
    future.settle(None, ModelError("no"))
    assert isinstance(future.exception(), ModelError)
    with pytest.raises(ModelError, match="no"):
        future.result()


def test_those_who_wait_are_woken() -> None:
    """All of them, by one answer."""
    future = a_future()
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(future.result(PATIENCE_S))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert wait([future], timeout=0).not_done == {future}  # a Condition is there, whether the threads got so far or not
    future.settle("answer", None)
    for thread in threads:
        thread.join(PATIENCE_S)
    assert seen == ["answer"] * 4


def test_wait_and_as_completed_know_it() -> None:
    """They wait for several futures at once."""
    answered, failed, open_still = a_future(), a_future(), a_future()
    both: list[Future[Any]] = [answered, failed]
    in_order = as_completed(both, timeout=PATIENCE_S)
    thread = threading.Thread(target=failed.settle, args=(None, ModelError("no")))
    thread.start()
    answered.settle(1, None)
    assert {next(in_order), next(in_order)} == {answered, failed}
    thread.join(PATIENCE_S)
    assert wait([answered, failed, open_still], timeout=0).not_done == {open_still}
    assert not wait([answered, failed], timeout=PATIENCE_S).not_done


def test_a_waiter_that_is_there_before_hears_of_each_answer() -> None:
    """An error counts as one."""
    futures = [a_future(), a_future()]
    done: list[Any] = []
    thread = threading.Thread(target=lambda: done.append(wait(futures, timeout=PATIENCE_S).done))
    thread.start()
    futures[0].settle(None, ModelError("no"))
    futures[1].settle(1, None)
    thread.join(PATIENCE_S)
    assert done == [set(futures)]


def test_callbacks_are_called_once_each_before_and_after() -> None:
    """A second answer calls nobody."""
    future, called = a_future(), list[Any]()
    future.add_done_callback(lambda each: called.append(("early", each.result())))
    future.settle("answer", None)
    future.add_done_callback(lambda each: called.append(("late", each.result())))
    future.settle("another", None)
    assert called == [("early", "answer"), ("late", "answer")]


def test_callbacks_are_called_once_each_also_while_it_is_answered() -> None:
    """Whichever of the threads comes first, and also one that a callback adds."""

    def add(future: CallFuture, begin: threading.Barrier, called: list[Future[Any]]) -> None:
        begin.wait(PATIENCE_S)
        for _ in range(100):
            future.add_done_callback(called.append)

    def a_round() -> None:
        future, begin, called = a_future(), threading.Barrier(3), list[Future[Any]]()
        future.add_done_callback(lambda each: each.add_done_callback(called.append))
        threads = [threading.Thread(target=add, args=(future, begin, called)) for _ in range(2)]
        for thread in threads:
            thread.start()
        begin.wait(PATIENCE_S)
        future.settle("answer", None)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert called == [future] * 201

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            a_round()
    finally:
        sys.setswitchinterval(interval_s)


def test_a_callback_that_is_added_to_an_answered_one_is_called_at_once_and_no_other_is() -> None:
    """Those from before are called in their order by the one who has answered, however long the first takes."""
    future, begun, goes_on, called = a_future(), threading.Event(), threading.Event(), list[str]()

    def take_long(_: Future[Any]) -> None:
        begun.set()
        goes_on.wait(PATIENCE_S)
        called.append("first")

    future.add_done_callback(take_long)
    future.add_done_callback(lambda _: called.append("second"))
    thread = threading.Thread(target=future.settle, args=("answer", None))
    thread.start()
    assert begun.wait(PATIENCE_S)
    future.add_done_callback(lambda _: called.append("late"))
    assert called == ["late"]
    goes_on.set()
    thread.join(PATIENCE_S)
    assert called == ["late", "first", "second"]


def test_a_callback_that_fails_keeps_none_of_the_others_from_it(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged."""
    future, called = a_future(), list[Any]()
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(called.append)
    future.settle("answer", None)
    assert called == [future]
    assert "exception calling callback" in caplog.text


def test_an_answer_after_cancel_is_ignored() -> None:
    """Both may happen at the same moment."""
    future, called = a_future(), list[Any]()
    future.add_done_callback(called.append)
    assert future.cancel()
    future.settle("answer", None)
    assert (future.cancelled(), called) == (True, [future])
    with pytest.raises(CancelledError):
        future.result()


def test_what_is_answered_cannot_be_cancelled() -> None:
    """cancel() says so."""
    future = a_future()
    future.settle("answer", None)
    assert not future.cancel()
    assert future.result() == "answer"


def test_in_a_forked_process_an_open_one_is_refused_and_an_answered_one_is_not() -> None:
    """Nobody would answer it there."""
    future = a_future(abandoned=True)
    with pytest.raises(Closed, match="forked"):
        future.result()
    future.settle("answer", None)
    assert future.result() == "answer"


def test_asyncio_can_wait_for_it() -> None:
    """As for any other."""

    async def waits() -> Any:
        future = a_future()
        wrapped = asyncio.wrap_future(future)
        threading.Thread(target=lambda: future.settle("answer", None)).start()
        return await asyncio.wait_for(wrapped, PATIENCE_S)

    assert asyncio.run(waits()) == "answer"
