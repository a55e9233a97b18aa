"""The ledger: short histories of requests, workers and what becomes of both."""

from __future__ import annotations

import pytest

from orch import errors, wire
from orch.wire import Flag, Kind, Priority, Record, repacked
from orch_balancer.admission import NS, Limits
from orch_balancer.entry import Session
from orch_balancer.pool import Worker
from orch_balancer.router import MAX_EXPIRED, Assignment, Ended, Router
from orch_balancer.verdict import Cause
from tests.unit.ledger import check

CRASH = Cause("died of SIGSEGV")
KILLED = Cause("was killed (SIGKILL)", counts=True, convicts=False)
ORDERED = Cause("was stopped by orch", counts=False, convicts=False)

HIGH, NORMAL, LOW = Priority.HIGH, Priority.NORMAL, Priority.LOW

Given = list[tuple[str, list[int]]]


class House:
    """A router with clients and workers by name; each step checks its invariants and passes a millisecond."""

    def __init__(
        self,
        *workers: str,
        max_batch_size: int = 4,
        queue: int = 10_000,
        num_bytes: int = 1 << 30,
        per_client: int = 10_000,
        max_attempts: int = 3,
        models: tuple[str, ...] = ("m",),
    ) -> None:
        self.router = Router(models, Limits(queue, num_bytes, per_client, max_attempts), epoch=7)
        self.now = 100.0
        self.clients: dict[str, Session] = {}
        self.workers: dict[str, Worker] = {}
        for name in workers:
            self.opens(name, max_batch_size)

    def is_fast(self) -> House:
        """Its batches are known to be short: workers are given one ahead."""
        self.router.pools[0].speed.batch_s = 0.001
        return self

    def step(self) -> None:
        check(self.router)
        self.now += 0.001

    def client(self, name: str) -> Session:
        if name not in self.clients:
            self.clients[name] = self.router.hello(name.encode().ljust(16), b"route of " + name.encode())
        return self.clients[name]

    def opens(self, name: str, max_batch_size: int = 4, model: str = "m") -> Worker:
        worker = self.router.open(name, 1, name.encode(), model, max_batch_size, self.now)
        assert worker is not None
        self.workers[name] = worker
        self.step()
        return worker

    def asks(
        self,
        *request_ids: int,
        client: str = "a",
        flags: int = 0,
        priority: int = NORMAL,
        within: float | None = None,
        body: bytes = b"body",
        rows: int = 1,
        model: int = 0,
    ) -> list[Record | None]:
        """The refusal, or None, of each request."""
        deadline_ns = 0 if within is None else int((self.now + within) * NS)
        refusals: list[Record | None] = []
        for request_id in request_ids:
            request = Record(
                Kind.REQUEST, flags, priority, 0, model, request_id, 0, deadline_ns, rows, body, (b"frame",)
            )  # fmt: skip
            refused = self.router.admit(self.client(client), [repacked(request)], self.now)
            refusals.append(refused[0] if refused else None)
            self.step()
        return refusals

    def dispatch(self) -> Given:
        """Who is given which requests, one line per message."""
        given = self.assign()
        return [(worker.replica, [entry.request_id for entry in entries]) for worker, entries in given]

    def assign(self) -> list[Assignment]:
        made = self.router.dispatch(self.now)
        self.step()
        return made

    def tickets(self, name: str, *request_ids: int) -> list[int]:
        """Of the requests that a worker has; all, oldest first, where none is named."""
        held = self.workers[name].outstanding.items()
        return [ticket for ticket, entry in held if not request_ids or entry.request_id in request_ids]

    def answers(self, name: str, *request_ids: int, kind: int = Kind.RESULT) -> list[tuple[str, int]]:
        """Which clients get an answer to which of their requests."""
        records = [repacked(Record(kind, ticket=ticket)) for ticket in self.tickets(name, *request_ids)]
        found = self.router.answers(self.workers[name], records, self.now)
        self.step()
        return [(entry.session.id.decode().strip(), entry.request_id) for entry, _ in found]

    def dies(self, name: str, cause: Cause = CRASH, running: tuple[int, ...] | None = None) -> dict[int, str]:
        """Error codes of the requests that it ended, by id. running: request ids; None: all that it had."""
        tickets = self.tickets(name) if running is None else self.tickets(name, *running) if running else []
        ended = self.router.lost(self.workers.pop(name), cause, tickets, self.now)
        self.step()
        return {record.request_id: code(record) for _, record in ended}

    def expire(self) -> dict[int, str]:
        ended: list[Ended] = self.router.expire(self.now)
        self.step()
        return {record.request_id: code(record) for _, record in ended}


