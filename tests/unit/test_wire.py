"""The protocol: records survive the wire, and no bytes whatever do harm."""

from __future__ import annotations

import itertools
import random
import struct
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orch import bundles, payload, wire
from orch.errors import LocalProtocolError, RemoteProtocolError
from orch.wire import (
    HEADER,
    MAX_FRAMES,
    MAX_INLINE_BYTES,
    MAX_RECORDS,
    Flag,
    Kind,
    Packed,
    Priority,
    Received,
    Record,
)  # fmt: skip

U8, U16, U32, U64, I64 = 2**8 - 1, 2**16 - 1, 2**32 - 1, 2**64 - 1, 2**63 - 1

# Of a million byte strings, these many are read as messages and the others as what messages hold.
NUM_MESSAGES, NUM_BODIES = 800_000, 200_000

records = st.builds(
    Record,
    kind=st.sampled_from(Kind).map(int),
    flags=st.integers(0, U16).map(lambda flags: flags & ~Flag.BUNDLE),
    priority=st.sampled_from(Priority).map(int),
    attempt=st.integers(0, U8),
    model=st.integers(0, U16),
    request_id=st.integers(0, U64),
    ticket=st.integers(0, U64),
    deadline_ns=st.integers(-I64 - 1, I64),
    rows=st.integers(1, U16),
    body=st.binary(max_size=100),
    frames=st.lists(st.binary(max_size=10), max_size=5).map(tuple),
)


@st.composite
def a_bundle(draw: st.DrawFn) -> Record:
    """Any that may be sent."""
    bodies = draw(st.lists(st.binary(max_size=40), min_size=1, max_size=12))
    kind = draw(st.sampled_from((Kind.REQUEST, Kind.RESULT)))
    last_first = U64 + 1 - len(bodies)
    return Record(
        kind=int(kind),
        flags=Flag.BUNDLE | draw(st.sampled_from((0, Flag.NO_RETRY, Flag.BUDGET))),
        priority=int(draw(st.sampled_from(Priority))),
        attempt=draw(st.integers(0, U8)),
        model=draw(st.integers(0, U16)),
        request_id=draw(st.integers(0, last_first)),
        ticket=draw(st.just(0) | st.integers(0, last_first)),
        deadline_ns=draw(st.integers(-I64 - 1, I64)),
        rows=len(bodies),
        frames=tuple(bodies),
    )


any_bundle = a_bundle()


def over_the_wire(sent: list[Record]) -> list[Record]:
    """What arrives of records that were cut into messages."""
    arrived: list[Record] = []
    for head, *frames in wire.messages(sent):
        arrived += wire.decode(head, frames)
    return arrived


@given(st.lists(records | any_bundle, max_size=20))
def test_records_arrive_as_they_were_sent(sent: list[Record]) -> None:
    """Every field, body and frame of any list of records, in order."""
    assert over_the_wire(sent) == sent


@given(st.lists(records, max_size=20))
def test_records_that_are_passed_on_leave_as_they_came(sent: list[Record]) -> None:
    """Whether their headers are kept or packed anew."""
    for message in wire.messages(sent):
        received = [Received(*each) for each in wire.receive(message[0], message[1:])]
        run = wire.decode(message[0], message[1:])
        assert [wire.changed(record) for record in received] == run
        assert wire.pack([wire.as_piece(record) for record in run]) == [message]
        assert wire.pack([wire.as_piece(record) for record in received]) == [message]


@given(records, st.integers(0, U8), st.integers(0, U64))
def test_a_request_is_given_to_a_worker_with_its_attempt_and_ticket(sent: Record, attempt: int, ticket: int) -> None:
    """And nothing else is changed."""
    head, *frames = wire.encode([sent])
    requests: list[wire.AnyRecord] = [sent, Received(*wire.receive(head, frames)[0])]
    for request in requests:
        ((head, *frames),) = wire.pack([(wire.addressed(request.raw, attempt, ticket), request.frames)])
        assert wire.decode(head, frames) == [sent._replace(attempt=attempt, ticket=ticket)]


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, MAX_FRAMES)), min_size=1, max_size=300))
def test_records_of_any_size_are_cut_into_messages_within_the_limits(sizes: list[tuple[int, int]]) -> None:
    """No message has more records, inline bytes or frames than its reader allows."""
    sent = [Record(Kind.REQUEST, body=bytes(size), frames=(b"",) * owns) for size, owns in sizes]
    messages = list(wire.messages(sent))
    runs = [wire.decode(head, frames) for head, *frames in messages]
    assert [record for run in runs for record in run] == sent
    assert list(wire.pack([wire.as_piece(record) for record in sent])) == messages
    assert messages == [wire.encode(run) for run in runs]
    for run in runs:
        assert 1 <= len(run) <= MAX_RECORDS
        assert len(wire.pack_head(run)) <= MAX_INLINE_BYTES
        assert sum(len(record.frames) for record in run) <= MAX_FRAMES


