"""The protocol, version 1: records, and messages that pack many of them.

A message is one head frame holding records back to back, then the large frames those records own:

    [header, body] [header, body] ...   frame  frame  ...

In Python a request costs by the frame and by the socket call, not by the byte, so everything that
waits for the same peer travels in one message. A record's body is msgpack; what orch itself says
(HELLO, WELCOME, READY, ERROR) is a map whose fields are listed at the bottom, and what a user says
is a payload tree (see payload.py) that the balancer never opens.

Decoding is total: any bytes give records or `RemoteProtocolError`, and nothing larger than what
was received is ever allocated.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from orch.errors import LocalProtocolError, RemoteProtocolError

VERSION = 1

# version, kind, flags, priority, attempt, model, request id, ticket, deadline, body length, rows, frames
HEADER = struct.Struct("<BBHBBHQQqIHH")
# Where a header holds what the balancer changes in a request that it gives to a worker.
ATTEMPT_AT, TICKET_AT, TICKET = 5, 16, struct.Struct("<Q")

# One message is one turn of a peer: these bound how long a turn is, so that nobody starves beside a flood.
MAX_RECORDS = 256
MAX_INLINE_BYTES = 256 * 1024
MAX_FRAMES = 64
# From here on a copy into the head frame costs more than a frame of its own (pyzmq's copy_threshold).
FRAME_BYTES = 64 * 1024
# A stream has at most this many parts on their way; the reader grants more as it reads (kind CREDIT).
STREAM_CREDIT = 32

SESSION_BYTES = 16
NO_DEADLINE = 0


class Kind(enum.IntEnum):
    """What a record is. Client to balancer to worker, and back."""

    HELLO = 1  # opens a connection; sent by the balancer it means: say who you are
    WELCOME = 2  # the balancer's epoch and limits
    REQUEST = 3
    RESULT = 4  # final
    PART = 5  # one part of a stream
    CREDIT = 6  # `rows` more parts may be sent
    END = 7  # final: the stream is complete
    ERROR = 8  # final
    CANCEL = 9
    READY = 10  # a worker opens for work
    GOODBYE = 11  # the sender closes; nothing more comes
    LEASE = 12  # a client asks for chunks of the arena
    GRANT = 13  # chunks: a client's until it gives them back, a worker's for the result of one ticket
    RETURN = 14  # the sender has no more to do with these leases


# Plain integers, which a set finds by identity.
KINDS = frozenset(map(int, Kind))
FINAL = frozenset(map(int, (Kind.RESULT, Kind.END, Kind.ERROR)))


class Flag:
    """Bits of a record's flags: plain integers, because an enum's `&` costs as much as the rest of a record."""

    RESEND = 1  # the client sent this request to an earlier epoch; attempt counts how often
    NO_RETRY = 2  # run at most once
    STREAM = 4  # answer in PARTs and an END
    BUDGET = 8  # the deadline field holds what remains, because the clocks of two hosts differ
    ARENA = 16  # the body begins with a descriptor (chunk.py): the record's large frames are in that chunk
    KEPT = 32  # in a final answer: the request's chunk is read on, and is not the client's any more


class Priority(enum.IntEnum):
    """Lower runs first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


LOWEST = int(max(Priority))


class Record(NamedTuple):
    """One record. `frames` are whatever buffers the transport uses; they are passed on, never opened.

    deadline_ns: absolute CLOCK_MONOTONIC in nanoseconds, or the remaining budget with Flag.BUDGET; 0: none.
    rows: batch rows of a request (at least 1), parts granted of a CREDIT.
    """

    kind: int
    flags: int = 0
    priority: int = Priority.NORMAL
    attempt: int = 0
    model: int = 0
    request_id: int = 0
    ticket: int = 0
    deadline_ns: int = NO_DEADLINE
    rows: int = 1
    body: bytes = b""
    frames: tuple[Any, ...] = ()

    @property
    def header(self) -> bytes:
        """Its header, packed now."""
        kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, rows, body, frames = self
        return HEADER.pack(
            VERSION, kind, flags, priority, attempt, model,
            request_id, ticket, deadline_ns, len(body), rows, len(frames),
        )  # fmt: skip


class Received(NamedTuple):
    """A record as it came, with its packed header: who passes it on need not pack it again."""

    kind: int
    flags: int
    priority: int
    attempt: int
    model: int
    request_id: int
    ticket: int
    deadline_ns: int
    rows: int
    body: bytes
    frames: tuple[Any, ...]
    header: bytes