def code(record: Record | None) -> str:
    """Of an ERROR record; "" for none."""
    return "" if record is None else str(wire.read_map(record.body, wire.ERROR_FIELDS)["code"])


def message(record: Record | None) -> str:
    """What an ERROR record tells its reader."""
    assert record is not None
    return str(wire.read_map(record.body, wire.ERROR_FIELDS)["message"])


# --- who gets what -------------------------------------------------------------------------------------------------


def test_an_answer_reaches_the_client_that_asked() -> None:
    """Two clients may use the same number for different requests."""
    house = House("w0")
    house.asks(1, client="a")
    house.asks(1, client="b")
    house.dispatch()
    assert house.answers("w0") == [("a", 1), ("b", 1)]
    assert house.router.num_bytes == house.router.num_queued == house.router.num_outstanding == 0


def test_each_request_goes_to_the_worker_with_the_fewest_outstanding() -> None:
    """Whatever the order in which they came to be busy."""
    house = House("w0", "w1", "w2").is_fast()
    house.asks(1, 2, 3, 4)
    assert house.dispatch() == [("w0", [1, 2]), ("w1", [3]), ("w2", [4])]
    house.answers("w1")
    house.asks(5)
    assert house.dispatch() == [("w1", [5])]
    house.asks(6)
    assert house.dispatch() == [("w2", [6])], "1 outstanding, as w1, but idle for longer before"


def test_of_equals_the_longest_idle_is_chosen() -> None:
    """So work goes round, and no worker cools down."""
    house = House("w0", "w1", "w2")
    for expected in ("w0", "w1", "w2", "w0", "w1", "w2"):
        house.asks(1)
        assert house.dispatch() == [(expected, [1])]
        house.answers(expected)


def test_while_workers_idle_waiting_requests_are_shared_among_them() -> None:
    """Six requests for three idle workers are two each, not a batch for the first."""
    house = House("w0", "w1", "w2", max_batch_size=4)
    house.asks(*range(6))
    assert house.dispatch() == [("w0", [0, 1]), ("w1", [2, 3]), ("w2", [4, 5])]


def test_when_no_worker_idles_a_whole_batch_goes_in_one_message() -> None:
    """Spreading a few requests over many busy workers would undo batching."""
    house = House("w0", "w1", max_batch_size=4).is_fast()
    house.asks(0, 1)
    house.dispatch()
    house.asks(2, 3, 4, 5, 6)
    assert house.dispatch() == [("w0", [2, 3, 4, 5]), ("w1", [6])]


def test_nothing_is_bound_behind_a_batch_that_runs_long() -> None:
    """However short the others are: it would wait there while another worker idles."""
    house = House("w0", "w1", max_batch_size=4).is_fast()
    house.asks(0)
    assert house.dispatch() == [("w0", [0])]
    house.now += 1.0
    house.asks(*range(1, 20))
    assert house.dispatch() == [("w1", [1, 2, 3, 4]), ("w1", [5, 6, 7, 8])]


def test_a_request_is_bound_only_when_a_worker_has_room() -> None:
    """A slow worker does not hoard: what waits goes to whoever is free first."""
    house = House("w0", "w1", max_batch_size=1)
    house.asks(1, 2, 3, 4)
    assert house.dispatch() == [("w0", [1]), ("w1", [2])]
    assert house.dispatch() == []
    house.now += 1.0  # batches this long are not worth working ahead for
    house.answers("w1")
    assert house.dispatch() == [("w1", [3])]
    assert house.router.num_queued == 1


def test_a_fast_worker_is_given_one_batch_ahead() -> None:
    """Its next batch is there when it has answered this one; with slow batches it would only wait in the pipe."""
    house = House("w0", max_batch_size=2)
    house.asks(*range(10))
    assert house.dispatch() == [("w0", [0, 1])]
    house.answers("w0")
    assert house.dispatch() == [("w0", [2, 3]), ("w0", [4, 5])]


def test_a_worker_that_has_become_slow_is_given_nothing_beyond_its_batch() -> None:
    """What was room under the old speed is none under the new."""
    house = House("w0", "w1", max_batch_size=2)
    house.asks(*range(4))
    house.dispatch()
    house.answers("w0")
    house.answers("w1")  # both fast: four slots each
    house.asks(*range(10, 14))
    house.dispatch()
    house.asks(14)
    assert house.dispatch() == [("w0", [14])]
    house.now += 10.0
    house.answers("w0")
    house.asks(15, 16, 17)
    assert house.dispatch() == [("w0", [15, 16])], "w1 has two rows, which is all that it may have now"


