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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from orch.errors import LocalProtocolError, RemoteProtocolError

VERSION = 1

# version, kind, flags, priority, attempt, model, request id, ticket, deadline, body length, rows, frames
HEADER = struct.Struct("<BBHBBHQQqIHH")
HEADER_BYTES = HEADER.size
# Where a header holds what the balancer changes in a request that it gives to a worker.
ATTEMPT_AT, TICKET_AT, TICKET = 5, 16, struct.Struct("<Q")
# And where its deadline is, which is brought to the balancer's own clock if it comes from another host.
DEADLINE_AT, DEADLINE = 24, struct.Struct("<q")
# And what tells how many requests are in a packed record.
FLAGS_AT, ROWS_AT, U16 = 2, 36, struct.Struct("<H")

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
    BUNDLE = 64  # several requests, or results, of one client in one record: see bundles.py


class Priority(enum.IntEnum):
    """Lower runs first."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


LOWEST = int(max(Priority))

# What every record is asked for, looked up once.
BUNDLE = Flag.BUNDLE
# Kinds that may be bundled, and the flags that they may have then: what one worker's death means is the same for all.
BUNDLED, BUNDLED_FLAGS = frozenset(map(int, (Kind.REQUEST, Kind.RESULT))), BUNDLE | Flag.NO_RETRY | Flag.BUDGET
MAX_U64 = 1 << 64
# What the body of a bundle of so many begins with: the lengths of theirs.
BUNDLE_LENGTHS = [struct.Struct(f"<{num}I") for num in range(MAX_RECORDS + 1)]


class Record(NamedTuple):
    """One record. `frames` are whatever buffers the transport uses; they are passed on, never opened.

    deadline_ns: absolute CLOCK_MONOTONIC in nanoseconds, or the remaining budget with Flag.BUDGET; 0: none. In a RESULT
    it is what `pack_times` makes of its batch.
    rows: batch rows of a request (at least 1), parts granted of a CREDIT; of a bundle, how many are in it, whose bodies
    are its `frames` while it is not packed.
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
    def raw(self) -> bytes:
        """Its header, packed now, and its body."""
        return pack_head((self,))


class Received(NamedTuple):
    """A record as it came, its header and its body in one piece: who passes it on need not pack it again."""

    kind: int
    flags: int
    priority: int
    attempt: int
    model: int
    request_id: int
    ticket: int
    deadline_ns: int
    rows: int
    raw: bytes
    frames: tuple[Any, ...]

    @property
    def body(self) -> bytes:
        """What comes behind the header."""
        return self.raw[HEADER.size :]


AnyRecord = Record | Received
# The fields of a Received, in its order, which is all that most of those who pass records on look at.
Packed = tuple[int, int, int, int, int, int, int, int, int, bytes, tuple[Any, ...]]

# What a message is made of: a packed record, and the frames that it owns.
Piece = tuple[bytes | bytearray, tuple[Any, ...]]


def changed(record: AnyRecord, **fields: Any) -> Record:
    """A copy with other values in these fields."""
    return Record(*record[:9], record.body, record.frames)._replace(**fields)


def repacked(record: Record) -> Received:
    """The record as its receiver will see it."""
    return Received(*record[:9], record.raw, record.frames)


def as_piece(record: AnyRecord) -> Piece:
    """The record, packed."""
    return record.raw, record.frames


def addressed(raw: bytes, attempt: int, ticket: int) -> bytearray:
    """The same packed request for a worker, as one of its dispatches."""
    copy = bytearray(raw)
    copy[ATTEMPT_AT] = attempt
    TICKET.pack_into(copy, TICKET_AT, ticket)
    return copy


def timed(raw: bytes, flags: int, deadline_ns: int) -> bytes:
    """The same packed request with these flags and this deadline."""
    copy = bytearray(raw)
    U16.pack_into(copy, FLAGS_AT, flags)
    DEADLINE.pack_into(copy, DEADLINE_AT, deadline_ns)
    return bytes(copy)


def pack_head(records: Iterable[Record]) -> bytes:
    """The head frame of a message of records that are no bundles. The caller keeps to the limits; `messages` does."""
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


