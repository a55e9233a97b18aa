"""The ledger: short histories of bundles, of which each request has its own end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import bundles, wire
from orch.wire import Flag, Kind, Packed, Priority, Record
from orch_balancer.admission import NS, Limits
from orch_balancer.entry import Entry, Session
from orch_balancer.pool import Worker
from orch_balancer.router import MAX_EXPIRED, Router
from orch_balancer.verdict import Cause
from tests.unit.ledger import check

CRASH = Cause("died of SIGSEGV")
NOW = 100.0


def received(*records: Record) -> list[Packed]:
    """What the balancer reads of these."""
    return [packed for head, *frames in wire.messages(records) for packed in wire.receive(head, frames)]


def read(packed: Packed) -> list[tuple[int, bytes]]:
    """What a client reads of an answer: the numbers of its requests, and the bodies."""
    (record,) = wire.decode(packed[9], packed[10])
    singles = bundles.singles(record) if record.flags & Flag.BUNDLE else [record]
    return [(one.request_id, one.body) for one in singles]


class House:
    """A router with one client and one worker; each step checks its invariants."""

    def __init__(self, max_batch_size: int = 8, **limits: int) -> None:
        wanted: dict[str, Any] = {"queue": 100, "num_bytes": 1 << 20, "per_client": 100, "max_attempts": 2}
        self.router = Router(["m"], Limits(**(wanted | limits)), epoch=7)
        self.max_batch_size = max_batch_size
        self.num_workers = 0
        self.client = self.router.hello(b"c" * 16, b"route")
        self.worker = self.opens()

    def opens(self) -> Worker:
        self.num_workers += 1
        name = f"w{self.num_workers}"
        worker = self.router.open(name, 1, name.encode(), "m", self.max_batch_size, NOW)
        assert worker is not None
        self.worker = worker
        return worker

    def asks(
        self, *request_ids: int, flags: int = 0, priority: int = Priority.NORMAL, at: float = 0.0, apart: bool = False
    ) -> list[int]:
        """In one bundle: those that were refused. Each body is as long as its number says. at: their deadline."""
        bodies = tuple(b"%d" % each * each for each in request_ids)
        fields = (Kind.REQUEST, flags | Flag.BUNDLE, priority, 0, 0, request_ids[0], 0, int(at * NS))
        record = Record(*fields, rows=len(bodies), frames=bodies)
        records = bundles.singles(record) if apart else [record]
        refused = self.router.admit(self.client, received(*records), NOW)
        check(self.router)
        return [each.request_id for each in refused]

    def expires(self, at: float) -> list[int]:
        """What ends as its deadline has passed; its client hears nothing else."""
        ended = self.router.expire(at)
        check(self.router)
        codes = {wire.read_map(record.body, wire.ERROR_FIELDS)["code"] for _, record in ended}
        assert codes <= {"deadline"}
        assert all(session is self.client for session, _ in ended)
        return [record.request_id for _, record in ended]

    def dispatch(self) -> list[list[int]]:
        """The requests of each line that a worker is given."""
        made = self.router.dispatch(NOW)
        check(self.router)
        return [entry.open_ids() for _, entries in made for entry in entries]

    def ticket(self, request_id: int) -> int:
        entry = self.client.entries[request_id]
        return entry.ticket + request_id - entry.request_id

    def answers(self, *request_ids: int, ticket: int | None = None) -> list[tuple[int, bytes]]:
        """In one bundle, which begins with that ticket: what the client is told."""
        bodies = tuple(b"answer %d" % each for each in request_ids)
        ticket = self.ticket(request_ids[0]) if ticket is None else ticket
        record = Record(
            Kind.RESULT, Flag.BUNDLE, request_id=request_ids[0], ticket=ticket, rows=len(bodies), frames=bodies
        )
        found = self.router.answers(self.worker, received(record), NOW)
        check(self.router)
        return [answer for _, packed in found for answer in read(packed)]

    def cancels(self, request_id: int) -> Entry | None:
        entry = self.router.cancel(self.client, request_id)
        check(self.router)
        return entry

    def dies(self, *running: int, at: float = NOW) -> dict[int, str]:
        """Error codes by request; running: those that the model had."""
        tickets = [self.ticket(each) for each in running]
        ended = self.router.lost(self.worker, CRASH, tickets, at)
        check(self.router)
        return {record.request_id: wire.read_map(record.body, wire.ERROR_FIELDS)["code"] for _, record in ended}


def told(*request_ids: int) -> list[tuple[int, bytes]]:
    """Answers as they should be."""
    return [(each, b"answer %d" % each) for each in request_ids]


def is_empty(router: Router) -> bool:
    """Nothing is left of what was asked."""
    return not (router.num_entries or router.num_bytes or router.num_queued or router.num_outstanding)


def test_a_bundle_travels_as_one_both_ways() -> None:
    """One line in the ledger, one record for the worker and one for the client."""
    house = House()
    assert house.asks(1, 2, 3) == []
    assert (house.router.num_entries, house.router.num_queued, house.router.counts.admitted) == (3, 3, 3)
    assert house.router.num_bytes == 1 + 2 + 3
    assert house.dispatch() == [[1, 2, 3]]
    assert house.answers(1, 2, 3) == told(1, 2, 3)
    assert house.router.counts.answered == 3
    assert is_empty(house.router)


def test_a_bundle_may_be_answered_in_parts_and_in_any_order() -> None:
    """Each request once: what is answered a second time is late."""
    house = House()
    house.asks(1, 2, 3, 4, 5)
    house.dispatch()
    first = house.ticket(1)
    assert house.answers(4, 5) == told(4, 5)
    assert house.answers(2) == told(2)
    assert house.answers(1, 2, 3, 4, ticket=first) == told(1, 3)
    assert house.answers(1, 2, ticket=first) == []
    assert house.router.counts.late == 2 + 2
    assert is_empty(house.router)


def test_a_message_may_answer_a_request_twice() -> None:
    """The first counts, wherever the second is."""
    house = House()
    house.asks(1, 2, 3)
    house.dispatch()
    ticket = house.ticket(1)
    twice = [
        Record(Kind.RESULT, request_id=2, ticket=ticket + 1, body=b"first"),
        Record(Kind.RESULT, Flag.BUNDLE, request_id=1, ticket=ticket, rows=2, frames=(b"a", b"b")),
        Record(Kind.RESULT, Flag.BUNDLE, request_id=1, ticket=ticket, rows=3, frames=(b"d", b"e", b"f")),
    ]
    found = house.router.answers(house.worker, received(*twice), NOW)
    assert [answer for _, packed in found for answer in read(packed)] == [(2, b"first"), (1, b"a"), (3, b"f")]
    check(house.router)
    assert house.router.counts.late == 3
    assert is_empty(house.router)


def test_an_error_of_one_leaves_the_others_alone() -> None:
    """A model may fail a single input."""
    house = House()
    house.asks(1, 2, 3)
    house.dispatch()
    error = wire.error_record(2, "model", "no", ticket=house.ticket(2))
    ((entry, packed),) = house.router.answers(house.worker, received(error), NOW)
    assert (entry.session, packed[0], packed[5]) == (house.client, Kind.ERROR, 2)
    assert (house.router.counts.failed, house.router.num_outstanding) == (1, 2)
    assert house.answers(3) == told(3)
    assert house.answers(1) == told(1)
    assert is_empty(house.router)


def test_answers_may_span_bundles() -> None:
    """What two lines had, one record may answer."""
    house = House()
    house.asks(1, 2)
    house.asks(3, 4, 5)
    assert house.dispatch() == [[1, 2], [3, 4, 5]]
    assert house.answers(1, 2, 3, 4) == told(1, 2, 3, 4)
    assert house.answers(5) == told(5)
    assert is_empty(house.router)


def test_one_of_a_bundle_is_cancelled_while_it_waits() -> None:
    """The others go without it; nobody is to be flagged."""
    house = House()
    house.asks(1, 2, 3, 4)
    assert house.cancels(3) is None
    assert (house.router.num_queued, house.router.num_bytes) == (3, 1 + 2 + 4)
    assert house.dispatch() == [[1, 2], [4]]
    assert house.answers(1, 2) == told(1, 2)
    assert house.answers(4) == told(4)
    assert house.router.counts.cancelled == 1
    assert is_empty(house.router)


def test_all_of_a_bundle_are_cancelled_one_by_one_while_it_waits() -> None:
    """Nothing is left to give to anybody."""
    house = House()
    house.asks(1, 2, 3)
    for each in (2, 1, 3):
        house.cancels(each)
    assert is_empty(house.router)
    assert house.dispatch() == []


def test_one_of_a_bundle_is_cancelled_while_it_runs() -> None:
    """Only its ticket is flagged, and its slot is its worker's until it answers."""
    house = House()
    house.asks(1, 2, 3)
    house.dispatch()
    tickets = [house.ticket(each) for each in (1, 2, 3)]
    flagged = house.cancels(2)
    assert flagged is not None
    assert list(flagged.tickets) == [tickets[1]]
    assert house.worker.rows == 3
    assert house.answers(1, 2, 3) == told(1, 3)
    assert house.worker.rows == 0
    assert is_empty(house.router)