def test_nothing_waits_behind_a_stream_at_its_worker() -> None:
    """It lasts as long as its reader likes; other workers are there for the rest."""
    house = House("w0", max_batch_size=4)
    house.asks(1, flags=Flag.STREAM)
    house.asks(2, 3)
    assert house.dispatch() == [("w0", [1])]
    house.answers("w0", kind=Kind.PART)
    assert house.dispatch() == []
    house.answers("w0", kind=Kind.END)
    assert house.dispatch() == [("w0", [2, 3])]


def test_a_stream_and_the_rest_of_a_split_answer_say_nothing_of_a_batchs_time() -> None:
    """The one takes as long as its reader does, the other comes in no time."""
    house = House("w0", max_batch_size=4)
    house.asks(1, flags=Flag.STREAM)
    house.dispatch()
    house.now += 100.0
    house.answers("w0", kind=Kind.END)
    house.router.observe()
    speed = house.router.pools[0].speed
    assert speed.batch_s is None
    house.asks(2, 3)
    house.dispatch()
    house.now += 0.5
    records = [repacked(Record(Kind.RESULT, ticket=ticket)) for ticket in house.tickets("w0")]
    for record in records:
        house.router.answers(house.workers["w0"], [record], house.now)
    house.router.observe()
    assert speed.batch_s == pytest.approx(0.501)


def test_a_request_of_more_rows_than_a_batch_still_runs() -> None:
    """To a worker with any room, in a message of its own; what follows waits until it is done."""
    house = House("w0", max_batch_size=4).is_fast()
    house.asks(1)
    house.asks(2, rows=9)
    house.asks(3)
    assert house.dispatch() == [("w0", [1]), ("w0", [2])]
    house.now += 1.0
    house.answers("w0", 1)
    assert house.dispatch() == []
    house.answers("w0")
    assert house.dispatch() == [("w0", [3])]


def test_clients_take_turns() -> None:
    """A client that asks for one thing does not wait behind another's hundred."""
    house = House("w0", max_batch_size=1)
    house.asks(*range(100), client="greedy")
    house.asks(1000, client="modest")
    house.asks(2000, 2001, client="third")
    order = []
    for _ in range(6):
        order += house.dispatch()[0][1]
        house.now += 1.0
        house.answers("w0")
    assert order == [0, 1000, 2000, 1, 2001, 2]


def test_higher_priorities_run_first_and_every_sixteenth_turn_is_the_lowest() -> None:
    """A flood of urgent work slows the rest, and cannot stop it."""
    house = House("w0", max_batch_size=1)
    house.asks(*range(100, 140), client="b", priority=LOW)
    house.asks(*range(200, 240), client="a", priority=HIGH)
    house.asks(300, client="c")
    order = []
    for _ in range(46):
        order += house.dispatch()[0][1]
        house.now += 1.0
        house.answers("w0")
    assert order[:15] == list(range(200, 215))
    assert order[15] == 100
    assert order[31] == 101
    assert order[41:] == [239, 300, 102, 103, 104]


def test_each_model_has_its_own_workers_and_its_own_queue() -> None:
    """A request for one never reaches a worker of another."""
    house = House(models=("x", "y"))
    house.opens("x0", model="x")
    house.asks(1, model=1)
    assert house.dispatch() == []
    house.opens("y0", model="y")
    assert house.dispatch() == [("y0", [1])]


def test_a_model_that_is_not_served_is_refused_with_what_is() -> None:
    """The client's list of models may be an old one."""
    house = House("w0")
    (refusal,) = house.asks(1, model=3)
    assert code(refusal) == "no_such_model"
    assert "served here: m" in message(refusal)
    assert house.router.open("w9", 1, b"r", "other", 1, house.now) is None
    assert house.router.open("w0", 2, b"r", "m", 1, house.now) is None, "open already, and not yet lost"


# --- draining ------------------------------------------------------------------------------------------------------


def test_a_draining_worker_is_given_nothing_and_finishes_what_it_has() -> None:
    """Drained is when nothing is with it any more."""
    house = House("w0", "w1").is_fast()
    house.asks(1, 2)
    house.dispatch()
    house.router.drain(house.workers["w0"])
    house.step()
    house.asks(3, 4, 5)
    assert house.dispatch() == [("w1", [3, 4, 5])]
    assert house.answers("w0") == [("a", 1)]
    assert not house.workers["w0"].outstanding
    house.asks(6)
    assert house.dispatch() == [("w1", [6])]