def lengths(sent: list[Record]) -> list[int]:
    """How many records each message gets."""
    return [len(wire.decode(head, frames)) for head, *frames in wire.messages(sent)]


def test_a_message_holds_at_most_256_records() -> None:
    """The 257th opens the next one."""
    assert lengths([Record(Kind.CANCEL)] * 256) == [256]
    assert lengths([Record(Kind.CANCEL)] * 257) == [256, 1]
    assert lengths([]) == []


def test_a_message_holds_at_most_256_kib_inline() -> None:
    """Headers count: what is bounded is the frame that the peer must take in one piece."""
    half = Record(Kind.REQUEST, body=bytes(128 * 1024 - HEADER.size))
    assert lengths([half] * 4) == [2, 2]
    assert lengths([half, half._replace(body=half.body + b"x"), half]) == [1, 1, 1]


def test_one_record_larger_than_a_message_travels_alone() -> None:
    """It cannot be cut, and what waits behind it need not wait longer."""
    small, large = Record(Kind.REQUEST, body=b"small"), Record(Kind.REQUEST, body=bytes(MAX_INLINE_BYTES))
    assert lengths([small, large, small]) == [1, 1, 1]


def test_a_message_holds_at_most_64_frames() -> None:
    """The frames of one record are never divided."""
    owner = Record(Kind.REQUEST, frames=(b"",) * 40)
    assert lengths([owner, Record(Kind.REQUEST, frames=(b"",) * 24), owner, owner]) == [2, 1, 1]


def test_a_record_with_more_frames_than_a_message_is_our_own_mistake() -> None:
    """It is refused before anything is sent."""
    with pytest.raises(LocalProtocolError, match="65 frames"):
        list(wire.messages([Record(Kind.REQUEST, frames=(b"",) * 65)]))


def a_header(**fields: int) -> bytes:
    """One header, with what a peer might put there."""
    usual = {
        "version": wire.VERSION, "kind": Kind.REQUEST, "flags": 0, "priority": 1, "attempt": 0, "model": 0,
        "request_id": 1, "ticket": 0, "deadline_ns": 0, "length": 0, "rows": 1, "owns": 0,
    }  # fmt: skip
    return HEADER.pack(*(usual | fields).values())


# --- bundles -------------------------------------------------------------------------------------------------------


def received(bundle: Record) -> Packed:
    """One record as the balancer gets it."""
    ((head,),) = wire.messages([bundle])
    (packed,) = wire.receive(head)
    return packed


def unpacked(packed: Packed) -> list[Record]:
    """What a worker makes of it, each by itself."""
    (record,) = wire.decode(packed[9])
    return bundles.singles(record) if record.flags & Flag.BUNDLE else [record]


@given(any_bundle)
def test_a_bundle_stands_for_records_that_differ_in_body_and_numbers(bundle: Record) -> None:
    """A ticket of 0 is none, and the same for all."""
    each = bundles.singles(bundle)
    assert [record.body for record in each] == list(bundle.frames)
    assert [record.request_id for record in each] == [bundle.request_id + i for i in range(bundle.rows)]
    assert [record.ticket for record in each] == [bundle.ticket and bundle.ticket + i for i in range(bundle.rows)]
    for record in each:
        back = record._replace(request_id=bundle.request_id, ticket=bundle.ticket, body=b"")
        assert back == bundle._replace(flags=bundle.flags & ~Flag.BUNDLE, rows=1, frames=())
    assert over_the_wire(each) == each


@given(any_bundle, st.integers(0, U8), st.integers(0, U64 - 12))
def test_a_bundle_is_passed_on_with_its_attempt_and_its_first_ticket(bundle: Record, attempt: int, ticket: int) -> None:
    """Without being opened, and nothing else is changed."""
    *_, raw, frames = received(bundle)
    assert wire.pack([(raw, frames)]) == wire.messages([bundle])
    ((head,),) = wire.pack([(wire.addressed(raw, attempt, ticket), frames)])
    assert wire.decode(head) == [bundle._replace(attempt=attempt, ticket=ticket)]


