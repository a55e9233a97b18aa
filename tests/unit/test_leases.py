"""Who may touch which chunk; histories of all parties together are in test_arena_histories.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import chunk
from orch.chunk import MAX_GRANT, Chunk
from orch.errors import RemoteProtocolError
from orch_balancer.buddy import MIN_BYTES, Buddy
from orch_balancer.leases import Leases

A, B = b"a" * 16, b"b" * 16
R0, R1 = ("r0", 1), ("r1", 1)


def body(where: Chunk, size: int = 100) -> bytes:
    """Of a record whose frame is in that chunk."""
    return chunk.write_descriptor(where, [size])


@given(
    st.integers(0, 40 * MIN_BYTES),
    st.lists(st.one_of(st.integers(1, 20 * MIN_BYTES), st.integers(-50, 0)), max_size=60),
)
def test_blocks_never_overlap_and_merge_again(total: int, steps: list[int]) -> None:
    """Positive: take so many bytes. Else: give one back."""
    memory = Buddy(total)
    whole = dict(sorted((size, len(free)) for size, free in memory._free.items()))  # noqa: SLF001
    assert total - MIN_BYTES < memory.total <= total
    taken: dict[int, int] = {}
    for step in steps:
        if step > 0:
            found = memory.take(step)
            if found is not None:
                offset, size = found
                assert size >= step
                assert size == Buddy.block(step)
                assert offset % size == 0
                assert offset + size <= memory.total
                assert all(offset + size <= other or other + taken[other] <= offset for other in taken)
                taken[offset] = size
        elif taken:
            offset = sorted(taken)[step % len(taken)]
            memory.give_back(offset)
            del taken[offset]
        assert memory.num_free == memory.total - sum(taken.values())
    for offset in taken:
        memory.give_back(offset)
    assert dict(sorted((size, len(free)) for size, free in memory._free.items())) == whole  # noqa: SLF001


def test_the_last_freed_goes_first() -> None:
    """Its memory is warm."""
    memory = Buddy(8 * MIN_BYTES)
    blocks = [memory.take(MIN_BYTES) for _ in range(8)]
    assert memory.take(1) is None
    assert blocks[5] is not None
    memory.give_back(blocks[5][0])
    assert memory.take(1) == blocks[5]


def test_a_client_may_have_as_much_as_is_left_over() -> None:
    """One has half of the arena, the second half of the rest; what one gives back, another may have."""
    leases = Leases(64 * MIN_BYTES, epoch=1)
    first = leases.grant(A, MIN_BYTES, 1000)
    assert len(first) == 32
    second = leases.grant(B, MIN_BYTES, 1000)
    assert len(second) == 16
    leases.give_back(A, [each.lease for each in first])
    assert len(leases.grant(B, MIN_BYTES, 1000)) == 16
    assert len({each.lease for each in first + second}) == 48
    leases.forget(B)
    assert leases.num_leased == 0
    assert len(Leases(10_000 * MIN_BYTES, 1).grant(A, 1, 1000)) == MAX_GRANT
    assert Leases(0, 1).grant(A, 1, 1) == []
    assert leases.grant(A, 0, 5) == []
    assert leases.grant(A, 2**64 - 1, 5) == []


def test_a_descriptor_must_be_of_a_chunk_that_its_client_may_use() -> None:
    """Not another's, not one in use, not one that was given back, not beyond its end."""
    leases = Leases(64 * MIN_BYTES, epoch=1)
    (where, other) = leases.grant(A, MIN_BYTES, 2)
    for session, named in (
        (B, where),
        (A, where._replace(size=where.size + 1)),
        (A, where._replace(offset=other.offset)),
        (A, where._replace(lease=other.lease + 1)),
    ):
        with pytest.raises(RemoteProtocolError):
            leases.name(session, named)
    lease = leases.name(A, where._replace(size=100))
    with pytest.raises(RemoteProtocolError):
        leases.name(A, where._replace(size=100))
    assert leases.end(lease)
    leases.give_back(A, [where.lease])
    with pytest.raises(RemoteProtocolError):
        leases.name(A, where._replace(size=100))


def test_a_worker_that_was_given_up_keeps_its_chunks_until_it_is_dead() -> None:
    """The request ran again elsewhere and is answered, its client is gone: still nobody else gets that memory."""
    leases = Leases(64 * MIN_BYTES, epoch=1)
    (where,) = leases.grant(A, MIN_BYTES, 1)
    lease = leases.name(A, where._replace(size=100))
    leases.read(lease, R0)
    result = leases.result(A, MIN_BYTES, R0)
    leases.read(lease, R1)
    leases.leave(lease, R1)
    assert not leases.end(lease), "the client may not write what R0 reads"
    leases.forget(A)
    assert result is not None
    assert leases.num_leased == 2 * MIN_BYTES
    assert leases.processes == {R0}
    leases.leave_all(R0)
    assert leases.num_leased == 0
    leases.check_invariants()


def test_a_chunk_that_a_model_has_kept_is_nobody_elses_before_its_client_returns_it() -> None:
    """The answer may be lost on its way, and the client sends the request again, from there."""
    leases = Leases(64 * MIN_BYTES, epoch=1)
    (where,) = leases.grant(A, MIN_BYTES, 1)
    lease = leases.name(A, where._replace(size=100))
    leases.read(lease, R0)
    leases.has_read(lease, R0, kept=True)
    assert not leases.end(lease)
    with pytest.raises(RemoteProtocolError):
        leases.name(A, where._replace(size=100))
    leases.let_go(R0, [where.lease])
    assert leases.num_leased == MIN_BYTES
    leases.check_invariants()
    leases.give_back(A, [where.lease])
    assert leases.num_leased == 0


def test_a_result_is_its_clients_until_it_is_returned() -> None:
    """And nobody's, when the worker names another chunk or none."""
    leases = Leases(64 * MIN_BYTES, epoch=1)
    result, unused = leases.result(A, MIN_BYTES, R0), leases.result(A, MIN_BYTES, R0)
    assert result is not None
    assert unused is not None
    assert not leases.wrote(unused, R0, body(result.chunk))
    assert not leases.wrote(unused, R0, b"no descriptor")
    leases.leave(unused, R0)
    assert leases.wrote(result, R0, body(result.chunk))
    assert leases.holds(A)
    leases.give_back(B, [result.chunk.lease])
    assert leases.num_leased == MIN_BYTES
    leases.give_back(A, [result.chunk.lease, result.chunk.lease, 99])
    assert leases.num_leased == 0