def test_what_a_drained_worker_left_unfinished_runs_again_and_nobody_is_blamed() -> None:
    """A drain that takes too long ends with a kill of ours: it is no attempt, and makes no suspects."""
    house = House("w0", max_attempts=1)
    house.asks(1, 2)
    house.dispatch()
    assert house.dies("w0", ORDERED) == {}
    house.opens("w1")
    assert house.dispatch() == [("w1", [1, 2])]
    assert house.answers("w1") == [("a", 1), ("a", 2)]


# --- death, attempts and suspects ----------------------------------------------------------------------------------


def test_a_request_on_a_dead_worker_runs_again_on_another_ahead_of_what_waits() -> None:
    """It has waited its turn already; the order among those of one worker is kept."""
    house = House("w0", "w1", max_batch_size=2)
    house.asks(1, 2, 3, 4, 5)
    assert house.dispatch() == [("w0", [1, 2]), ("w1", [3, 4])]
    assert house.dies("w0", running=()) == {}
    house.now += 1.0
    house.answers("w1")
    assert house.dispatch() == [("w1", [1, 2])]
    assert house.router.counts.retried == 2


def test_a_request_that_loses_its_last_attempt_is_lost() -> None:
    """Three workers died with it; it never ran, so it is no suspect, and is not tried for ever."""
    house = House()
    house.asks(1)
    for name in ("w0", "w1"):
        house.opens(name)
        house.dispatch()
        assert house.dies(name, running=()) == {}
    house.opens("w2")
    house.dispatch()
    assert house.dies("w2", running=()) == {1: "lost"}
    assert house.router.num_bytes == 0


def test_a_request_that_may_not_be_retried_is_lost_at_once() -> None:
    """It may have run, and running it again could hurt."""
    house = House("w0", "w1")
    house.asks(1, flags=Flag.NO_RETRY)
    house.asks(2)
    house.dispatch()
    assert house.dies("w0") == {1: "lost"}


def test_a_stream_that_has_sent_parts_is_not_begun_again() -> None:
    """Its reader would see the beginning twice."""
    house = House("w0")
    house.asks(1, 2, flags=Flag.STREAM)
    house.dispatch()
    assert house.answers("w0", 1, kind=Kind.PART) == [("a", 1)]
    assert house.dies("w0", running=(1,)) == {1: "lost"}
    house.opens("w1")
    assert house.dispatch() == [("w1", [2])]


def test_parts_leave_a_request_where_it_is_until_its_end() -> None:
    """Only END is final, and it alone is counted as an answer."""
    house = House("w0")
    house.asks(1, flags=Flag.STREAM)
    house.dispatch()
    for _ in range(3):
        assert house.answers("w0", kind=Kind.PART) == [("a", 1)]
    assert house.router.num_outstanding == 1
    assert house.answers("w0", kind=Kind.END) == [("a", 1)]
    assert house.router.num_outstanding == 0
    assert house.router.counts.answered == house.router.answered_by["w0"] == 1


def a_batch_with_a_killer(house: House, size: int) -> None:
    """Requests 0 to size-1, of which 0 kills whatever runs it, in one batch of the first worker, which dies."""
    house.opens("w0", size)
    house.asks(*range(size))
    assert house.dispatch() == [("w0", list(range(size)))]
    assert house.dies("w0") == {}


def test_the_batch_mates_of_a_killer_are_not_convicted() -> None:
    """Sixty-three innocents run alone, once, and answer; only the killer is Poisoned, after running alone."""
    house = House()
    a_batch_with_a_killer(house, 64)
    answered: list[int] = []
    poisoned: dict[int, str] = {}
    deaths = 0
    for turn in range(1000):
        if len(house.workers) < 2:
            house.opens(f"x{turn}", 64)
        for worker, entries in house.assign():
            assert len(entries) == len(worker.outstanding) == 1, "a suspect runs alone"
            if entries[0].request_id == 0:
                poisoned |= house.dies(worker.replica)
                deaths += 1
        for name in list(house.workers):
            answered += [request_id for _, request_id in house.answers(name)]
        if not house.router.num_queued and not house.router.num_outstanding:
            break
    assert sorted(answered) == list(range(1, 64))
    assert poisoned == {0: "poisoned"}
    assert deaths == 1
    assert house.router.counts.poisoned == 1


def test_only_the_batch_that_ran_is_suspected_not_what_was_in_the_pipe() -> None:
    """What the worker had not begun cannot have killed it."""
    house = House("w0", max_batch_size=4)
    house.asks(1, 2, 3, 4)
    house.dispatch()
    house.dies("w0", running=(1, 2))
    house.opens("w1")
    house.opens("w2")
    assert house.dispatch() == [("w1", [1]), ("w2", [3, 4])]