@given(any_bundle, st.data())
def test_parts_of_a_bundle_put_together_are_the_whole(bundle: Record, data: st.DataObject) -> None:
    """Wherever it is cut, by whoever, packed or not; a part of one is a record like any other."""
    packed, each = received(bundle), bundles.singles(bundle)
    raw = packed[9]
    assert wire.num_in(raw) == bundle.rows
    assert bundles.sizes(raw) == tuple(map(len, bundle.frames))
    cuts = data.draw(st.sets(st.integers(1, bundle.rows)))
    edges = sorted({0, bundle.rows, *cuts})
    together: list[Record] = []
    for start, stop in itertools.pairwise(edges):
        part = bundles.some(packed, start, stop)
        assert wire.receive(bundles.part(raw, start, stop)) == [part]
        assert wire.num_in(part[9]) == stop - start
        assert bool(part[1] & Flag.BUNDLE) == (stop - start > 1)
        assert unpacked(part) == each[start:stop]
        together += unpacked(part)
    assert together == each
    assert [record for part in bundles.apart(packed) for record in unpacked(part)] == each


@given(any_bundle.filter(lambda bundle: bundle.rows > 1), st.data())
def test_halves_of_a_bundle_are_bundles(bundle: Record, data: st.DataObject) -> None:
    """Even of one, so that their answers are one record each."""
    first, others = bundles.split(bundle, num := data.draw(st.integers(1, bundle.rows - 1)))
    assert (first.rows, others.rows) == (num, bundle.rows - num)
    assert first.flags & others.flags & Flag.BUNDLE
    assert bundles.singles(first) + bundles.singles(others) == bundles.singles(bundle)
    assert over_the_wire([first, others]) == [first, others]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, MAX_RECORDS), st.integers(0, 3000), st.booleans()), min_size=1, max_size=12))
