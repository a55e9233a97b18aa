"""What is measured: the points, what the servers do for each, and what the ideal would be."""

from __future__ import annotations

from dataclasses import dataclass

WORKERS = 2
ECHO_BODY = b"0123456789abcdef" * 64
TENSOR_SHAPE = (3, 224, 224)  # float32: 602,112 bytes
# The simulated GPU.
BATCH_FIXED_S, BATCH_ROW_S, MAX_BATCH = 0.005, 0.0001, 32
# What every server with such a setting may let the first row of a batch wait for company.
MAX_WAIT_S = 0.002
# One request of the kill workload, so that a missing worker shows as missing capacity.
SLOW_S = 0.002
# A request of the kill workload that is not answered by then is lost.
PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """One line-up of load. `outstanding` is kept by each of `clients` processes."""

    name: str
    workload: str
    title: str
    outstanding: int
    clients: int = 1


POINTS = (
    Point("echo-64", "echo", "echo of 1 KiB, 64 outstanding, one client process", 64),
    Point("echo-1", "echo", "echo of 1 KiB, 1 outstanding", 1),
    Point("echo-8x8", "echo", "echo of 1 KiB, 8 client processes with 8 outstanding each", 8, clients=8),
    Point("tensor-16", "tensor", "mean of a tensor of 602,112 bytes, 16 outstanding", 16),
    Point("batch-256", "batch", "batches of up to 32 on a simulated GPU (5 ms + 0.1 ms a row), 256 outstanding", 256),
    Point("batch-16", "batch", "the same, 16 outstanding", 16),
)
KILL = Point("kill", "kill", "echo with 2 ms of work, 16 outstanding, one worker killed", 16)


@dataclass(frozen=True, slots=True)
class Ideal:
    """What nothing could beat: requests per second, and the seconds that a request spends in the system."""

    rps: float
    time_s: float


def batch_s(rows: float) -> float:
    """Seconds that the simulated GPU takes for a batch."""
    return BATCH_FIXED_S + BATCH_ROW_S * rows


def ideal(point: Point) -> Ideal | None:
    """Of a batch point: workers that are never without work, and share it evenly. Elsewhere: None."""
    if point.workload != "batch":
        return None
    outstanding = point.outstanding * point.clients
    rows = min(MAX_BATCH, outstanding / WORKERS)
    rps = WORKERS * rows / batch_s(rows)
    return Ideal(rps, outstanding / rps)
