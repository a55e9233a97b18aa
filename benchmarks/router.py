"""What a request costs in the balancer without its sockets: the wire, the ledger and the outlets.

    python benchmarks/router.py [--records 1,20] [--repeats 9]

Prints microseconds per request of each step, the least of the repeats, for so many records in a message.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from orch import payload, wire
from orch.wire import Flag, Kind, Record
from orch_balancer.admission import Limits
from orch_balancer.outlet import Outlet
from orch_balancer.router import Router

BODY = payload.encode(b"0123456789abcdef" * 64)[0]
REQUESTS = 3_000  # of one repeat
TIMES = wire.pack_times(0.0, 1e-5)


class NoRoute:
    """Takes whatever is sent."""

    peer = None
    unsent_bytes = 0

    def send(self, _message: Sequence[Any]) -> bool:
        """It is gone."""
        return True

    def close(self) -> None:
        """There is nothing to end."""


class Steps:
    """Adds up the nanoseconds of named steps."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = defaultdict(int)
        self._since = 0

    def begin(self) -> None:
        """The next step starts now."""
        self._since = time.perf_counter_ns()

    def done(self, name: str) -> None:
        """A step ends and the next one starts."""
        now = time.perf_counter_ns()
        self.spent[name] += now - self._since
        self._since = now


def serve(num_records: int) -> dict[str, float]:
    """Microseconds per request, by step: one client, two workers, batches of up to 64."""
    router = Router(["m"], Limits(65_536, 1 << 31, 1_024, 3), epoch=7)
    session = router.hello(b"s" * wire.SESSION_BYTES, NoRoute())
    for name in ("r0", "r1"):
        router.open(name, 1, NoRoute(), "m", 64, 0.0)
    front, back = Outlet(), Outlet()
    numbers = itertools.count(1)
    steps = Steps()
    num_passes = max(1, REQUESTS // num_records)
    for i in range(num_passes):
        now = 1.0 + i / 1_000
        first, *_ = [next(numbers) for _ in range(num_records)]
        asked = [Record(Kind.REQUEST, request_id=first, body=BODY)]
        if num_records > 1:
            bodies = (BODY,) * num_records
            asked = [Record(Kind.REQUEST, Flag.BUNDLE, request_id=first, rows=num_records, frames=bodies)]
        ((head,),) = wire.messages(asked)
        steps.begin()
        requests = wire.receive(head)
        steps.done("decode requests")
        router.admit(session, requests, now)
        steps.done("admit")
        given = router.dispatch(now)
        steps.done("dispatch")
        for worker, entries in given:
            pieces = [(wire.addressed(e.raw, e.attempts, e.ticket), e.frames) for e in entries]
            back.put_all(worker.route, pieces)
        steps.done("address")
        back.flush()
        steps.done("send to workers")
        for worker, entries in given:
            said = [
                Record(
                    Kind.RESULT, e.flags, request_id=e.request_id, ticket=e.ticket, deadline_ns=TIMES, rows=e.num,
                    body=b"" if e.is_bundle else BODY, frames=(BODY,) * e.num if e.is_bundle else (),
                )
                for e in entries
            ]  # fmt: skip
            ((head,),) = wire.messages(said)
            steps.begin()
            records = wire.receive(head)
            steps.done("decode answers")
            found = router.answers(worker, records, now)
            steps.done("answers")
            front.put_answers(found)
            steps.done("put")
        front.flush()
        steps.done("send to clients")
        router.observe()
        steps.done("observe")
    return {name: spent / num_passes / num_records / 1e3 for name, spent in steps.spent.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="1,20", help="records in a message, one or more numbers")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    for num_records in map(int, options.records.split(",")):
        repeats = [serve(num_records) for _ in range(options.repeats)]
        least = {name: min(each[name] for each in repeats) for name in repeats[0]}
        print(f"{num_records} records a message: {sum(least.values()):.2f} us per request")
        for name, spent_us in least.items():
            print(f"  {name:<16}{spent_us:6.2f}")


if __name__ == "__main__":
    main()