def test_bundles_of_any_size_are_cut_into_messages_within_the_limits(sizes: list[tuple[int, int, bool]]) -> None:
    """What is in a bundle counts as if it came by itself; a bundle is never divided."""
    sent: list[Record] = []
    for num, size, is_alone in sizes:
        bodies = (bytes(min(size, wire.BUNDLE_BYTES // num)),) * num
        sent.append(Record(Kind.REQUEST, Flag.BUNDLE, rows=num, frames=bodies))
        sent += [Record(Kind.CANCEL)] * is_alone
    messages = wire.messages(sent)
    runs = [wire.decode(head) for (head,) in messages]
    assert [record for run in runs for record in run] == sent
    assert wire.pack([(each[9], ()) for (head,) in messages for each in wire.receive(head)]) == messages
    for (head,), run in zip(messages, runs, strict=True):
        assert sum(max(1, len(record.frames)) for record in run) <= MAX_RECORDS
        assert len(head) <= MAX_INLINE_BYTES


def test_the_largest_bundle_fills_a_message() -> None:
    """Header, lengths and bodies: not a byte more."""
    bodies = (bytes(wire.BUNDLE_BYTES - MAX_RECORDS + 1), *[b"x"] * (MAX_RECORDS - 1))
    largest = Record(Kind.REQUEST, Flag.BUNDLE, rows=MAX_RECORDS, frames=bodies)
    ((head,),) = wire.messages([largest])
    assert len(head) == MAX_INLINE_BYTES
    assert lengths([largest, largest, Record(Kind.CANCEL)]) == [1, 1, 1]


def test_a_message_holds_at_most_256_with_those_in_bundles() -> None:
    """Counted anew in each."""
    some = [Record(Kind.RESULT, Flag.BUNDLE, rows=num, frames=(b"",) * num) for num in (200, 100, 155, 256)]
    assert lengths([*some[:3], Record(Kind.CANCEL), *some[3:], Record(Kind.CANCEL)]) == [1, 3, 1, 1]


def packed_bundle(*bodies: bytes, lengths: list[int] | None = None, **fields: int) -> bytes:
    """One as a peer might send it; right but for what is said."""
    lengths = list(map(len, bodies)) if lengths is None else lengths
    body = struct.pack(f"<{len(lengths)}I", *lengths) + b"".join(bodies)
    return a_header(**{"flags": Flag.BUNDLE, "rows": len(lengths), "length": len(body)} | fields) + body


@pytest.mark.parametrize(
    "head",
    [
        packed_bundle(b""),
        packed_bundle(*[b"x"] * MAX_RECORDS),
        packed_bundle(*[b""] * 200) + packed_bundle(*[b""] * 55) + a_header(),
        packed_bundle(b"a", b"b", flags=Flag.BUNDLE | Flag.NO_RETRY),
        packed_bundle(b"a", b"b", request_id=U64 - 1, ticket=U64 - 1),
        packed_bundle(b"a", b"b", kind=Kind.RESULT, deadline_ns=-1),
    ],
    ids=["of one", "256", "256 in all", "run once", "the last numbers", "times of a batch"],
)
def test_what_a_bundle_may_be(head: bytes) -> None:
    """The limits themselves are allowed."""
    assert wire.messages(wire.decode(head)) == [[head]]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (packed_bundle(), "0 rows"),
        (packed_bundle(b"x", rows=0), "0 rows"),
        (packed_bundle(*[b""] * 257), "a bundle of 257"),
        (packed_bundle(b"x", rows=U16), "a bundle of 65535"),
        (packed_bundle(rows=1), "a bundle of 1"),
        (packed_bundle(b"ab", lengths=[2, 0], rows=3), "a bundle of 3"),
        (packed_bundle(b"ab", b"c", lengths=[2, 2]), "2 bodies do not fill its 11 bytes"),
        (packed_bundle(b"ab", b"c", lengths=[2, 0]), "2 bodies do not fill"),
        (packed_bundle(b"abcd", lengths=[4, U32]), "2 bodies do not fill"),
        (packed_bundle(lengths=[U32] * 256), "256 bodies do not fill"),
        (packed_bundle(b"a", length=6), "a body of 6 bytes where 5 are left"),
        (packed_bundle(b"a", length=4), "1 bodies do not fill its 4 bytes"),
        (packed_bundle(b"a", owns=1), "1 frames"),
        (packed_bundle(b"a", b"b", request_id=U64), f"a bundle of 2 from request {U64}"),
        (packed_bundle(b"a", b"b", ticket=U64), f"ticket {U64}"),
        (packed_bundle(*[b""] * 200) + packed_bundle(*[b""] * 57), "257 records"),
        (packed_bundle(*[b""] * 256) + a_header(), "257 records"),
        (a_header(kind=Kind.CANCEL) + packed_bundle(*[b""] * 256), "257 records"),
    ],
)
def test_what_no_bundle_may_be_is_refused_with_the_rule(head: bytes, reason: str) -> None:
    """Whether it is opened or passed on."""
    for read in (wire.decode, wire.receive):
        with pytest.raises(RemoteProtocolError, match=reason):
            read(head, [b""] if "1 frames" in reason else ())


@pytest.mark.parametrize("kind", sorted(wire.KINDS - wire.BUNDLED))
def test_only_requests_and_results_are_bundled(kind: int) -> None:
    """What else there is concerns one request, or none."""
    with pytest.raises(RemoteProtocolError, match=f"kind {kind}"):
        wire.decode(packed_bundle(b"a", b"b", kind=kind))


@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.RESULT])
@pytest.mark.parametrize("flag", [1 << bit for bit in range(16) if not 1 << bit & wire.BUNDLED_FLAGS])
def test_a_bundle_has_no_other_flags_than_those_that_hold_for_all(kind: int, flag: int) -> None:
    """Not even one that only a newer version knows: it might tell the requests apart."""
    with pytest.raises(RemoteProtocolError, match=f"flags {flag | Flag.BUNDLE}"):
        wire.decode(packed_bundle(b"a", b"b", kind=kind, flags=flag | Flag.BUNDLE))


# --- what breaks the rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "0 records"),
        (b"\x01\x03", "a header of 2 bytes"),
        (a_header() + b"\x01", "a header of 1 bytes"),
        (a_header(version=2), "version 2"),
        (a_header(kind=0), "unknown kind 0"),
        (a_header(kind=99), "unknown kind 99"),
        (a_header(priority=3), "unknown priority 3"),
        (a_header(rows=0), "0 rows"),
        (a_header(length=U32), "a body of 4294967295 bytes where 0 are left"),
        (a_header(length=2) + b"x", "a body of 2 bytes where 1 are left"),
        (a_header() * 257, "257 records"),
        (a_header(owns=1), "0 frames follow records that own 1"),
    ],
)
def test_what_breaks_the_rules_is_refused_with_the_rule(head: bytes, reason: str) -> None:
    """The message says what was wrong, so that a peer's author can mend it."""
    with pytest.raises(RemoteProtocolError, match=reason):
        wire.decode(head)


