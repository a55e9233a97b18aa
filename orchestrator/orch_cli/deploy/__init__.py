"""`orch deploy`: files for what orch lives with."""

from __future__ import annotations

from typing import Final

import click

from orch_cli.late import LateGroup

COMMANDS: Final = {
    "nginx": "orch_cli.deploy.proxies:nginx",
    "haproxy": "orch_cli.deploy.proxies:haproxy",
    "systemd": "orch_cli.deploy.units:systemd",
    "install": "orch_cli.deploy.installing:install",
    "upgrade": "orch_cli.deploy.installing:upgrade",
    "uninstall": "orch_cli.deploy.installing:uninstall",
    "compose": "orch_cli.deploy.containers:compose",
    "kubernetes": "orch_cli.deploy.containers:kubernetes",
}


@click.group(cls=LateGroup, late=COMMANDS)
def deploy() -> None:
    """Write what nginx, HAProxy, systemd and containers need."""