AnyRecord = Record | Received

# What a message is made of: a packed header, its body, and the frames that the record owns.
Piece = tuple[bytes | bytearray, bytes, tuple[Any, ...]]


def changed(record: AnyRecord, **fields: Any) -> Record:
    """A copy with other values in these fields."""
    return Record._make(record[: len(Record._fields)])._replace(**fields)


def as_piece(record: AnyRecord) -> Piece:
    """The record, packed."""
    return record.header, record.body, record.frames


def addressed(record: AnyRecord, attempt: int, ticket: int) -> Piece:
    """The same request for a worker, as one of its dispatches."""
    header = bytearray(record.header)
    header[ATTEMPT_AT] = attempt
    TICKET.pack_into(header, TICKET_AT, ticket)
    return header, record.body, record.frames


def pack_head(records: Iterable[Record]) -> bytes:
    """The head frame of a message. The caller keeps to the limits; `messages` does it for any number of records."""
    pieces: list[bytes] = []
    add = pieces.append
    pack = HEADER.pack
    for kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, rows, body, frames in records:
        add(
            pack(
                VERSION, kind, flags, priority, attempt, model,
                request_id, ticket, deadline_ns, len(body), rows, len(frames),
            )
        )  # fmt: skip
        add(body)
    return b"".join(pieces)


def encode(records: Sequence[Record]) -> list[Any]:
    """One message: the head frame, then the frames the records own, in their order."""
    head = pack_head(records)
    return [head, *(frame for record in records for frame in record.frames)]


