"""What a worker is doing, read by others while it computes, hangs or is dead."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from orch import page
from orch.model import MAX_BATCH_SIZE
from orch.page import MAX_WORKERS, NUM_CANCELLED, PAGE_BYTES, Phase, StatusPage


class Shared:
    """One slot as three processes map it."""

    def __init__(self, slot: int) -> None:
        self.fd = page.create()
        self.worker, self.supervisor, self.balancer = (StatusPage(self.fd, slot) for _ in range(3))

    def close(self) -> None:
        for view in (self.worker, self.supervisor, self.balancer):
            view.close()
        os.close(self.fd)


@pytest.fixture(params=[0, 1, MAX_WORKERS - 1])
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """The first slot, another, and the last."""
    made = Shared(request.param)
    yield made
    made.close()


def test_a_new_page_says_that_nothing_has_begun(shared: Shared) -> None:
    """All zeros mean STARTING."""
    assert shared.supervisor.phase is Phase.STARTING
    assert shared.supervisor.batch_number == shared.supervisor.progress_at_ns == 0
    assert shared.supervisor.running() == ()
    assert shared.worker.newly_cancelled() == []


def test_the_worker_says_what_its_loop_is_in(shared: Shared) -> None:
    """And whoever maps the page sees it."""
    for phase in Phase:
        shared.worker.enter(phase)
        assert shared.supervisor.phase is phase


def test_a_running_batch_is_named_before_it_runs(shared: Shared) -> None:
    """Its tickets are the suspects if the worker dies; its start tells busy from hung."""
    tickets = [7, 2**64 - 1, 1 << 32]
    shared.worker.begin_batch(tickets, now_ns=5_000)
    assert shared.balancer.running() == tuple(tickets)
    assert shared.supervisor.phase == Phase.RUNNING
    assert (shared.supervisor.batch_number, shared.supervisor.progress_at_ns) == (1, 5_000)
    shared.worker.progress(6_000)
    assert shared.supervisor.progress_at_ns == 6_000
    shared.worker.end_batch()
    assert shared.balancer.running() == ()
    assert shared.supervisor.phase.name == "IDLE"
    shared.worker.begin_batch([9], now_ns=7_000)
    assert shared.balancer.running() == (9,)
    assert shared.supervisor.batch_number == 2


def test_the_largest_batch_fits_beside_the_cancellations(shared: Shared) -> None:
    """Neither field reaches into the other."""
    shared.balancer.cancel(42)
    tickets = [2**64 - 1 - i for i in range(MAX_BATCH_SIZE)]
    shared.worker.begin_batch(tickets, now_ns=1)
    assert shared.balancer.running() == tuple(tickets)
    assert shared.worker.newly_cancelled() == [42]
    for i in range(NUM_CANCELLED):
        shared.balancer.cancel(i)
    assert shared.balancer.running() == tuple(tickets)


def test_cancellations_are_read_once_in_order(shared: Shared) -> None:
    """The worker asks now and then."""
    shared.balancer.cancel(1)
    shared.balancer.cancel(2)
    assert shared.worker.newly_cancelled() == [1, 2]
    assert shared.worker.newly_cancelled() == []
    shared.balancer.cancel(3)
    assert shared.worker.newly_cancelled() == [3]


def test_of_too_many_cancellations_the_oldest_are_lost(shared: Shared) -> None:
    """A ring: what is lost runs for nothing, which is harmless."""
    for i in range(NUM_CANCELLED + 10):
        shared.balancer.cancel(i)
    assert shared.worker.newly_cancelled() == list(range(10, NUM_CANCELLED + 10))


def test_a_cleared_page_has_forgotten_its_last_worker(shared: Shared) -> None:
    """The next one in the slot is not blamed for its batch."""
    shared.worker.begin_batch([1, 2], now_ns=3)
    shared.balancer.cancel(1)
    shared.supervisor.clear()
    assert shared.supervisor.phase is Phase.STARTING
    assert shared.balancer.running() == ()
    assert shared.supervisor.batch_number == 0


def test_slots_do_not_overlap() -> None:
    """Two workers write two pages."""
    fd = page.create()
    first, second = StatusPage(fd, 0), StatusPage(fd, 1)
    first.begin_batch([1] * MAX_BATCH_SIZE, now_ns=1)
    for i in range(NUM_CANCELLED):
        first.cancel(i + 1)
    assert second.phase is Phase.STARTING
    assert second.running() == ()
    assert second.newly_cancelled() == []
    assert os.fstat(fd).st_size == PAGE_BYTES * MAX_WORKERS
    assert os.fstat(fd).st_blocks * 512 <= 4 * PAGE_BYTES, "slots that nobody uses take no memory"
    first.close()
    second.close()
    os.close(fd)
