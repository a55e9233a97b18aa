"""What people see of a status, a plan's sum and a list of GPUs: rich tables from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orch.planning.cards import Gpu, utilization_for
from orch.planning.sizes import format_size

PLAIN_WIDTH: Final = 160  # into a pipe or a file, where nothing says how wide a line may be
STYLES: Final[Mapping[str, str]] = {
    "READY": "green",
    "STARTING": "yellow",
    "LOADING": "yellow",
    "DRAINING": "yellow",
    "BACKOFF": "red",
    "QUARANTINED": "bold red",
}


def console() -> Console:
    """Standard output as rich sees it; a pipe is neither coloured nor cut at 80 columns."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def print_out(*views: RenderableType) -> None:
    """Print through click, whose errors about a closed pipe are the ones that main handles."""
    out = console()
    with out.capture() as captured:
        out.print(*views, sep="\n")
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def status_view(status: Mapping[str, Any]) -> RenderableType:
    """The whole answer of `orch status`."""
    state = str(status.get("state", "?"))
    head = Text.assemble(
        (str(status.get("name", "?")), "bold"),
        "  ",
        (state, STYLES.get(state.upper(), "")),
        f"  {status.get('model') or '-'}",
        f"  up {duration(status.get('uptime_s'))}",
        f"  pid {status.get('pid') or '-'}",
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("replica", "state", "device"):
        table.add_column(column)
    for column in ("pid", "outstanding", "answered", "restarts", "footprint"):
        table.add_column(column, justify="right")
    reasons = []
    for replica in status.get("replicas", ()):
        state = str(replica.get("state", "?"))
        table.add_row(
            str(replica.get("id")),
            Text(state, STYLES.get(state.upper(), "")),
            escape(str(replica.get("device") or "-")),
            str(replica.get("pid") or "-"),
            count(replica.get("outstanding")),
            count(replica.get("answered")),
            count(replica.get("restarts")),
            size(replica.get("footprint_bytes")),
        )
        if replica.get("reason") and state != "READY":  # a sentence, which in a column would squeeze the figures
            reasons.append(Text(f"{replica.get('id')}: {replica['reason']}", STYLES.get(state.upper(), "")))
    queue = status.get("queue", {})
    words = ("queued", "outstanding", "answered", "rejected", "retried")
    tail = Text("requests  " + "  ".join(f"{word} {count(queue.get(word))}" for word in words))
    plan = status.get("plan") or {}
    total = plan.get("total", "-")
    planned = Text(f"plan      {total} replica{'' if total == 1 else 's'} (limit: {plan.get('limit', '-')})")
    return Group(head, Text(f"endpoint  {status.get('endpoint') or '-'}"), planned, table, *reasons, tail)


def gpus_view(gpus: Sequence[Gpu]) -> RenderableType:
    """One row for each device that a replica can run on."""
    table = Table(box=None, header_style="bold")
    for column in ("gpu", "name", "bus"):
        table.add_column(column)
    for column in ("total", "free", "reserved", "used", "planned share", "processes"):
        table.add_column(column, justify="right")
    table.add_column("uuid", overflow="fold")
    for gpu in gpus:
        share = "-" if gpu.total_bytes is None else f"{utilization_for(gpu.name, gpu.total_bytes):.2f}"
        table.add_row(
            f"{gpu.index} MIG" if gpu.mig else str(gpu.index),
            escape(gpu.name),
            gpu.bus_id or "-",
            size(gpu.total_bytes),
            size(gpu.free_bytes),
            size(gpu.reserved_bytes),
            size(gpu.used_bytes),
            share,
            str(len(gpu.processes)),
            gpu.uuid,
        )
    return table


def size(value: object) -> str:
    """Bytes for people; a dash where nobody knows."""
    return format_size(value) if isinstance(value, int) and not isinstance(value, bool) else "-"


def count(value: object) -> str:
    """A number with its thousands apart; a dash where nobody knows."""
    return f"{value:,}" if isinstance(value, int) else "-"


def duration(seconds: object) -> str:
    """The two largest units: 3h12m, 4m07s, 12s."""
    if not isinstance(seconds, int | float):
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