@pytest.mark.parametrize(("owned", "there"), [(1, 0), (1, 2), (0, 1), (65, 65), (U16, 0)])
def test_records_must_own_exactly_the_frames_that_follow(owned: int, there: int) -> None:
    """Neither a missing frame nor one that nobody owns is passed over, nor more than 64."""
    with pytest.raises(RemoteProtocolError, match="frames follow"):
        wire.decode(a_header(owns=owned), [b""] * there)


@given(st.integers(0, U32), st.integers(0, U32))
def test_a_ticket_tells_its_epoch(epoch: int, counter: int) -> None:
    """It fits the header, and its counter cannot reach into the epoch."""
    ticket = wire.make_ticket(epoch, counter)
    assert wire.ticket_epoch(ticket) == epoch
    assert ticket & U32 == counter
    assert struct.pack("<Q", ticket)
    assert wire.make_ticket(epoch, counter + 2**32) == ticket


def test_tickets_of_an_epoch_follow_each_other() -> None:
    """From the counter 1; a bundle takes as many as it has requests."""
    tickets = wire.Tickets(7)
    taken = [tickets.take(num) for num in (1, 1, 5, 256, 1)]
    assert taken == [wire.make_ticket(7, counter) for counter in (1, 2, 3, 8, 264)]
    assert tickets.take() == wire.make_ticket(7, 265)


def test_behind_the_last_ticket_comes_the_first() -> None:
    """Those of one bundle follow one another there, too: it takes them all from the start where they do not fit."""
    first, last = wire.make_ticket(7, 1), wire.make_ticket(7, U32)
    tickets = wire.Tickets(7)
    tickets.take(U32 - 2)
    assert (tickets.take(2), tickets.take()) == (last - 1, first)
    tickets = wire.Tickets(7)
    tickets.take(U32 - 2)
    assert (tickets.take(3), tickets.take()) == (first, first + 3)


@given(st.integers(0, U32), st.lists(st.integers(1, 256) | st.integers(1, U32), max_size=30))
def test_a_ticket_is_never_of_another_epoch_nor_none(epoch: int, nums: list[int]) -> None:
    """Neither the first of a bundle nor the last."""
    tickets = wire.Tickets(epoch)
    for num in nums:
        first = tickets.take(num)
        assert wire.ticket_epoch(first) == wire.ticket_epoch(first + num - 1) == epoch
        assert first & U32


def test_a_map_is_read_with_the_fields_it_must_have() -> None:
    """What a newer version adds is left out."""
    body = wire.write_map(session=b"x" * 16, sdk="9.9", window=0, mood="bright")
    assert wire.read_map(body, wire.HELLO_FIELDS) == {"session": b"x" * 16, "sdk": "9.9", "window": 0}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        payload.encode([])[0],
        wire.write_map(session=b"x"),
        wire.write_map(session="text", sdk="1", window=0),
        wire.write_map(session=b"x", sdk=None, window=0),
        wire.write_map(session=b"x", sdk="1", window=0) + b"\x00",
        b"\x81\xa3sdk\xa1\xff",
    ],
)
def test_a_body_that_is_no_such_map_is_the_peers_mistake(body: bytes) -> None:
    """Not msgpack, not a map, a field missing or of another type."""
    with pytest.raises(RemoteProtocolError):
        wire.read_map(body, wire.HELLO_FIELDS)


def test_true_is_not_a_number_on_the_wire() -> None:
    """Python counts bools as ints; a peer in another language does not."""
    body = wire.write_map(replica="r0", generation=True, model="m", max_batch_size=1)
    with pytest.raises(RemoteProtocolError, match="generation"):
        wire.read_map(body, wire.READY_FIELDS)


def test_an_error_record_is_the_final_answer_of_its_request() -> None:
    """Its body is the map that clients read."""
    record = wire.error_record(7, "overloaded", "the queue is full", 0.25, ticket=9)
    assert (record.kind, record.request_id, record.ticket) == (Kind.ERROR, 7, 9)
    assert record.kind in wire.FINAL
    fields = wire.read_map(record.body, wire.ERROR_FIELDS)
    assert fields == {"code": "overloaded", "message": "the queue is full", "retry_after_s": 0.25}


# --- a million byte strings ----------------------------------------------------------------------------------------


