"""`orch tune`: measures a grid of configurations, and says which to keep."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from orch.config import SETTINGS, Config, Resolved, shown
from orch.errors import ConfigError, OrchError
from orch.parsing import Refused, seconds
from orch.tuning import grid
from orch_cli.options import config_options, json_option, load
from orch_cli.words import command_in

WINDOW_S: Final = 2.0
SHORTEST_S, LONGEST_S, DAY_S = 0.1, 600.0, 86_400.0
# What of `orch up` makes sense here: neither what is tried out, nor what is about clients, nor what tune says itself.
OPTIONS: Final = (
    "load_parallelism", "device", "vram_per_replica_bytes", "gpu_utilization", "pin_cpus",
    "mps_thread_percentage", "max_batch_wait_s", "timeout_s", "load_timeout_s", "max_payload_bytes", "set", "env",
)  # fmt: skip
# A user's limits on clients must not limit the load, and nothing of it is worth draining.
FOR_THE_LOAD: Final = ("--queue-limit=65536", "--client-queue-limit=1024", "--drain-timeout=2s", "--detached")
# What is tried out is a list here, and a single value elsewhere.
EXAMPLES: Final = {"replicas": "1,2,4", "max_batch_size": "1,8,32", "mps": "on,off"}
SIGNAL_BASE: Final = 128  # a shell's exit code for a signal is this and its number


MODELS_ONLY: Final = (
    "orch tune makes requests for models only; try counts of a command with orch scale and a load of your own"
)


class TunesModels(click.Command):
    """A command in the target's place is told that it cannot be tuned, however it is written."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if words := command_in(args):
            raise ConfigError(f"command = {shown(words)} (from the command line): {MODELS_ONLY}")
        return super().parse_args(ctx, args)