def test_the_last_of_a_bundle_is_cancelled_while_it_runs() -> None:
    """The others were answered, and cancelled."""
    house = House()
    house.asks(1, 2, 3)
    house.dispatch()
    ticket = house.ticket(2)
    house.answers(1)
    house.cancels(3)
    flagged = house.cancels(2)
    assert flagged is not None
    assert ticket in flagged.tickets
    assert house.router.num_entries == 0
    assert house.answers(2, 3, ticket=ticket) == []
    assert is_empty(house.router)


def test_a_client_leaves_with_bundles_that_wait_and_run() -> None:
    """All of what runs is flagged once."""
    house = House(max_batch_size=3)
    house.asks(1, 2, 3, 4, 5)
    assert house.dispatch() == [[1, 2, 3]]
    first = house.ticket(1)
    house.answers(2)
    (running,) = house.router.leave(house.client)
    assert {first, first + 2} <= set(running.tickets)
    check(house.router)
    assert house.router.counts.cancelled == 4
    house.answers(1, 2, 3, ticket=first)
    assert is_empty(house.router)


def test_what_a_dead_worker_had_not_answered_of_a_bundle_runs_again_in_order() -> None:
    """Those that ran as suspects, the others ahead of what waited."""
    house = House(max_batch_size=4)
    house.asks(*range(1, 7))
    assert house.dispatch() == [[1, 2, 3, 4]]
    house.answers(2)
    assert house.dies(3) == {}
    assert house.router.counts.retried == 3
    house.opens()
    assert house.dispatch() == [[3]]
    assert house.answers(3) == told(3)
    assert house.dispatch() == [[1], [4], [5, 6]]
    assert house.answers(4) == told(4)
    assert house.answers(5, 6) == told(5, 6)
    assert house.answers(1) == told(1)
    assert is_empty(house.router)


