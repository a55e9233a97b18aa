"""`orch deploy compose` and `orch deploy kubernetes`: files from the settings alone; no instance has to run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from orch.config import Config, shown
from orch.errors import ConfigError
from orch.parsing import Refused, listen_address
from orch.version import __version__
from orch.whole import write_whole
from orch_cli.options import config_options, load
from orch_cli.words import RunsCommand
from orch_deploy.inside import Choices

MAX_GPUS: Final = 64  # in one machine; more is a slip
MAX_PODS: Final = 1000
CLAIM: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # RFC 1123
IMAGE: Final = f"orch:{__version__}"

image_option = click.option(
    "--image", metavar="IMAGE", default=IMAGE, show_default=True, help="What to run; the Dockerfile builds it."
)
nginx_option = click.option(
    "--with-nginx",
    is_flag=True,
    help="Put an nginx before a model's gateways, too; before a command there always is one.",
)
publish_option = click.option(
    "--publish", metavar="HOST:PORT", help="Where HTTP is to be reached; unset: where the settings say."
)
output_option = click.option("--output", metavar="FILE", help="Write this file, instead of standard output.")


@click.command(cls=RunsCommand)
@click.argument("target", required=False)
@image_option
@click.option("--gpus", metavar="N", help="How many GPUs, where --device does not name them; unset: all.")
@nginx_option
@publish_option
@output_option
@config_options()
def compose(image: str, output: str | None, config_path: str | None, **options: Any) -> None:
    """Write a compose file for docker.

    It mounts the folder that it lies in as /model, where TARGET, or what COMMAND runs, is looked for.
    """
    from orch_deploy.containers import compose as text_of

    config, choices = _read(options, config_path)
    _write(text_of(config, choices, image=image), output, config)


@click.command(cls=RunsCommand)
@click.argument("target", required=False)
@image_option
@click.option("--gpus", metavar="N", help="How many GPUs each pod takes, where --device does not name them; unset: 1.")
@click.option("--pods", metavar="N", help="How many pods, each on GPUs of its own; unset: 1.")
@click.option("--claim", metavar="NAME", default="", help="The volume claim with the model; unset: the image has it.")
@nginx_option
@publish_option
@output_option
@config_options()
def kubernetes(
    image: str, pods: str | None, claim: str, output: str | None, config_path: str | None, **options: Any
) -> None:
    """Write a manifest for kubectl.

    TARGET, or what COMMAND runs, is looked for in /model: the image has it there, or a volume claim is mounted there.
    """
    from orch_deploy.kubernetes import kubernetes as text_of

    config, choices = _read(options, config_path)
    if claim and not CLAIM.fullmatch(claim):
        raise ConfigError(f"claim = {shown(claim)} (from --claim): use lower-case letters, digits, dots and dashes")
    num_pods = _number("pods", pods, MAX_PODS) or 1
    _write(text_of(config, choices, image=image, pods=num_pods, claim=claim), output, config)


def _read(options: Mapping[str, Any], config_path: str | None) -> tuple[Config, Choices]:
    """The settings, and the rest. Whether the model's file is there is not looked at: it has to be in the container."""
    config = load(options, config_path).config
    if not config.target and not config.command:
        raise ConfigError("no target given: name the model on the command line, as ORCH_TARGET or in orch.toml")
    publish = _address(options["publish"]) if options["publish"] else ""
    gpus = _number("gpus", options["gpus"], MAX_GPUS)
    return config, Choices(gpus=gpus, nginx=options["with_nginx"], publish=publish)


def _address(text: str) -> str:
    try:
        address = listen_address(text)
    except Refused:
        address = "off"
    if address == "off":
        raise ConfigError(f"publish = {shown(text)} (from --publish): use an address and a port, such as 0.0.0.0:443")
    return address


def _number(name: str, text: str | None, most: int) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ConfigError(f"{name} = {shown(text)} (from --{name}): use a whole number from 1 to {most}")
    return int(text)


def _write(text: str, output: str | None, config: Config) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        write_whole(Path(output), text.encode())
        Path(output).chmod(0o600 if config.env else 0o644)  # what is set in the environment may be secret
    except OSError as error:
        raise ConfigError(f"{output} (from --output) cannot be written: {error.strerror}") from error