@click.command(cls=TunesModels)
@click.argument("target", required=False)
@click.option(
    "--replicas", "counts", metavar="LIST", help="Counts, such as 1,2,4; auto: doubled while it fits and pays."
)
@click.option(
    "--max-batch-size", "sizes", metavar="LIST", help="Sizes, such as 1,8,32; auto: 1, 4, 16, ... the model's."
)
@click.option("--mps", metavar="LIST", help="on, off, or on,off; auto: both where CUDA MPS can be used.")
@click.option(
    "--min-gain",
    metavar="FRACTION",
    help="Without --replicas: a count is doubled for as long as that adds this share.  [ORCH_MIN_GAIN; default: 0.05]",
)
@click.option("--seconds", "window", metavar="SECONDS", help="The length of a window; measured until two agree.  [2]")
@click.option(
    "--time-limit",
    metavar="SECONDS",
    help="Stop after this long, such as 7m, with the best so far; the same command goes on. Exit code 3 if nothing is "
    "measured by then.",
)
@click.option(
    "--max-latency",
    metavar="SECONDS",
    help="Choose among those whose p99 is within this, such as 50ms: p99 under the load that keeps every replica busy "
    "(column outstanding of the report), not that of a quiet server.",
)
@click.option(
    "--out",
    metavar="PATH",
    help="The result file, exactly this path, or a directory for it; the report is beside it, its suffix replaced by "
    ".html.  [./orch-tune-MODEL.json]",
)
@click.option("--fresh", is_flag=True, help="Begin anew, whatever the result file has; only a file of orch tune.")
@config_options(*OPTIONS)
@json_option
def tune(
    counts: str | None,
    sizes: str | None,
    mps: str | None,
    window: str | None,
    time_limit: str | None,
    max_latency: str | None,
    min_gain: str | None,
    out: str | None,
    fresh: bool,
    config_path: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure replicas, batch sizes and MPS, and say what to keep.

    Each configuration runs under a load made of the model's warm-up samples. What was measured is kept in the result
    file, beside a report in HTML: the same command goes on where it was interrupted.
    """
    listed = grid.read_counts(counts, "--replicas"), grid.read_sizes(sizes, "--max-batch-size")
    with_mps = grid.read_mps(mps, "--mps")
    window_s = _seconds("seconds", window, SHORTEST_S, LONGEST_S) or WINDOW_S
    limit_s = _seconds("time_limit", time_limit, 1.0, 7 * DAY_S)
    max_latency_s = _seconds("max_latency", max_latency, 0.0001, DAY_S)
    resolved = _load({**options, "min_gain": min_gain}, config_path)
    config = resolved.config
    if config.command:
        raise ConfigError(f"command = {shown(config.command)} (from {resolved.origins['command']}): {MODELS_ONLY}")
    path = result_file(out, config.target)

    from orch.planning import gpu
    from orch.tuning.facts import facts_of
    from orch.tuning.interrupts import Interrupted
    from orch.tuning.report import Report, render
    from orch.tuning.results import Results, replace
    from orch.tuning.session import Request, measure_grid
    from orch.tuning.summary import Summary
    from orch_cli.tune_view import view_for

    with gpu.session():
        cells = grid.Grid(*listed, which_mps(with_mps, config), config.min_gain)
        results = Results.open(path, facts_of(config, window_s), fresh=fresh)
        has_gpu = bool(results.facts["gpus"])
        target = None if _is_in_file(resolved.origins["target"]) else config.target

        def summary() -> Summary:
            left = cells.num_left(results.rows, results.own_batch_size)
            files = str(path), str(results.report_path)
            rows, others = cells.asked(results.rows)
            return Summary(rows, left, has_gpu, max_latency_s, *files, target=target, others=others)

        def publish() -> None:
            if not results.is_empty:
                now, when = summary(), datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
                report = Report(now.rows, results.facts, max_latency_s, now.left, when, now.others)
                replace(results.report_path, render(report))

        def tell() -> None:
            click.echo(json.dumps(summary().as_json(), indent=2) if as_json else summary().text(), nl=as_json)

        publish()
        request = Request(config, cells, command_words(options, config_path), window_s, limit_s)
        try:
            with view_for(summary().rows, summary().left, has_gpu=has_gpu) as view:
                done = measure_grid(request, results, view, publish)
        except Interrupted as interrupted:
            with contextlib.suppress(OSError):  # the terminal may be gone, which is what SIGHUP says
                click.echo(f"orch: interrupted by {interrupted}; {summary().what_is_left()}", err=True)
                if not summary().is_empty:
                    tell()
            raise SystemExit(SIGNAL_BASE + interrupted.number) from None
    if summary().is_empty:
        raise summary().failure() if done else _too_short(str(time_limit))
    if not done:
        click.echo(f"orch: the time limit has passed; {summary().what_is_left()}", err=True)
    tell()


def _load(options: Mapping[str, Any], config_path: str | None) -> Resolved:
    try:
        return load(options, config_path, required=("target",))
    except ConfigError as error:
        key, _, rest = str(error).partition(" = ")
        if key not in EXAMPLES:
            raise
        source = rest.rpartition("(from ")[2].partition(")")[0]
        flag = SETTINGS[key].flag
        raise ConfigError(
            f"{key} = {rest.partition(' (from ')[0]} (from {source}): a list is taken from the command line alone: "
            f"use {flag} auto, or {flag} with a list such as {EXAMPLES[key]}, and a single value there"
        ) from None


def _is_in_file(origin: str) -> bool:
    """Whether the settings file has it: TOML takes no key twice."""
    return origin not in (SETTINGS["target"].flag, SETTINGS["target"].variable)


def _too_short(time_limit: str) -> OrchError:
    return ConfigError(
        f"time_limit = {time_limit} (from --time-limit): it has passed before anything was measured; give it the time "
        "that the model takes to load and some ten windows (--seconds) more"
    )


def which_mps(listed: tuple[bool, ...] | None, config: Config) -> tuple[bool, ...]:
    """With MPS, without, or both: as listed, else both where there is a GPU on which it can be used.

    Raises:
        ConfigError: it is asked for and cannot be used.
    """
    from orch.planning.devices import gpus_for
    from orch.supervising.mps import why_not

    if listed == (False,):
        return listed
    gpus = gpus_for(config)
    reason = why_not(gpus) if gpus else "the replicas run on no GPU"
    if reason is None:
        return listed or (False, True)
    if listed:
        raise ConfigError(f"mps = on (from --mps): {reason}; use --mps off")
    if gpus:
        click.echo(f"orch: warning: MPS is not tried: {reason}", err=True)
    return (False,)


def command_words(options: Mapping[str, Any], config_path: str | None) -> list[str]:
    """Options of `orch up` that repeat those given here; the environment and the file it reads itself."""
    words = [f"--config={config_path}"] if config_path else []
    for name, value in options.items():
        if name in OPTIONS and value is not None:
            words += [f"{SETTINGS[name].flag}={text}" for text in (value if isinstance(value, tuple) else (value,))]
    return [*words, *FOR_THE_LOAD]


def result_file(out: str | None, target: str) -> Path:
    """Where the results of a target go; the report lies beside it.

    Raises:
        ConfigError: there is no such directory, or it is the report's path.
    """
    path = Path(out or ".")
    if out is None or path.is_dir():
        where, _, name = target.rpartition(":")
        return path / f"orch-tune-{Path(where).stem if where.endswith('.py') else where}-{name}.json"
    if not path.parent.is_dir() or out.endswith("/"):
        missing = path if out.endswith("/") else path.parent
        raise ConfigError(f"out = {shown(out)} (from --out): there is no directory {missing}; make it first")
    if path.suffix == ".html":
        raise ConfigError(f"out = {shown(out)} (from --out): that is the report; name the result file beside it: .json")
    return path


def _seconds(key: str, text: str | None, low: float, high: float) -> float | None:
    if text is None:
        return None
    try:
        return float(seconds(low, high)(text))
    except Refused as refused:
        reason = f"{refused}; " if str(refused) else ""
        source = "--" + key.replace("_", "-")
        raise ConfigError(
            f"{key} = {shown(text)} (from {source}): {reason}"
            f"use seconds from {low:g} to {high:g}, such as 2, 7m or 50ms"
        ) from None
