"""What people see of a status, a plan's sum and a list of GPUs: rich tables from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orch_cli.columns import GAP, Column, Columns, Section
from orch_cli.figures import count, duration, ranges, size

__all__ = ["console", "count", "duration", "gpus_view", "print_out", "ranges", "size", "status_view"]

PLAIN_WIDTH: Final = 160  # into a pipe or a file, where nothing says how wide a line may be
STYLES: Final[Mapping[str, str]] = {
    "READY": "green",
    "STARTING": "yellow",
    "LOADING": "yellow",
    "DRAINING": "yellow",
    "BACKOFF": "red",
    "QUARANTINED": "bold red",
}
# Of replicas; where there are GPUs, `device` stands in a line above those of each, and the last two may be known.
COLUMNS: Final = (
    Column("replica", "left"),
    Column("state", "left"),
    Column("device", "left"),
    Column("pid", spare=1),
    Column("address", "left"),
    Column("connections", spare=5),
    Column("outstanding"),
    Column("answered"),
    Column("restarts", spare=2),
    Column("footprint"),
    Column("fence", spare=3),
    Column("cores", "left", spare=4),
)
# How the parts of a GPU's bars look; the characters differ too, for where there are no colours.
BAR_WIDTH: Final = 30
MAX_CORES_WIDTH: Final = 24  # boards that number the cores of two sockets in turn have a range for each
REPLICAS: Final = ("█", "green")
OTHERS: Final = ("▓", "yellow")
FREE: Final = ("░", "dim")
RESERVED: Final = ("▒", "dim")
BUSY: Final = ("█", "cyan")
SPARKS: Final = "▁▂▃▄▅▆▇█"


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
    """The whole answer of `orch status`: on GPUs the replicas of each below it."""
    state = str(status.get("state", "?"))
    head = Text.assemble(
        (str(status.get("name", "?")), "bold"),
        "  ",
        (state, STYLES.get(state.upper(), "")),
        f"  {status.get('model') or '-'}",
        f"  up {duration(status.get('uptime_s'))}",
        f"  pid {status.get('pid') or '-'}",
    )
    is_command = status.get("kind") == "command"  # whose requests orch does not see
    replicas = status.get("replicas") or ()
    reasons = []
    for replica in replicas:
        state = str(replica.get("state", "?"))
        if replica.get("reason") and state != "READY":  # a sentence, which in a column would squeeze the figures
            reasons.append(Text(f"{replica.get('id')}: {replica['reason']}", STYLES.get(state.upper(), "")))
    queue = status.get("queue", {})
    words = ("queued", "outstanding", "answered", "rejected", "retried")
    tail = Text("requests  " + "  ".join(f"{word} {count(queue.get(word))}" for word in words))
    return Group(
        head,
        *([] if is_command else [Text(f"endpoint  {status.get('endpoint') or '-'}")]),
        *([Text(f"http      {status['http']}{_gateways(status)}")] if status.get("http") else []),
        *(Text(line, no_wrap=True, overflow="ellipsis") for line in _decisions(status)),
        _replicas(replicas, status.get("gpus") or ()),
        *reasons,
        *([] if is_command else [tail]),
    )


def _gateways(status: Mapping[str, Any]) -> str:
    """How many serve it, where that is not one that has never died."""
    rows = status.get("gateways") or ()
    restarts = sum(row.get("restarts") or 0 for row in rows)
    told = [f"{len(rows)} gateways"] if len(rows) > 1 else []
    told += [f"restarts: {restarts}"] if restarts else []
    return f"  ({', '.join(told)})" if told else ""


def _decisions(status: Mapping[str, Any]) -> list[str]:
    """What was planned, whether the replicas of a GPU share it, and what is still to come."""
    plan, mps = status.get("plan") or {}, status.get("mps") or {}
    total = plan.get("total", "-")
    lines = [f"plan      {total} replica{'' if total == 1 else 's'} (limit: {plan.get('limit', '-')})"]
    if status.get("gpus") and mps:
        lines.append(f"mps       {': '.join(str(mps[key]) for key in ('state', 'reason') if mps.get(key))}")
    if search := status.get("search"):
        because = "; ".join(map(str, search.get("because") or ()))
        lines.append(f"search    {search.get('state') or '-'}{because and f': {because}'}")
    if waiting := status.get("restarts_next"):
        lines.append(f"restart   {', then '.join(waiting)} next, once no replica loads or leaves")
    return lines


def _replicas(replicas: Sequence[Mapping[str, Any]], gpus: Sequence[Mapping[str, Any]]) -> Columns:
    """A row for each; those of a GPU below its line, in the order of the GPUs, then those that are on none of these."""
    left_out = {"device"} if gpus else {"fence", "cores"}
    left_out |= {
        name
        for name, key in (("fence", "fence_bytes"), ("cores", "cores"), ("address", "address"))
        if not any(replica.get(key) for replica in replicas)
    }
    left_out |= {"connections"} if "address" in left_out else {"outstanding", "answered"}
    columns = [column for column in COLUMNS if column.name not in left_out]
    rows: dict[Any, list[list[Text]]] = {gpu.get("uuid"): [] for gpu in gpus}
    for replica in replicas:
        gpu = replica.get("gpu")
        place = gpu if gpu in rows else str(replica.get("device") or "-") if gpus else None
        rows.setdefault(place, []).append([_cell(replica, column.name) for column in columns])
    alike = len({gpu.get("weight") for gpu in gpus}) == 1
    headings = {gpu.get("uuid"): _gpu_facts(gpu, alike=alike) for gpu in gpus}
    return Columns(
        columns,
        [Section(those, headings.get(place, [Text(place, "bold")] if place else ())) for place, those in rows.items()],
    )


def _gpu_facts(gpu: Mapping[str, Any], *, alike: bool) -> list[Text]:
    """The line of one GPU. alike: all of them are equally fast, which need not be said."""
    facts = [Text(f"gpu {gpu.get('index', '?')}{GAP}{gpu.get('name') or 'unknown GPU'}", "bold")]
    used, total = gpu.get("used_bytes"), gpu.get("total_bytes")
    if used is not None and total is not None:
        unit = size(total).partition(" ")[2]
        facts.append(Text(f"{size(used).removesuffix(f' {unit}')} of {size(total)} used"))
    if gpu.get("mps") is not None:
        facts.append(Text(f"MPS {'on' if gpu['mps'] else 'off'}"))
    if gpu.get("weight") is not None and not alike:
        facts.append(Text(f"weight {round(gpu['weight'], 2)}"))
    ready, planned = gpu.get("ready"), gpu.get("planned")
    if ready is not None and planned is not None:
        facts.append(Text(f"{ready} of {planned} ready", "yellow" if ready < planned else ""))
    if gpu.get("planned_bytes") is not None:
        facts.append(Text(f"{size(gpu['planned_bytes'])} planned"))
    return facts


def _cell(replica: Mapping[str, Any], name: str) -> Text:
    """What stands in the column of that name."""
    match name:
        case "replica":
            return Text(str(replica.get("id")))
        case "state":
            state = str(replica.get("state", "?"))
            return Text(state, STYLES.get(state.upper(), ""))
        case "footprint" | "fence":
            return Text(size(replica.get(f"{name}_bytes")))
        case "cores":
            return Text(ranges(replica.get("cores") or ()) or "-")
        case "device" | "pid" | "address":
            return Text(str(replica.get(name) or "-"))
    return Text(count(replica.get(name)))


def gpus_view(
    report: Mapping[str, Any],
    busy: Mapping[str, Sequence[int | None]] | None = None,
    gone: Sequence[Mapping[str, Any]] = (),
) -> RenderableType:
    """The whole answer of `orch gpus`: for each device what it holds and does, and its processes.

    busy: by UUID, how busy each was in its last readings, the latest last. gone: devices that were there before.
    """
    views: list[RenderableType] = [Text(f"driver {report.get('driver_version') or '-'}", "dim")]
    for gpu in report.get("gpus", ()):
        bars = Table.grid(padding=(0, 2))
        bars.add_row("  memory", _memory_bar(gpu), _memory_figures(gpu))
        percent = gpu.get("utilization_percent")
        figure = "-" if percent is None else f"{percent}%"
        past = "".join(map(_spark, (busy or {}).get(gpu["uuid"], ())))
        bars.add_row("  busy", _bar(((percent or 0, 100, BUSY),)), Text(f"{figure:<5}{past}", no_wrap=True))
        views += [Text(), _headline(gpu), bars]
        views += [Text(f"  {line}", "dim", no_wrap=True, overflow="ellipsis") for line in _small_print(gpu)]
        if gpu.get("processes"):
            views.append(_processes_table(gpu["processes"]))
    views += [Text(f"\n{_name(gpu)} ({gpu['uuid']}) does not answer any more", "bold red") for gpu in gone]
    if report.get("gpus"):
        legend = [("replicas", REPLICAS), ("others", OTHERS), ("free", FREE), ("reserved", RESERVED)]
        views += [Text(), Text("  ").join([Text.assemble((char, style), f" {word}") for word, (char, style) in legend])]
    return Group(*views)


def _headline(gpu: Mapping[str, Any]) -> Text:
    """What it is and how it feels; what is not told is not mentioned."""
    head = Text(_name(gpu), "bold")
    if gpu.get("temperature_c") is not None:
        head.append(f"  {gpu['temperature_c']} °C", "not bold")
    if gpu.get("power_w") is not None:
        limit = "" if gpu.get("power_limit_w") is None else f" of {gpu['power_limit_w']:.0f}"
        head.append(f"  {gpu['power_w']:.0f}{limit} W", "not bold")
    for key, what in (("sm_clock_mhz", "SM"), ("memory_clock_mhz", "memory")):
        if gpu.get(key) is not None:
            head.append(f"  {what} {gpu[key]} MHz", "not bold")
    return head


def _name(gpu: Mapping[str, Any]) -> str:
    return f"gpu {gpu['index']}{' MIG' if gpu.get('mig') else ''}  {gpu['name']}"


def _small_print(gpu: Mapping[str, Any]) -> list[str]:
    """What tells it from others, and what matters to a plan."""
    capability, share, cores = gpu.get("compute_capability"), gpu.get("planned_share"), gpu.get("cpu_affinity") or ()
    near = ranges(cores)
    identity = [gpu["uuid"], gpu.get("bus_id"), capability and f"compute {capability[0]}.{capability[1]}"]
    plan = [
        gpu.get("compute_mode") and f"mode {gpu['compute_mode']}",
        share and f"planned share {share:.2f}",
        gpu.get("reserved_bytes") and f"reserved {size(gpu['reserved_bytes'])}",
        cores and (f"cores {near}" if len(near) <= MAX_CORES_WIDTH else f"{len(cores)} near cores"),
    ]
    lines = ["  ".join(fact for fact in facts if fact) for facts in (identity, plan)]
    return [line for line in lines if line]


def _memory_figures(gpu: Mapping[str, Any]) -> str:
    if gpu.get("total_bytes") is None:
        return "shares the host's memory"
    return f"{size(gpu['used_bytes'])} of {size(gpu['total_bytes'])}, {size(gpu['free_bytes'])} free"


def _memory_bar(gpu: Mapping[str, Any]) -> Text:
    """Replicas, other processes, what is free, and at the end what the driver keeps for itself."""
    total = gpu.get("total_bytes") or 0
    rows = [row for row in gpu.get("processes", ()) if row.get("replica")]
    replicas = min(gpu["used_bytes"], sum(row.get("used_bytes") or row.get("footprint_bytes") or 0 for row in rows))
    others = gpu["used_bytes"] - replicas
    parts = ((replicas, REPLICAS), (others, OTHERS), (gpu["free_bytes"], FREE), (gpu["reserved_bytes"], RESERVED))
    return _bar(tuple((part, total, look) for part, look in parts))


def _bar(parts: Sequence[tuple[int, int, tuple[str, str]]]) -> Text:
    """A bar of BAR_WIDTH: for each part its size, the whole, and how it looks; what they leave is free."""
    bar, done, end = Text(no_wrap=True), 0, 0
    for part, whole, (char, style) in parts:
        done += part
        until = min(BAR_WIDTH, round(BAR_WIDTH * done / whole)) if whole else 0
        bar.append(char * (until - end), style)
        end = until
    return bar.append(FREE[0] * (BAR_WIDTH - end), FREE[1])


def _spark(percent: int | None) -> str:
    return " " if percent is None else SPARKS[min(len(SPARKS) - 1, percent * len(SPARKS) // 100)]


def _processes_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Replicas first, by instance and number; then who else is there, the largest first."""
    table = Table(box=None, header_style="dim", padding=(0, 0, 0, 2))
    table.add_column("pid", justify="right")
    table.add_column("memory", justify="right")
    table.add_column("who", no_wrap=True, overflow="ellipsis")
    for row in sorted(rows, key=_order):
        used, footprint = row.get("used_bytes"), row.get("footprint_bytes")
        memory = f"about {size(footprint)}" if used is None and footprint is not None else size(used)
        who = Text(row.get("command") or "-", "dim")
        if row.get("replica"):
            state = str(row.get("state") or "?")
            who = Text.assemble(f"{row['replica']} of {row['instance']}  ", (state, STYLES.get(state, "")))
        table.add_row(str(row.get("pid")), memory, who)
    return table


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    if row.get("replica"):
        name = str(row["replica"])
        return (0, row["instance"], len(name), name)
    return (1, -(row.get("used_bytes") or 0), row.get("pid"))
