"""What must hold of a router after every event."""

from __future__ import annotations

from orch_balancer.entry import DISPATCHED, DONE
from orch_balancer.router import Router


def check(router: Router) -> None:
    """Every entry is in exactly one place, and every sum is that of its parts."""
    router.leases.check_invariants()
    listed = [entry for session in router.sessions.values() for entry in session.entries.values()]
    assert all(entry.place is not DONE for entry in listed)
    assert router.num_bytes == sum(entry.num_bytes for entry in listed)
    assert router.num_entries == len(listed)
    queued = [entry for pool in router.pools for entry in pool.queue]
    suspects = [entry for pool in router.pools for entry in pool.suspects]
    running = [
        (ticket, entry, worker)
        for pool in router.pools
        for worker in pool.workers.values()
        for ticket, entry in worker.outstanding.items()
    ]
    waited_for = [entry for _, entry, _ in running if entry.place is DISPATCHED]
    everywhere = queued + suspects + waited_for
    assert router.num_queued == len(queued) + len(suspects)
    assert len(everywhere) == len(set(map(id, everywhere))), "an entry in two places"
    assert set(map(id, everywhere)) == set(map(id, listed)), "an entry in no place, or one nobody waits for"
    for ticket, entry, worker in running:
        assert entry.ticket == ticket
        assert entry.worker is worker
        assert entry.attempts <= router.limits.max_attempts
    for pool in router.pools:
        assert sum(1 for _ in pool.queue) == len(pool.queue)
        assert sum(entry.rows for entry in pool.queue) == pool.queue.rows
        assert pool.idle == {
            w.replica: w.weight for w in pool.workers.values() if w.accepting and not w.in_lane and not w.rows
        }
        for worker in pool.workers.values():
            assert worker.rows == sum(entry.rows for entry in worker.outstanding.values())
            assert worker.streams == sum(entry.is_stream for entry in worker.outstanding.values())
            assert not worker.in_lane or worker.replica in pool.lanes
    assert len({ticket for ticket, _, _ in running}) == len(running)
