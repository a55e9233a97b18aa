"""What workers' messages tell: noted as they come, and entered when nobody waits for the loop, or before it decides."""

from __future__ import annotations

from orch.wire import read_times
from orch_balancer.figures import Admitted, Figures
from orch_balancer.pool import Worker

# Of one message: how many rows and requests it answers; when those were admitted that somebody waited for, and how
# many; `wire.pack_times` of a batch, or 0; for how long the worker was busy; whether nothing was queued; when it came.
Note = tuple[Worker, int, int, Admitted, int, float, bool, float]


class Heard:
    """Owns the notes, the figures, and how many requests each replica has answered."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.figures = Figures()
        self.answered_by: dict[str, int] = {}  # over the lives of its workers

    def learn(self) -> None:
        """Enter the notes into the speeds of the pools, and pass them to the figures."""
        figures = self.figures
        for worker, rows, num, answered, times, busy_s, queue_was_empty, now in self.notes:
            pool = worker.pool
            if times:
                waited_s, took_s = read_times(times)
                pool.speed.ran(rows, took_s * worker.weight)
                figures.runs.append((rows, num, waited_s, took_s, now))
            if answered:
                figures.answered.append((answered, now))
            # Nothing is no batch's time: then this is the rest of a batch's answers.
            batch_s = busy_s * worker.weight if busy_s > 0 else None
            pool.speed.observe(rows, batch_s, queue_was_empty=queue_was_empty, now=now)
            pool.answered(rows, now)
            self.answered_by[worker.replica] += num
        self.notes.clear()