def messages(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Cut records, in order, into runs that each fit one message.

    Raises:
        LocalProtocolError: a single record owns more than MAX_FRAMES frames.
    """
    every = list(records)
    for run in _runs([len(record.body) for record in every], [len(record.frames) for record in every]):
        yield every[run]


def pack(pieces: Sequence[Piece]) -> Iterator[list[Any]]:
    """The messages, as `encode` makes them, of records whose headers are packed; cut as by `messages`."""
    if not pieces:
        return
    headers, bodies, frames = zip(*pieces, strict=True)
    for run in _runs(list(map(len, bodies)), list(map(len, frames))):
        parts = zip(headers[run], bodies[run], strict=True)
        yield [b"".join(itertools.chain.from_iterable(parts)), *itertools.chain.from_iterable(frames[run])]


def _runs(bodies: Sequence[int], frames: Sequence[int]) -> Iterator[slice]:
    """Records that each fit one message. bodies: bytes of each record's body; frames: how many each owns."""
    num_records = len(bodies)
    inline, owned = HEADER.size * num_records + sum(bodies), sum(frames)
    if 0 < num_records <= MAX_RECORDS and inline <= MAX_INLINE_BYTES and owned <= MAX_FRAMES:
        yield slice(num_records)  # as most do: nothing is looked at one by one
        return
    first = inline = owned = 0
    for i, (body, owns) in enumerate(zip(bodies, frames, strict=True)):
        size = HEADER.size + body
        if owns > MAX_FRAMES:
            raise LocalProtocolError(f"a record owns {owns} frames; at most {MAX_FRAMES} travel in one message")
        if i > first and (i - first >= MAX_RECORDS or inline + size > MAX_INLINE_BYTES or owned + owns > MAX_FRAMES):
            yield slice(first, i)
            first, inline, owned = i, 0, 0
        inline += size
        owned += owns
    if first < num_records:
        yield slice(first, num_records)


def decode(head: bytes, frames: Sequence[Any] = ()) -> list[Record]:
    """The records of one message, at least one.

    Raises:
        RemoteProtocolError: for any other input, and nothing else is ever raised.
    """
    return _decode(head, frames, with_headers=False)


def receive(head: bytes, frames: Sequence[Any] = ()) -> list[Received]:
    """As `decode`, with the packed headers, for who passes records on.

    Raises:
        RemoteProtocolError: for any other input, and nothing else is ever raised.
    """
    return _decode(head, frames, with_headers=True)


def _decode(head: bytes, frames: Sequence[Any], *, with_headers: bool) -> list[Any]:
    records: list[Any] = []
    add = records.append
    new_tuple = tuple.__new__  # a NamedTuple's own constructor is a Python function: half of this loop's time
    size, end, start, taken = HEADER.size, len(head), 0, 0
    unpack = HEADER.unpack_from
    while start < end:
        body_start = start + size
        if body_start > end:
            raise RemoteProtocolError(f"a header of {end - start} bytes; it has {size}")
        header = head[start:body_start] if with_headers else b""
        (
            version, kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, length, rows, owns,
        ) = unpack(head, start)  # fmt: skip
        start = body_start + length
        if version != VERSION or kind not in KINDS or start > end or priority > LOWEST or not rows:
            raise RemoteProtocolError(_what_is_wrong(version, kind, priority, rows, length, end - body_start))
        owned: tuple[Any, ...] = ()
        if owns:
            owned = tuple(frames[taken : taken + owns])
            taken += owns
        body = head[body_start:start]
        if with_headers:
            fields: Any = (
                kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, rows, body, owned, header,
            )  # fmt: skip
            add(new_tuple(Received, fields))
        else:
            fields = (kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, rows, body, owned)
            add(new_tuple(Record, fields))
    if not records or len(records) > MAX_RECORDS:
        raise RemoteProtocolError(f"{len(records)} records in a message; 1 to {MAX_RECORDS} are allowed")
    if taken != len(frames) or taken > MAX_FRAMES:
        raise RemoteProtocolError(f"{len(frames)} frames follow records that own {taken}; at most {MAX_FRAMES}")
    return records


def _what_is_wrong(version: int, kind: int, priority: int, rows: int, length: int, there: int) -> str:
    if version != VERSION:
        return f"version {version}; this is version {VERSION}"
    if kind not in KINDS:
        return f"unknown kind {kind}"
    if priority > LOWEST:
        return f"unknown priority {priority}"
    if not rows:
        return "a record of 0 rows"
    return f"a body of {length} bytes where {there} are left"


# --- tickets -----------------------------------------------------------------------------------------------------
# A ticket names one dispatch: the balancer's epoch above, a counter below. A late answer of an earlier life of the
# balancer, or of a worker that was given up, carries a ticket that nobody holds any more.


def make_ticket(epoch: int, counter: int) -> int:
    """epoch: u32, random per life of a balancer. counter: u32, from 1."""
    return epoch << 32 | (counter & 0xFFFFFFFF)


def ticket_epoch(ticket: int) -> int:
    """The epoch that a ticket was issued in."""
    return ticket >> 32


# --- what orch itself says ---------------------------------------------------------------------------------------

Fields = Mapping[str, type | tuple[type, ...]]

HELLO_FIELDS: Fields = {"session": bytes, "sdk": str}
WELCOME_FIELDS: Fields = {"epoch": int, "max_payload_bytes": int, "window": int, "models": list, "arena": str}
READY_FIELDS: Fields = {"replica": str, "generation": int, "model": str, "max_batch_size": int, "kept": list}
ERROR_FIELDS: Fields = {"code": str, "message": str, "retry_after_s": (int, float)}


def write_map(**fields: Any) -> bytes:
    """A body that `read_map` reads."""
    return msgpack.packb(fields, use_bin_type=True)  # type: ignore[no-any-return]


def read_map(body: bytes, fields: Fields) -> dict[str, Any]:
    """A map with at least `fields`, each of its type; further keys are a newer version's and are left out.

    Raises:
        RemoteProtocolError: not msgpack, not a map, or a field missing or of another type.
    """
    try:
        found = msgpack.unpackb(body, raw=False)
    except Exception as err:  # msgpack raises ValueError, its own, RecursionError, UnicodeDecodeError...
        raise RemoteProtocolError(f"a body that is not msgpack: {type(err).__name__}") from err
    if not isinstance(found, dict):
        raise RemoteProtocolError(f"a {type(found).__name__} where a map with {', '.join(fields)} belongs")
    for name, kind in fields.items():
        if not isinstance(found.get(name), kind) or isinstance(found.get(name), bool):
            raise RemoteProtocolError(f"field {name!r} is missing or of the wrong type")
    return {name: found[name] for name in fields}


def error_record(request_id: int, code: str, message: str, retry_after_s: float = 0.0, ticket: int = 0) -> Record:
    """An ERROR: the final answer of a request that has no result."""
    body = write_map(code=code, message=message, retry_after_s=retry_after_s)
    return Record(Kind.ERROR, request_id=request_id, ticket=ticket, body=body)
