"""Several requests of one client, or results, in one record of the wire.

What most clients send most of the time differs only in its body: requests, numbered one after another, that have no
frames, and one deadline or none. They travel in one record, whose header names the first of them and says how many
there are; packed, its body begins with the lengths of theirs (u32 each). So does what a batch makes of them. The
balancer handles a bundle as one as long as nothing tells its requests apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection

from orch.wire import BUNDLE, BUNDLE_LENGTHS, FLAGS_AT, HEADER, HEADER_BYTES, ROWS_AT, U16, Packed, Record, num_in

LENGTH_FIELD = 9  # of the header: bytes of the body


def sizes(raw: bytes) -> tuple[int, ...]:
    """Bytes of each body of a packed bundle."""
    found: tuple[int, ...] = BUNDLE_LENGTHS[U16.unpack_from(raw, ROWS_AT)[0]].unpack_from(raw, HEADER_BYTES)
    return found


def num_bytes(raw: bytes) -> int:
    """Of the bodies in a packed record."""
    num = num_in(raw)
    return len(raw) - HEADER_BYTES - (BUNDLE_LENGTHS[num].size if raw[FLAGS_AT] & BUNDLE else 0)


def without(raw: bytes, places: Collection[int]) -> bytes:
    """A packed bundle in which these bodies are empty."""
    lengths = [0 if place in places else size for place, size in enumerate(sizes(raw))]
    ends = itertools.accumulate(sizes(raw), initial=HEADER_BYTES + BUNDLE_LENGTHS[len(lengths)].size)
    bodies = [raw[begin : begin + length] for begin, length in zip(ends, lengths, strict=False)]
    body = BUNDLE_LENGTHS[len(lengths)].pack(*lengths) + b"".join(bodies)
    fields = list(HEADER.unpack_from(raw))
    fields[LENGTH_FIELD] = len(body)
    return HEADER.pack(*fields) + body


def part(raw: bytes, start: int, stop: int) -> bytes:
    """Some of a packed bundle, as a packed record: a bundle of fewer, or what a single one would have been."""
    (
        version, kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, _, rows, _,
    ) = HEADER.unpack_from(raw)  # fmt: skip
    every = sizes(raw)
    begin = HEADER_BYTES + BUNDLE_LENGTHS[rows].size + sum(every[:start])
    lengths = every[start:stop]
    bodies = raw[begin : begin + sum(lengths)]
    num = stop - start
    if num > 1:
        bodies = BUNDLE_LENGTHS[num].pack(*lengths) + bodies
    header = HEADER.pack(
        version, kind, flags if num > 1 else flags & ~BUNDLE, priority, attempt, model,
        request_id + start, ticket + start if ticket else 0, deadline_ns, len(bodies), num, 0,
    )  # fmt: skip
    return header + bodies


def some(bundle: Packed, start: int, stop: int) -> Packed:
    """Some of a received bundle, as `part` makes them, as if they had come by themselves."""
    kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, _, raw, _ = bundle
    num = stop - start
    flags = flags if num > 1 else flags & ~BUNDLE
    its_ticket = ticket + start if ticket else 0
    raw = part(raw, start, stop)
    return kind, flags, priority, attempt, model, request_id + start, its_ticket, deadline_ns, num, raw, ()


def apart(bundle: Packed) -> list[Packed]:
    """Each of a received bundle by itself."""
    return [some(bundle, i, i + 1) for i in range(bundle[8])]


def singles(bundle: Record) -> list[Record]:
    """Each of a bundle by itself."""
    kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, num, _, bodies = bundle
    flags &= ~BUNDLE
    tickets = range(ticket, ticket + num) if ticket else itertools.repeat(0, num)
    return [
        tuple.__new__(Record, (kind, flags, priority, attempt, model, each, at, deadline_ns, 1, body, ()))
        for each, at, body in zip(range(request_id, request_id + num), tickets, bodies, strict=True)
    ]


def split(bundle: Record, num: int) -> tuple[Record, Record]:
    """The first so many of a bundle, and the others: bundles, even of one."""
    ticket = bundle.ticket + num if bundle.ticket else 0
    bodies = bundle.frames
    return (
        bundle._replace(rows=num, frames=bodies[:num]),
        bundle._replace(request_id=bundle.request_id + num, ticket=ticket, rows=bundle.rows - num, frames=bodies[num:]),
    )
