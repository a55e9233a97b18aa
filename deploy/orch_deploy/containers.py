"""The compose file of an instance. Pure. The format: https://github.com/compose-spec/compose-spec."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

from orch.config import Config
from orch_deploy.inside import MODEL_DIR, NGINX_TAG, RUNTIME_DIR, SHM_MIB, STATE_DIR, UID, Choices, Inside, inside
from orch_deploy.render import render
from orch_deploy.seal import sealed
from orch_deploy.settings_text import as_variables, quoted

# Where compose puts secrets.
KEYS, CERT, KEY = "/run/secrets/keys", "/run/secrets/tls_cert", "/run/secrets/tls_key"
NGINX_IMAGE: Final = f"nginx:{NGINX_TAG}"


def compose(config: Config, choices: Choices, *, image: str) -> str:
    """A compose.yaml. Without a count of GPUs it takes all.

    Raises:
        ConfigError: the instance cannot run in a container as it is.
    """
    box = inside(config, dataclasses.replace(choices, cert=CERT, key=KEY))
    variables = as_variables(box.config)
    if box.has_keys:
        variables["ORCH_KEYS_FILE"] = KEYS
    tls = ("tls_cert", "tls_key") if box.tls else ()
    keys = ("keys",) if box.has_keys else ()
    text = render(
        "compose.yaml.j2",
        q=literal,
        box=box,
        image=image,
        nginx_image=NGINX_IMAGE,
        front=box.front.replace("$", "$$"),
        variables=variables,
        devices=_devices(box),
        secrets=keys if box.front else keys + tls,
        nginx_secrets=tls if box.front else (),
        uid=UID,
        model_dir=MODEL_DIR,
        runtime_dir=RUNTIME_DIR,
        state_dir=STATE_DIR,
        shm_mib=SHM_MIB,
    )
    return sealed(text)


def literal(value: Any) -> str:
    """As YAML, with nothing in it that compose would replace."""
    return quoted(value).replace("$", "$$")


def _devices(box: Inside) -> dict[str, Any] | None:
    """One reservation of devices; None for none."""
    if box.gpus == ():
        return None
    if isinstance(box.gpus, tuple):
        return {"device_ids": [str(index) for index in box.gpus]}
    return {"count": "all" if box.gpus is None else box.gpus}