def test_a_suspect_waits_for_a_worker_that_is_emptied_for_it() -> None:
    """The worker gets nothing new, finishes what it has, and only then runs the suspect, alone."""
    house = House("w0", "w1", max_batch_size=2)
    house.asks(1, 2)
    house.dispatch()
    house.dies("w0")
    house.asks(3)
    assert house.dispatch() == [], "w1 is being emptied; 3 finds nobody else"
    house.answers("w1", 2)
    assert house.dispatch() == [("w1", [1])]
    assert house.dispatch() == []
    assert house.answers("w1") == [("a", 1)]
    assert house.dispatch() == [("w1", [3])], "back to ordinary work"


def test_suspects_keep_at_most_half_of_the_workers() -> None:
    """Killers cannot stop the service for everyone else."""
    house = House("w0", max_batch_size=8)
    house.asks(*range(8))
    house.dispatch()
    house.dies("w0")
    for name in ("w1", "w2", "w3", "w4"):
        house.opens(name, 8)
    house.asks(100, 101)
    assert house.dispatch() == [("w1", [0]), ("w2", [1]), ("w3", [100]), ("w4", [101])]


def test_one_suspect_keeps_one_worker() -> None:
    """While that one is being emptied, the others go on, however many might be kept."""
    house = House("w0", "w1", "w2", "w3", "w4", max_batch_size=2).is_fast()
    house.asks(0, 1, 2, 3, 4)
    house.dispatch()
    house.dies("w0")
    house.asks(10, 11, 12)
    assert house.dispatch() == [("w2", [10, 11]), ("w3", [12])]
    house.answers("w1")
    assert house.dispatch() == [("w1", [0])]


def test_a_worker_that_has_run_a_suspect_serves_the_next_one() -> None:
    """No second worker is taken from ordinary work while one is free for the suspect."""
    house = House("w0", max_batch_size=2)
    house.asks(1, 2)
    house.dispatch()
    house.dies("w0")
    for name in ("w1", "w2", "w3"):
        house.opens(name, 2)
    assert house.dispatch() == [("w1", [1])], "one lane of three workers"
    house.opens("w4", 2)  # and now there may be two
    house.asks(10, 11, 12)
    house.answers("w1")
    assert house.dispatch() == [("w1", [2]), ("w2", [10]), ("w3", [11]), ("w4", [12])]


def test_a_suspect_that_survives_is_cleared() -> None:
    """Its answer is an answer like any other."""
    house = House("w0")
    house.asks(1)
    house.dispatch()
    house.dies("w0")
    house.opens("w1")
    house.dispatch()
    assert house.answers("w1") == [("a", 1)]
    assert house.router.counts.poisoned == 0


def test_a_kill_from_outside_convicts_only_at_the_last_attempt() -> None:
    """An operator, or the kernel's out-of-memory killer, may have meant the worker and not the request."""
    house = House("w0", max_attempts=3)
    house.asks(1)
    house.dispatch()
    assert house.dies("w0", KILLED) == {}
    house.opens("w1")
    house.dispatch()
    assert house.dies("w1", KILLED) == {}, "alone, but it was not proven"
    house.opens("w2")
    house.dispatch()
    assert house.dies("w2", KILLED) == {1: "poisoned"}


def test_a_crash_of_a_suspect_alone_convicts_before_the_last_attempt() -> None:
    """Twice is proof; a third worker is spared."""
    house = House("w0", max_attempts=3)
    house.asks(1)
    house.dispatch()
    assert house.dies("w0", CRASH) == {}
    house.opens("w1")
    house.dispatch()
    assert house.dies("w1", CRASH) == {1: "poisoned"}


def test_deaths_that_orch_ordered_neither_count_nor_convict() -> None:
    """A suspect that is interrupted again and again by restarts stays a suspect with its attempts."""
    house = House("w0", max_attempts=2)
    house.asks(1)
    house.dispatch()
    assert house.dies("w0", CRASH) == {}
    for turn in range(10):
        house.opens(f"x{turn}")
        assert house.dispatch() == [(f"x{turn}", [1])]
        assert house.dies(f"x{turn}", ORDERED) == {}
    house.opens("last")
    house.dispatch()
    assert house.dies("last", CRASH) == {1: "poisoned"}