def messages(records: Sequence[Record]) -> list[list[Any]]:
    """As many messages as it takes for records, in order: `decode` reads them.

    Raises:
        LocalProtocolError: a single record owns more than MAX_FRAMES frames.
    """
    pieces: list[Piece] = []
    for kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, rows, body, frames in records:
        if flags & BUNDLE:
            body, frames = _bundled(frames), ()  # noqa: PLW2901
        header = HEADER.pack(
            VERSION, kind, flags, priority, attempt, model,
            request_id, ticket, deadline_ns, len(body), rows, len(frames),
        )  # fmt: skip
        pieces.append((header + body, frames))
    return pack(pieces)


def pack(pieces: Sequence[Piece]) -> list[list[Any]]:
    """The messages of packed records; cut as by `messages`."""
    if len(pieces) == 1:
        ((raw, frames),) = pieces
        if len(frames) <= MAX_FRAMES:
            return [[raw, *frames]]
    return _cut(*zip(*pieces, strict=True)) if pieces else []


def _cut(raws: Sequence[bytes | bytearray], owned: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Packed records, and the frames of each, as messages within the limits."""
    num_frames = sum(map(len, owned)) if any(owned) else 0
    num_records = len(raws) + sum([num_in(raw) - 1 for raw in raws if raw[FLAGS_AT] & BUNDLE])
    if num_records <= MAX_RECORDS and num_frames <= MAX_FRAMES:
        head = b"".join(raws)
        if len(head) <= MAX_INLINE_BYTES:  # as most have: nothing is looked at one by one
            return [[head, *itertools.chain.from_iterable(owned)] if num_frames else [head]]
    cut: list[list[Any]] = []
    first = num = inline = frames = 0
    for i, (raw, owns) in enumerate(zip(raws, map(len, owned), strict=True)):
        its_num, size = num_in(raw), len(raw)
        if owns > MAX_FRAMES:
            raise LocalProtocolError(f"a record owns {owns} frames; at most {MAX_FRAMES} travel in one message")
        if i > first and (
            num + its_num > MAX_RECORDS or inline + size > MAX_INLINE_BYTES or frames + owns > MAX_FRAMES
        ):
            cut.append(_message(raws[first:i], owned[first:i]))
            first, num, inline, frames = i, 0, 0, 0
        num += its_num
        inline += size
        frames += owns
    cut.append(_message(raws[first:], owned[first:]))
    return cut


def _message(raws: Sequence[bytes | bytearray], owned: Sequence[tuple[Any, ...]]) -> list[Any]:
    return [b"".join(raws), *itertools.chain.from_iterable(owned)]


def decode(head: bytes, frames: Sequence[Any] = ()) -> list[Record]:
    """The records of one message, at least one.

    Raises:
        RemoteProtocolError: for any other input, and nothing else is ever raised.
    """
    new_tuple = tuple.__new__  # a NamedTuple's own constructor is a Python function: half of the loop's time
    records: list[Record] = []
    for each in receive(head, frames, HEADER_BYTES):
        if each[1] & BUNDLE:
            each = (*each[:9], b"", _bodies(each[9], each[8]))  # noqa: PLW2901
        records.append(new_tuple(Record, each))
    return records


def receive(head: bytes, frames: Sequence[Any] = (), skipped: int = 0) -> list[Packed]:
    """The records of one message, for who passes them on: each has the fields of a Received. Bundles stay whole.

    skipped: bytes at the start of a packed record that are not kept.

    Raises:
        RemoteProtocolError: for anything else than `messages` makes, and nothing else is ever raised.
    """
    records: list[Packed] = []
    end = len(head)
    start = taken = num_more = 0
    owned: tuple[Any, ...]
    while start < end:
        body_start = start + HEADER_BYTES
        if body_start > end:
            raise RemoteProtocolError(f"a header of {end - start} bytes; it has {HEADER_BYTES}")
        (
            version, kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, length, rows, owns,
        ) = HEADER.unpack_from(head, start)  # fmt: skip
        stop = body_start + length
        if version != VERSION or kind not in KINDS or stop > end or priority > LOWEST or not rows:
            raise RemoteProtocolError(_what_is_wrong(version, kind, priority, rows, length, end - body_start))
        if owns:
            owned = tuple(frames[taken : taken + owns])
            taken += owns
        else:
            owned = ()
        if flags & BUNDLE:
            is_none = kind not in BUNDLED or owns or flags & ~BUNDLED_FLAGS
            if is_none or rows > MAX_RECORDS or BUNDLE_LENGTHS[rows].size > length:
                raise RemoteProtocolError(f"a bundle of {rows}, kind {kind}, flags {flags}, {owns} frames")
            lengths = BUNDLE_LENGTHS[rows]
            if lengths.size + sum(lengths.unpack_from(head, body_start)) != length:
                raise RemoteProtocolError(f"a bundle whose {rows} bodies do not fill its {length} bytes")
            if request_id + rows > MAX_U64 or ticket + rows > MAX_U64:
                raise RemoteProtocolError(f"a bundle of {rows} from request {request_id}, ticket {ticket}")
            num_more += rows - 1
        kept = head[start + skipped : stop]
        records.append((kind, flags, priority, attempt, model, request_id, ticket, deadline_ns, rows, kept, owned))
        start = stop
    if not records or len(records) + num_more > MAX_RECORDS:
        raise RemoteProtocolError(f"{len(records) + num_more} records in a message; 1 to {MAX_RECORDS} are allowed")
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


# --- bundles -----------------------------------------------------------------------------------------------------
# Several requests, or results, in one record: see bundles.py.

# Bytes of bodies in one bundle: with all lengths and the header it fits a message.
BUNDLE_BYTES = MAX_INLINE_BYTES - HEADER_BYTES - BUNDLE_LENGTHS[MAX_RECORDS].size


def num_in(raw: bytes | bytearray) -> int:
    """Requests, or results, in a packed record."""
    return int(U16.unpack_from(raw, ROWS_AT)[0]) if raw[FLAGS_AT] & BUNDLE else 1


def _bundled(bodies: Sequence[bytes]) -> bytes:
    return BUNDLE_LENGTHS[len(bodies)].pack(*map(len, bodies)) + b"".join(bodies)


def _bodies(body: bytes, num: int) -> tuple[bytes, ...]:
    """What `_bundled` was given."""
    lengths = BUNDLE_LENGTHS[num]
    ends = list(itertools.accumulate(lengths.unpack_from(body), initial=lengths.size))
    return tuple([body[begin:end] for begin, end in itertools.pairwise(ends)])


# --- tickets -----------------------------------------------------------------------------------------------------
# A ticket names one dispatch: the balancer's epoch above, a counter below. A late answer of an earlier life of the
# balancer, or of a worker that was given up, carries a ticket that nobody holds any more.


def make_ticket(epoch: int, counter: int) -> int:
    """epoch: u32, random per life of a balancer. counter: u32, from 1."""
    return epoch << 32 | (counter & 0xFFFFFFFF)


class Tickets:
    """Issues them in one epoch, from counter 1; again from there after the last."""

    def __init__(self, epoch: int) -> None:
        self._first = self._next = make_ticket(epoch, 1)
        self._end = self._first + (1 << 32) - 1

    def take(self, num: int = 1) -> int:
        """The first of so many, one after another."""
        if self._next + num > self._end:
            self._next = self._first
        ticket = self._next
        self._next += num
        return ticket


def ticket_epoch(ticket: int) -> int:
    """The epoch that a ticket was issued in."""
    return ticket >> 32


# --- times -------------------------------------------------------------------------------------------------------
# A RESULT has no deadline. In its place it says how its batch went, in microseconds.

US = 1_000_000
_MAX_WAITED_US, _MAX_TOOK_US = 2**31 - 1, 2**32 - 1


def pack_times(waited_s: float, took_s: float) -> int:
    """waited_s: from the arrival of a batch's first request to its start. took_s: in the model."""
    return min(int(waited_s * US), _MAX_WAITED_US) << 32 | min(int(took_s * US), _MAX_TOOK_US)


def read_times(packed: int) -> tuple[float, float]:
    """What `pack_times` was given."""
    return (packed >> 32) / US, (packed & 0xFFFFFFFF) / US


# --- what orch itself says ---------------------------------------------------------------------------------------

Fields = Mapping[str, type | tuple[type, ...]]

HELLO_FIELDS: Fields = {"session": bytes, "sdk": str, "window": int}
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
