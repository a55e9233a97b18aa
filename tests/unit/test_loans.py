"""A client's chunks; what all parties make of them together is in test_arena_histories.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orch import chunk
from orch.chunk import MAX_GRANT, Chunk
from orch.loans import RETRY_S, Loans
from orch.wire import Kind, Record
from orch_balancer.buddy import MIN_BYTES
from orch_balancer.leases import Leases

SESSION = b"a" * 16
FRAMES = [bytes(MIN_BYTES)]


class Memory:
    """An arena that nobody reads."""

    def write(self, where: Chunk, frames: Sequence[memoryview]) -> bytes:
        return chunk.write_descriptor(where, [frame.nbytes for frame in frames])


def loans() -> Loans:
    """A client that has just connected."""
    memory: Any = Memory()
    return Loans("path", 1, lambda _path, _epoch: memory)


def turn(client: Loans, balancer: Leases, num_sent: int, now: float) -> int:
    """Send so many requests, hear what the balancer says to that, and how many of them found a chunk."""
    found = sum(client.put(FRAMES) is not None for _ in range(num_sent))
    for record in client.news(now):
        if record.kind == Kind.LEASE:
            (num_bytes,) = chunk.read_numbers(record.body)
            chunks = balancer.grant(SESSION, num_bytes, record.rows)
            client.granted(Record(Kind.GRANT, body=chunk.write_chunks(chunks)))
    return found


def test_the_most_that_a_grant_has_is_no_refusal() -> None:
    """Who needs more chunks than one GRANT has gets them by asking again at once."""
    client, balancer = loans(), Leases(16 * MAX_GRANT * MIN_BYTES, epoch=1)
    assert turn(client, balancer, 3 * MAX_GRANT, now=1.0) == 0
    assert turn(client, balancer, 3 * MAX_GRANT, now=1.001) == MAX_GRANT
    assert turn(client, balancer, 3 * MAX_GRANT, now=1.002) == MAX_GRANT


def test_a_client_that_was_refused_asks_later() -> None:
    """The arena is too small for all it wants: until RETRY_S have passed it asks for nothing."""
    client, balancer = loans(), Leases(8 * MIN_BYTES, epoch=1)
    assert turn(client, balancer, 8, now=1.0) == 0
    assert turn(client, balancer, 8, now=1.001) == 4
    assert client.num_held == 4
    assert client.news(0.9 + RETRY_S) == []
    assert [record.kind for record in client.news(1.1 + RETRY_S)] == [Kind.LEASE]