def test_a_poisoned_request_says_where_and_why() -> None:
    """Its owner is told to change the input, with the evidence."""
    house = House("w0")
    house.asks(1)
    house.dispatch()
    house.dies("w0")
    house.opens("w1")
    house.dispatch()
    (ended,) = house.router.lost(house.workers["w1"], CRASH, house.tickets("w1"), house.now)
    assert "w1" in message(ended.record)
    assert "died of SIGSEGV" in message(ended.record)


def test_a_late_answer_counts_for_nothing() -> None:
    """A ticket is good once, from the worker that holds it, in its own epoch."""
    house = House("w0", "w1")
    house.asks(1, 2)
    house.dispatch()
    (ticket,) = house.tickets("w0")
    w0, w1 = house.workers["w0"], house.workers["w1"]
    assert wire.ticket_epoch(ticket) == 7
    elsewhen = wire.make_ticket(8, ticket & 0xFFFFFFFF)
    assert house.router.answers(w0, [repacked(Record(Kind.RESULT, ticket=elsewhen))], house.now) == []
    assert house.router.answers(w1, [repacked(Record(Kind.RESULT, ticket=ticket))], house.now) == []
    assert house.router.answers(w0, [repacked(Record(Kind.RESULT))], house.now) == []
    assert house.answers("w0") == [("a", 1)]
    assert house.router.answers(w0, [repacked(Record(Kind.RESULT, ticket=ticket))], house.now) == []
    assert house.router.counts.late == 4


# --- admission -----------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_with_a_hint_and_hurts_nobody() -> None:
    """Overloaded comes at once; what was accepted stays."""
    house = House("w0", max_batch_size=1, queue=2)
    house.asks(1)
    house.dispatch()
    refusals = house.asks(2, 3, 4)
    assert [code(refusal) for refusal in refusals] == ["", "", "overloaded"]
    assert "--queue-limit" in message(refusals[2])
    assert refusals[2] is not None
    assert wire.read_map(refusals[2].body, wire.ERROR_FIELDS)["retry_after_s"] > 0
    assert house.router.counts.rejected == 1
    assert house.answers("w0") == [("a", 1)]
    assert house.dispatch() == [("w0", [2]), ("w0", [3])]
    assert [code(refusal) for refusal in house.asks(4)] == [""]


def test_the_bytes_held_are_limited_and_one_request_alone_is_always_taken() -> None:
    """Whether queued or running: bytes are held until the answer."""
    house = House("w0", num_bytes=100)
    assert [code(refusal) for refusal in house.asks(1, body=bytes(500))] == [""]
    house.dispatch()
    (refusal,) = house.asks(2)
    assert code(refusal) == "overloaded"
    assert "--queue-bytes" in message(refusal)
    house.answers("w0")
    assert house.asks(2) == [None]


def test_one_client_cannot_take_the_whole_queue() -> None:
    """Its own limit is reached first."""
    house = House(queue=100, per_client=2)
    refusals = house.asks(1, 2, 3, client="greedy")
    assert [code(refusal) for refusal in refusals] == ["", "", "overloaded"]
    assert "--client-queue-limit" in message(refusals[2])
    assert house.asks(1, client="modest") == [None]


def test_what_was_accepted_once_is_accepted_again_even_by_a_full_queue() -> None:
    """After a balancer's death its clients bring back what it had; the limit per client still holds, doubled."""
    house = House(queue=1, per_client=2)
    house.asks(1, client="other")
    refusals = house.asks(1, 2, 3, 4, 5, flags=Flag.RESEND)
    assert [code(refusal) for refusal in refusals] == ["", "", "", "", "overloaded"]


def test_a_known_request_is_admitted_once_however_often_it_is_sent() -> None:
    """A client that reconnects to the same balancer gets one answer, on its new route."""
    house = House("w0")
    house.asks(1)
    house.dispatch()
    session = house.router.hello(house.client("a").id, b"new route")
    assert session is house.client("a")
    assert house.asks(1, 1, flags=Flag.RESEND) == [None, None]
    assert house.dispatch() == []
    assert house.router.counts.admitted == 1
    assert house.answers("w0") == [("a", 1)]
    assert session.route == b"new route"


def test_an_instance_that_shuts_down_admits_nothing_new() -> None:
    """It finishes what it has, and takes back what it had."""
    house = House("w0")
    house.asks(1)
    house.router.admitting = False
    (refusal,) = house.asks(2)
    assert code(refusal) == "overloaded"
    assert "shutting down" in message(refusal)
    assert house.asks(3, flags=Flag.RESEND) == [None]
    assert house.dispatch() == [("w0", [1, 3])]


# --- deadlines -----------------------------------------------------------------------------------------------------


