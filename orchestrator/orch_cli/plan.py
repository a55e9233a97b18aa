"""`orch plan`: what would fit, with the sum."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from orch.config import Config
from orch.planning import cards, footprint, planner
from orch_cli.options import config_options, json_option, load
from orch_cli.words import RunsCommand


@click.command(cls=RunsCommand)
@click.argument("target", required=False)
@click.option(
    "--gpu",
    "card_names",
    metavar="CARD",
    multiple=True,
    help="Plan for this card, there or not: rtx-4090, or mycard:24GiB. May be repeated.",
)
@config_options("vram_per_replica_bytes", "replicas", "device", "gpu_utilization", "max_batch_size", "set", "env")
@json_option
def plan(card_names: tuple[str, ...], config_path: str | None, as_json: bool, **options: Any) -> None:
    """Show how many replicas fit, and why.

    Nothing is started: without --vram-per-replica the answer is what will be measured.
    """
    resolved = load(
        options, config_path, required=("target", "command") if options["target"] or options["command"] else ()
    )
    config = resolved.config
    if card_names:
        gpus = tuple(cards.parse_card(name, index) for index, name in enumerate(card_names))
        result, costs = planner.plan(request_for(config, gpus)), dict[str, footprint.Footprint]()
    else:
        from orch.supervising.plans import Plans

        plans = Plans(config)  # what `orch up` would begin with
        gpus, result, costs = plans.gpus, plans.plan, plans.remembered
    if as_json:
        click.echo(json.dumps(plan_as_json(result, gpus, costs), indent=2))
        return
    click.echo(summary(result, gpus))
    for reason in result.because:
        click.echo(f"  {reason}")
    for cost in costs.values():
        click.echo(f"  remembered from an earlier run, and measured again by the next: {footprint.explain(cost)}")


def request_for(config: Config, gpus: tuple[cards.Gpu, ...]) -> planner.PlanRequest:
    """What the planner is asked about cards that are not here."""
    from orch.planning.host import read_host

    declared = config.vram_per_replica_bytes
    return planner.PlanRequest(
        host=read_host(),
        gpus=gpus,
        footprint=None if declared is None else footprint.declared(declared),
        wanted=config.replicas,
        gpu_utilization=config.gpu_utilization,
    )


def summary(result: planner.Plan, gpus: Sequence[cards.Gpu]) -> str:
    """The plan in one line."""
    replicas = "1 replica" if result.total == 1 else f"{result.total} replicas"
    if result.limit is planner.Limit.PROBE:
        return f"{replicas} for now, which is measured; then as many as fit (declare it: --vram-per-replica 7GiB)"
    names = {one.uuid: f"gpu {one.index} ({one.name})" for one in gpus}
    where = ", ".join(f"{count} on {names.get(uuid, uuid)}" for uuid, count in result.placement) or "on the CPU"
    return f"{replicas}: {where}; limited by {result.limit}"


def plan_as_json(
    result: planner.Plan, gpus: Sequence[cards.Gpu], costs: Mapping[str, footprint.Footprint]
) -> dict[str, object]:
    """The plan for programs."""
    return {
        "total": result.total,
        "limit": str(result.limit),
        "placement": [{"gpu": uuid, "replicas": count} for uuid, count in result.placement],
        "threads_per_replica": result.threads_per_replica,
        "because": list(result.because),
        "remembered": {kind: dataclasses.asdict(cost) for kind, cost in costs.items()},
        "gpus": [dataclasses.asdict(one) for one in gpus],
    }
