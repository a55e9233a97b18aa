"""`orch deploy compose` and `orch deploy kubernetes`: files from the settings alone; no instance has to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from orch.config import Config, shown
from orch.errors import ConfigError
from orch.parsing import Refused, listen_address
from orch.version import __version__
from orch_cli.deploy.proxying import force_option, network_of, network_options
from orch_cli.options import config_options, load
from orch_cli.words import RunsCommand
from orch_deploy import writing
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
@network_options
@output_option
@force_option
@config_options()
def compose(image: str, output: str | None, force: bool, config_path: str | None, **options: Any) -> None:
    """Write a compose file for docker.

    It mounts the folder that it lies in as /model, where TARGET, or what COMMAND runs, is looked for.
    """
    from orch_deploy.containers import compose as text_of

    config, choices = _read(options, config_path)
    text = text_of(config, choices, image=_image(image))
    if _write(text, output, config, force=force):
        path = Path(str(output))
        at = "" if path == Path("compose.yaml") else f" -f {shlex.quote(str(path))}"
        _say(f"{path} written; next{_first(text)}: docker compose{at} up -d")


@click.command(cls=RunsCommand)
@click.argument("target", required=False)
@image_option
@click.option("--gpus", metavar="N", help="How many GPUs each pod takes, where --device does not name them; unset: 1.")
@click.option("--pods", metavar="N", help="How many pods, each on GPUs of its own; unset: 1.")
@click.option("--claim", metavar="NAME", default="", help="The volume claim with the model; unset: the image has it.")
@nginx_option
@publish_option
@network_options
@output_option
@force_option
@config_options()
def kubernetes(
    image: str, pods: str | None, claim: str, output: str | None, force: bool, config_path: str | None, **options: Any
) -> None:
    """Write a manifest for kubectl.

    TARGET, or what COMMAND runs, is looked for in /model: the image has it there, or a volume claim is mounted there.
    """
    from orch_deploy.kubernetes import kubernetes as text_of

    config, choices = _read(options, config_path)
    if claim and not CLAIM.fullmatch(claim):
        raise ConfigError(f"claim = {shown(claim)} (from --claim): use lower-case letters, digits, dots and dashes")
    num_pods = _number("pods", pods, MAX_PODS) or 1
    text = text_of(config, choices, image=_image(image), pods=num_pods, claim=claim)
    if _write(text, output, config, force=force):
        _say(f"{output} written; next{_first(text)}: kubectl apply -f {shlex.quote(str(output))}")


def _read(options: Mapping[str, Any], config_path: str | None) -> tuple[Config, Choices]:
    """The settings, and the rest. Whether the model's file is there is not looked at: it has to be in the container."""
    config = load(options, config_path).config
    if not config.target and not config.command:
        raise ConfigError(
            "no target given: name the model on the command line, as ORCH_TARGET or in orch.toml; or what runs as "
            "command workers behind --, as ORCH_COMMAND or in orch.toml"
        )
    publish = _address(options["publish"]) if options["publish"] else ""
    gpus = _number("gpus", options["gpus"], MAX_GPUS)
    return config, Choices(gpus=gpus, nginx=options["with_nginx"], publish=publish, limits=network_of(options))


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


def _image(text: str) -> str:
    if not text or any(letter.isspace() for letter in text):
        raise ConfigError(f"image = {shown(text)} (from --image): use an image's name, such as {IMAGE}")
    return text


def _write(text: str, output: str | None, config: Config, *, force: bool) -> bool:
    """Print it, or write it and return True."""
    if output is None:
        if force:
            raise click.UsageError("--force needs --output FILE")
        click.echo(text, nl=False)
        return False
    # What is set in the environment may be secret.
    writing.put(Path(output), text, force=force, private=bool(config.env))
    return True


def _first(text: str) -> str:
    """The head of a file has commands where keys or certificates have to be there before."""
    return " (after what its head says)" if "\n#   " in text else ""


def _say(text: str) -> None:
    click.echo(f"orch: {text}", err=True)