def test_a_deadline_that_passes_in_the_queue_ends_the_request_unrun() -> None:
    """It is never dispatched afterwards."""
    house = House()
    house.asks(1, within=1.0)
    house.asks(2, within=5.0)
    house.asks(3)
    first = house.router.next_deadline()
    assert first is not None
    assert first == pytest.approx(101.0)
    assert house.expire() == {}
    house.now = first
    assert house.expire() == {1: "deadline"}
    assert house.router.next_deadline() == pytest.approx(105.001)
    house.opens("w0")
    assert house.dispatch() == [("w0", [2, 3])]
    house.now = 200.0
    assert house.expire() == {}, "what runs is left to its client"
    assert house.answers("w0") == [("a", 2), ("a", 3)]


def test_a_crowd_of_deadlines_is_ended_a_part_at_a_time() -> None:
    """So that it keeps nobody waiting; the rest is due at once, and never lost."""
    house = House()
    for request_id in range(MAX_EXPIRED + 1):
        house.asks(request_id, within=1.0)
    house.now = 200.0
    assert len(house.expire()) == MAX_EXPIRED
    due = house.router.next_deadline()
    assert due is not None
    assert due < house.now
    assert house.expire() == {MAX_EXPIRED: "deadline"}
    assert house.router.next_deadline() is None


def test_a_request_that_arrives_too_late_is_refused() -> None:
    """Its deadline passed on the way."""
    house = House("w0")
    assert [code(refusal) for refusal in house.asks(1, within=-0.5)] == ["deadline"]


def test_a_request_that_cannot_make_it_is_refused_early() -> None:
    """By what was learned of the model's speed: a caller who will give up anyway learns it at once."""
    house = House("w0", max_batch_size=1)
    house.asks(*range(20))
    for _ in range(10):
        house.dispatch()
        house.now += 0.1
        house.answers("w0", house.workers["w0"].outstanding[house.tickets("w0")[0]].request_id)
    house.dispatch()
    assert house.router.pools[0].speed.rows_per_s == pytest.approx(10, rel=0.05)
    (refusal,) = house.asks(100, within=0.5)
    assert code(refusal) == "deadline"
    assert "refused early" in message(refusal)
    assert house.asks(101, within=5.0) == [None]


def a_flooded_house() -> House:
    """Client a has 200 requests waiting, at 10 rows/s."""
    house = House("w0", max_batch_size=1)
    house.asks(*range(210))
    for _ in range(10):
        house.dispatch()
        house.now += 0.1
        house.answers("w0", house.workers["w0"].outstanding[house.tickets("w0")[0]].request_id)
    house.dispatch()
    return house


def test_a_client_beside_a_flooding_one_is_not_refused_for_what_the_other_has_waiting() -> None:
    """It would run next: what counts is its own line, turn by turn, and higher classes."""
    house = a_flooded_house()
    assert [code(refusal) for refusal in house.asks(1000, within=1.0)] == ["deadline"]
    assert house.asks(1, client="b", within=1.0) == [None]
    assert house.asks(1, client="c", within=1.0, priority=HIGH) == [None]
    assert house.asks(1001, within=1.0, priority=HIGH) == [None]
    (refusal,) = house.asks(2, client="b", within=1.0, priority=LOW)
    assert code(refusal) == "deadline"


def test_what_was_accepted_once_is_not_refused_early() -> None:
    """It is brought to a new balancer, and has its deadline still ahead."""
    house = a_flooded_house()
    assert house.asks(1000, within=1.0, flags=Flag.RESEND) == [None]


def test_nothing_is_refused_early_while_a_worker_idles() -> None:
    """Then it need not wait at all."""
    house = House("w0", max_batch_size=1)
    house.asks(*range(20))
    for _ in range(20):
        house.dispatch()
        house.now += 0.1
        house.answers("w0")
    assert house.asks(100, within=0.01) == [None]


def test_a_request_whose_deadline_passed_while_it_ran_is_not_run_again() -> None:
    """Its worker died too late for another try."""
    house = House("w0")
    house.asks(1, within=1.0)
    house.asks(2)
    house.dispatch()
    house.now += 2.0
    assert house.expire() == {}
    assert house.dies("w0") == {1: "deadline"}


def test_a_suspect_has_a_deadline_too() -> None:
    """Waiting to run alone is waiting."""
    house = House("w0")
    house.asks(1, within=1.0)
    house.dispatch()
    house.dies("w0")
    house.now += 2.0
    assert house.expire() == {1: "deadline"}
    assert house.router.num_queued == 0


# --- those who leave -----------------------------------------------------------------------------------------------