def test_of_a_bundle_that_may_not_be_retried_each_unanswered_request_is_lost() -> None:
    """With an error of its own."""
    house = House()
    house.asks(1, 2, 3, flags=Flag.NO_RETRY)
    house.dispatch()
    house.answers(2)
    assert house.dies() == {1: "lost", 3: "lost"}
    assert is_empty(house.router)


def test_limits_refuse_the_part_of_a_bundle_that_is_too_much() -> None:
    """As if its requests had come one by one."""
    assert House(per_client=3).asks(1, 2, 3, 4) == [4]
    assert House(queue=2).asks(1, 2, 3) == [3]
    house = House(num_bytes=6)
    assert house.asks(1, 2, 3, 4) == [4]
    assert house.dispatch() == [[1], [2], [3]]
    stopping = House()
    stopping.router.admitting = False
    assert stopping.asks(1, 2) == [1, 2]


def test_of_a_bundle_that_is_sent_again_only_what_is_not_there_is_taken() -> None:
    """Also where a part of it was answered: a client that sends it again has not seen the answer."""
    house = House()
    house.asks(1, 2, 3)
    assert house.asks(2, 3, 4) == []
    assert house.router.num_entries == 4
    assert house.dispatch() == [[1, 2, 3], [4]]
    house.answers(1)
    assert house.asks(1, 2) == []
    assert house.dispatch() == []
    assert house.answers(2, 3, 4) == told(2, 3, 4)
    assert house.dispatch() == [[1]]


