"""What must hold of a router after every event. It looks where nobody else does, and changes nothing."""

# ruff: noqa: SLF001

from __future__ import annotations

import pytest

from orch import bundles, wire
from orch.wire import Priority
from orch_balancer.deadlines import Deadlines
from orch_balancer.entry import DISPATCHED, DONE, QUEUED, SUSPECT, Entry
from orch_balancer.pool import Pool
from orch_balancer.router import Router


def check(router: Router) -> None:
    """Every request is in exactly one place, and every sum is that of its parts."""
    router.leases.check_invariants()
    listed: dict[Entry, list[int]] = {}
    for session in router.sessions.values():
        for request_id, entry in session.entries.items():
            assert entry.session is session
            listed.setdefault(entry, []).append(request_id)
    for entry, request_ids in listed.items():
        check_entry(entry, sorted(request_ids))
    assert router.num_bytes == sum(entry.num_bytes for entry in listed)
    assert router.num_entries == sum(entry.num for entry in listed)
    queued = [entry for pool in router.pools for entry in pool.queue]
    suspects = [entry for pool in router.pools for entry in pool.suspects]
    workers = [worker for pool in router.pools for worker in pool.workers.values()]
    waited_for = [
        each for worker in workers for each in dict.fromkeys(worker.outstanding.values()) if each.place is DISPATCHED
    ]
    everywhere = queued + suspects + waited_for
    assert router.num_queued == sum(entry.num for entry in queued + suspects)
    assert len(everywhere) == len(set(everywhere)), "an entry in two places"
    assert set(everywhere) == set(listed), "an entry in no place, or one nobody waits for"
    assert all(entry.place is QUEUED for entry in queued)
    assert all(entry.place is SUSPECT and not entry.is_bundle for entry in suspects)
    tickets = [ticket for worker in workers for ticket in worker.outstanding]
    assert len(set(tickets)) == len(tickets)
    assert router.num_outstanding == len(tickets)
    check_deadlines(router._deadlines, [entry for entry in listed if entry.deadline_ns])
    for pool in router.pools:
        check_pool(router, pool)


def check_entry(entry: Entry, request_ids: list[int]) -> None:
    """A line of these open requests, of which its session told."""
    assert entry.place is not DONE
    assert entry.num == len(request_ids)
    assert entry.open_ids() == request_ids
    if entry.raw:
        assert (entry.raw[wire.FLAGS_AT], *wire.HEADER.unpack_from(entry.raw)[6:7]) == (entry.flags, entry.request_id)
    if not entry.is_bundle:
        assert (entry.num, entry.request_id) == (1, request_ids[0])
        assert entry.cancelled is None
        return
    places = [each - entry.request_id for each in request_ids]
    sizes = bundles.sizes(entry.raw)
    assert entry.num_bytes == sum(sizes[place] for place in places)
    if entry.place is QUEUED:
        assert entry.rows == entry.num
        assert (entry.cancelled or set()) == set(range(len(sizes))) - set(places)
    else:
        assert entry.cancelled is None, "what was cancelled goes to no worker"
        tickets = [ticket for ticket, each in entry.worker.outstanding.items() if each is entry]
        assert sorted(tickets) == [entry.ticket + place for place in places]


def check_deadlines(deadlines: Deadlines, lines: list[Entry]) -> None:
    """Each open request that has one is watched, until it is due; what has ended is not counted."""
    assert deadlines._num_open == sum(entry.num for entry in lines)
    watched = {(session, each, at) for at, _, session, ids in deadlines._heap for each in ids}
    next_ns = deadlines.next_ns()
    for entry in lines:
        if not {(entry.session, each, entry.deadline_ns) for each in entry.open_ids()} <= watched:
            assert entry.place is DISPATCHED, "a deadline that nobody will look at"
            assert next_ns is None or entry.deadline_ns <= next_ns


def check_pool(router: Router, pool: Pool) -> None:
    """What waits in it, and what its workers have."""
    queue = pool.queue
    assert len(queue) == sum(entry.num for entry in queue)
    assert queue.rows == sum(entry.rows for entry in queue)
    for priority in Priority:
        assert queue.num_of(priority) == sum(entry.num for entry in queue if entry.priority == priority)
    assert pool.touched.keys() <= set(pool.workers.values())
    settled = set(pool.workers.values()) - pool.touched.keys()
    idle = {w.replica: w.weight for w in settled if w.accepting and not w.in_lane and not w.rows}
    touched = {worker.replica for worker in pool.touched}
    assert {name: weight for name, weight in pool._idle.items() if name not in touched} == idle
    assert pool._idle.keys() <= pool.workers.keys()
    assert pool.idle_weight == pytest.approx(sum(pool._idle.values()))
    ranked = {worker.replica for _, _, version, worker in pool._heap if version == worker.version}
    assert idle.keys() <= ranked, "a worker that nothing would be given to"
    for worker in pool.workers.values():
        rows = streams = 0
        for ticket, entry in worker.outstanding.items():
            assert ticket in entry.tickets
            assert entry.worker is worker
            assert entry.attempts <= router.limits.max_attempts
            rows += 1 if entry.is_bundle else entry.rows
            streams += entry.is_stream
        assert (worker.rows, worker.streams) == (rows, streams)
        assert not worker.in_lane or worker.replica in pool.lanes