def test_a_cancelled_request_that_is_queued_never_runs() -> None:
    """Its payload is let go of at once."""
    house = House()
    house.asks(1, 2)
    assert house.router.cancel(house.client("a"), 1) is None
    house.step()
    assert house.router.cancel(house.client("a"), 99) is None, "unknown, or answered meanwhile"
    house.opens("w0")
    assert house.dispatch() == [("w0", [2])]


def test_a_cancelled_request_that_runs_keeps_its_slot_and_its_answer_is_dropped() -> None:
    """The worker is told through its page; what it says then is nobody's."""
    house = House("w0", max_batch_size=1)
    house.asks(1, 2)
    house.dispatch()
    entry = house.router.cancel(house.client("a"), 1)
    house.step()
    assert entry is not None
    assert entry.worker is house.workers["w0"]
    assert entry.ticket in entry.worker.outstanding
    assert house.dispatch() == [], "the worker is still busy with it"
    assert house.router.num_bytes == len(b"body" + b"frame")
    house.now += 1.0
    assert house.answers("w0") == []
    assert house.dispatch() == [("w0", [2])]


def test_a_cancelled_requests_number_may_be_used_again() -> None:
    """The old one's answer is not given for the new one."""
    house = House("w0").is_fast()
    house.asks(1)
    house.dispatch()
    old = house.tickets("w0")
    house.router.cancel(house.client("a"), 1)
    house.asks(1)
    house.dispatch()
    w0 = house.workers["w0"]
    assert house.router.answers(w0, [repacked(Record(Kind.RESULT, ticket=old[0]))], house.now) == []
    check(house.router)
    assert house.answers("w0") == [("a", 1)]


def test_a_client_that_leaves_takes_its_requests_with_it() -> None:
    """Queued ones are dropped; those that run are named, to be flagged; a worker's death brings none back."""
    house = House("w0", max_batch_size=1)
    house.asks(1, 2, client="a")
    house.asks(3, client="b")
    house.dispatch()
    running = house.router.leave(house.client("a"))
    house.step()
    assert [entry.request_id for entry in running] == [1]
    assert house.dies("w0") == {}
    house.opens("w1")
    assert house.dispatch() == [("w1", [3])]
    assert list(house.router.sessions) == [house.client("b").id]


def test_what_is_counted_adds_up() -> None:
    """Every admitted request ends in one of the ways that are counted."""
    house = House("w0", "w1", max_attempts=1)
    house.asks(1, 2, 3)
    house.asks(4, within=0.5)
    assert house.dispatch() == [("w0", [1, 2]), ("w1", [3, 4])]
    house.answers("w0", 1)
    house.dies("w0", CRASH)
    house.dies("w1", ORDERED)
    house.now += 1.0
    house.expire()
    house.router.cancel(house.client("a"), 3)
    counts = house.router.counts
    assert (counts.admitted, counts.retried) == (4, 2)
    assert (counts.answered, counts.lost, counts.expired, counts.cancelled) == (1, 1, 1, 1)


def test_every_refusal_is_an_error_that_clients_know() -> None:
    """Its code is in the tree of orch.errors."""
    house = House(queue=0)
    for refusal in (*house.asks(1), *house.asks(2, model=9), *house.asks(3, within=-1)):
        assert code(refusal) in errors.BY_CODE


def test_figures_hold_all_that_has_happened_whenever_they_are_looked_at() -> None:
    """Though they are entered when nobody waits."""
    house = House("r0")
    house.asks(1, 2, 3)
    house.dispatch()
    assert sum(house.router.figures.queue.counts) == 3
    house.answers("r0", 1, 2)
    assert sum(house.router.figures.total.counts) == 2
    house.router.observe()
    assert sum(house.router.figures.total.counts) == 2


def test_what_an_answer_tells_is_known_when_something_is_decided() -> None:
    """Though it is learned when nobody waits: here the next request comes before that, and then a worker's death."""
    house = House("r0", max_batch_size=1)
    house.asks(1, 2, 3)
    house.dispatch()
    house.answers("r0", 1)
    speed = house.router.pools[0].speed
    assert speed.batch_s is None
    house.asks(4)
    assert speed.batch_s == pytest.approx(0.001)
    assert house.dispatch() == [("r0", [2]), ("r0", [3])], "one ahead, as batches are short"
    house.answers("r0", 2)
    assert house.dies("r0") == {}
    assert house.router.answered_by == {"r0": 2}
    house.opens("r0", max_batch_size=1)
    assert house.router.pools[0].idle == {"r0": 1.0}
    assert house.dispatch() == [("r0", [3])], "the suspect runs alone"