def mutations(originals: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Mutated originals: bytes changed, cut off, doubled, joined, and now and then nothing but noise."""
    rng = random.Random(seed)
    uniform, randbytes = rng.random, rng.randbytes
    for i in range(count):
        data = bytearray(originals[i % len(originals)])
        dice = uniform()
        if dice < 0.6:
            for _ in range(1 + int(uniform() * 3)):
                data[int(uniform() * len(data))] = int(uniform() * 256)
        elif dice < 0.75:
            del data[int(uniform() * len(data)) :]
        elif dice < 0.9:
            at = int(uniform() * len(data))
            data[at:at] = data[: int(uniform() * 16)]
        else:
            data = bytearray(randbytes(int(uniform() * 64)))
        yield bytes(data)


def test_any_bytes_are_records_or_a_remote_protocol_error() -> None:
    """Nothing else is ever raised, whatever a peer sends, and what is accepted can be sent on."""
    body = wire.write_map(replica="r0", generation=1, model="m", max_batch_size=8)
    originals = [
        wire.pack_head([Record(Kind.REQUEST, request_id=1, body=b"\x93\x01\x02\x03")]),
        wire.pack_head([Record(Kind.READY, body=body)]),
        wire.pack_head([Record(Kind.CANCEL, request_id=5), Record(Kind.RESULT, ticket=3, body=b"x")]),
        wire.pack_head([Record(Kind.PART, ticket=7, frames=(b"a",)), Record(Kind.END, ticket=7)]),
        packed_bundle(b"\x01", b"", b"\x93\x01\x02\x03", request_id=5),
        packed_bundle(b"x", b"y", kind=Kind.RESULT, ticket=3) + a_header(),
    ]
    frames = [b"a"]
    decode, accepted, num_bundles = wire.decode, 0, 0
    for i, data in enumerate(mutations(originals, NUM_MESSAGES, seed=1)):
        its = frames if i % 6 == 3 else []
        try:
            found = decode(data, its)
        except RemoteProtocolError:
            continue
        accepted += 1
        if i % 6 > 3:
            num_bundles += bool(found[0].flags & Flag.BUNDLE)
        if accepted % 16 == 0:
            assert wire.messages(found) == [[data, *its]]
            assert wire.pack([(each[9], each[10]) for each in wire.receive(data, its)]) == [[data, *its]]
    assert 100_000 < accepted < NUM_MESSAGES - 100_000, "both outcomes are common, or this test tells little"
    assert 20_000 < num_bundles < NUM_MESSAGES // 3 - 20_000


def test_any_bytes_are_a_payload_or_a_map_or_a_remote_protocol_error() -> None:
    """What records hold is read as carefully as the records."""
    originals = [
        payload.encode(tree)[0]
        for tree in (
            [1, "two", 3.0, b"four", None, True],
            {"a": (1, (2, ())), 5: [2**70]},
            np.arange(3, dtype="<i2"),
            [np.float32(1.5), np.zeros((), "M8[s]")],
            np.zeros(2, [("x", "<f4"), ("y", "S3")]),
        )
    ]
    originals.append(wire.write_map(code="lost", message="gone", retry_after_s=0.5))
    outcomes = [0, 0]
    for i, data in enumerate(mutations(originals, NUM_BODIES, seed=2)):
        try:
            if i % 6 == 5:
                wire.read_map(data, wire.ERROR_FIELDS)
            else:
                payload.decode(data)
        except RemoteProtocolError:
            outcomes[0] += 1
        else:
            outcomes[1] += 1
    assert min(outcomes) > 10_000


def test_no_message_makes_its_reader_allocate_more_than_it_received() -> None:
    """A length is compared with what is there before anything is made of that length."""
    heads = [a_header(length=U32), a_header(length=I64 >> 32, owns=U16), a_header(owns=U16) * 300, a_header() * 257]
    heads += [packed_bundle(lengths=[U32] * 256), packed_bundle(b"x", rows=U16), packed_bundle(*[b""] * 256) * 50]
    body = wire.write_map(session=b"x", sdk="1", window=0)
    tracemalloc.start()
    try:
        for head in heads:
            with pytest.raises(RemoteProtocolError):
                wire.decode(head)
        for first in (b"\xdf", b"\xdd", b"\xdb", b"\xc6", b"\xc9"):  # map, array, str, bin, ext of 2**32 - 1
            with pytest.raises(RemoteProtocolError):
                wire.read_map(first + b"\xff\xff\xff\xff" + body, wire.HELLO_FIELDS)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000, "300 records of Python objects, and nothing of 4 GiB"