def test_a_result_may_be_of_any_size_where_results_are_large() -> None:
    """Then a bundle is taken apart, for each may have its own memory."""
    house = House()
    house.client.maps = True
    for _ in range(10):
        house.router.pools[0].results.observe(1 << 20)
    house.asks(1, 2, 3)
    assert house.dispatch() == [[1], [2], [3]]
    assert house.answers(1, 2, 3) == told(1, 2, 3)
    assert is_empty(house.router)


def test_two_clients_bundles_are_two_lines() -> None:
    """Whose requests may have the same numbers."""
    house = House()
    house.asks(1, 2)
    first: Session = house.client
    house.client = house.router.hello(b"d" * 16, b"other")
    house.asks(1, 2)
    assert house.dispatch() == [[1, 2], [1, 2]]
    assert house.answers(1, 2) == told(1, 2)
    assert sorted(first.entries) == [1, 2]
    assert house.router.num_outstanding == 2


def test_what_is_held_for_cancelled_requests_stays_in_proportion_to_what_is_counted() -> None:
    """A limit on bytes would be none if a client could cancel all but an empty one of each bundle."""
    house = House()
    house.asks(*range(1, 33))
    for request_id in range(32, 1, -1):
        assert house.router.cancel(house.client, request_id) is None
        check(house.router)
    (entry,) = house.client.entries.values()
    assert (entry.num, entry.num_bytes) == (1, len(b"1"))
    assert len(entry.raw) < wire.HEADER_BYTES + 32 * 4 + 8
    assert house.dispatch() == [[1]]
    assert house.answers(1) == [(1, b"answer 1")]


def test_a_client_that_leaves_names_only_tickets_that_are_not_answered() -> None:
    """The page where its workers read them has room for the last few hundred."""
    house = House()
    house.asks(*range(1, 7))
    house.dispatch()
    house.answers(1, 2)
    (running,) = house.router.leave(house.client)
    assert [ticket & 0xFFFFFFFF for ticket in running.tickets] == [3, 4, 5, 6]


# --- deadlines -----------------------------------------------------------------------------------------------------

LATE, LATER = NOW + 1, NOW + 2


def test_a_bundle_that_waits_too_long_ends_with_an_error_for_each() -> None:
    """Not before, not twice, and it never runs."""
    house = House()
    house.asks(1, 2, 3, at=LATE)
    assert house.expires(LATE - 0.001) == []
    assert house.expires(LATE) == [1, 2, 3]
    assert house.expires(LATER) == []
    assert house.router.counts.expired == 3
    assert house.dispatch() == []
    assert is_empty(house.router)


@pytest.mark.parametrize("gone", [(1,), (2, 3), (1, 2, 4)])
def test_what_was_cancelled_of_a_bundle_does_not_expire(gone: tuple[int, ...]) -> None:
    """The others do."""
    house = House()
    house.asks(1, 2, 3, 4, at=LATE)
    for each in gone:
        house.cancels(each)
    assert house.expires(LATE) == [each for each in (1, 2, 3, 4) if each not in gone]
    assert house.expires(LATER) == []
    assert is_empty(house.router)


def test_of_a_bundle_that_runs_in_part_the_rest_expires() -> None:
    """What runs is left to its client, and answered."""
    house = House(max_batch_size=2)
    house.asks(1, 2, 3, 4, 5, at=LATE)
    assert house.dispatch() == [[1, 2]]
    house.answers(1)
    house.cancels(4)
    assert house.expires(LATE) == [3, 5]
    assert house.answers(2) == told(2)
    assert house.expires(LATER) == []
    assert is_empty(house.router)


def test_a_bundle_that_a_large_one_was_halved_for_expires_whole() -> None:
    """Lines that were never asked for by themselves have its deadline too."""
    house = House(max_batch_size=1)
    house.asks(*range(1, 41), at=LATE)
    assert house.dispatch() == [[1]]
    assert house.answers(1) == told(1)
    assert house.dispatch() == [[2]]
    assert house.expires(LATE) == list(range(3, 41))
    assert house.answers(2) == told(2)
    assert is_empty(house.router)


def test_what_a_dead_worker_leaves_of_a_bundle_still_has_its_deadline() -> None:
    """Those that wait to run alone as well as those that go ahead of the line."""
    house = House(max_batch_size=4)
    house.asks(*range(1, 7), at=LATE)
    house.dispatch()
    house.answers(4)
    assert house.dies(2) == {}
    assert sorted(house.expires(LATE)) == [1, 2, 3, 5, 6]
    assert house.router.counts.expired == 5
    house.opens()
    assert house.dispatch() == []
    assert is_empty(house.router)


def test_what_a_dead_worker_leaves_of_a_bundle_too_late_ends_at_once() -> None:
    """It was due while it ran, and nobody will look at its deadline again."""
    house = House()
    house.asks(1, 2, 3, at=LATE)
    house.dispatch()
    house.answers(2)
    assert house.expires(LATE) == []
    assert house.dies(at=LATER) == {1: "deadline", 3: "deadline"}
    assert is_empty(house.router)


@pytest.mark.parametrize(("at", "ends"), [(0.0, []), (LATER, []), (LATE, [1, 2])])
def test_a_number_that_is_used_again_has_its_own_deadline(at: float, ends: list[int]) -> None:
    """A client that has lost the answers sends the same again; another may count as it likes."""
    house = House()
    house.asks(1, 2, at=LATE)
    house.cancels(2)
    house.dispatch()
    house.answers(1)
    house.asks(1, 2, at=at)
    assert house.expires(LATE) == ends
    assert house.expires(LATER) == ([1, 2] if at == LATER else [])


def test_a_crowd_of_bundles_is_ended_a_part_at_a_time() -> None:
    """The loop is kept no longer than by as many requests that came alone."""
    house = House(queue=10_000, per_client=10_000, num_bytes=1 << 30)
    for first in range(0, 4 * MAX_EXPIRED, 64):
        house.asks(*range(first, first + 64), at=LATE)
    for _ in range(4):
        assert len(house.expires(LATER)) == MAX_EXPIRED
    assert house.expires(LATER) == []
    assert is_empty(house.router)


@given(
    num=st.integers(1, 12),
    own=st.integers(0, 12),
    others=st.integers(0, 30),
    remaining=st.floats(0.05, 6.0),
    queue=st.integers(10, 60),
    priority=st.sampled_from(Priority),
)
def test_each_of_a_bundle_is_refused_early_as_if_it_had_come_alone(
    num: int, own: int, others: int, remaining: float, queue: int, priority: int
) -> None:
    """Behind its own, others' and those in the bundle before it."""
    refused = []
    for apart in (False, True):
        house = House(max_batch_size=1, queue=queue)
        house.asks(1000)
        house.dispatch()
        client = house.client
        for name, waiting in ((b"d", others), (b"e", others // 3), (b"c", own)):
            house.client = house.router.hello(name * 16, b"route")
            if waiting:
                house.asks(*range(100, 100 + waiting))
        assert house.client is client
        speed = house.router.pools[0].speed
        speed.rows_per_s, speed.batch_s = 10.0, 0.05
        refused.append(house.asks(*range(1, 1 + num), at=NOW + remaining, priority=priority, apart=apart))
    assert refused[0] == refused[1]


def test_a_bundle_whose_last_may_be_too_late_is_taken_in_part() -> None:
    """Those of it that are in time are not worse off for having come with it."""
    house = House(max_batch_size=1)
    house.asks(100)
    house.dispatch()
    speed = house.router.pools[0].speed
    speed.rows_per_s, speed.batch_s = 10.0, 0.05
    assert house.asks(1, 2, 3, 4, 5, at=NOW + 0.3) == [4, 5]
    assert house.asks(6, 7, at=NOW) == [6, 7]
