"""The Kubernetes manifest of an instance. Pure. The fields: https://kubernetes.io/docs/reference/kubernetes-api/."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from typing import Final

from orch.config import Config
from orch_deploy.inside import MODEL_DIR, NGINX_TAG, RUNTIME_DIR, SHM_MIB, STATE_DIR, UID, Choices, inside
from orch_deploy.render import render
from orch_deploy.seal import sealed
from orch_deploy.settings_text import as_file, quoted

SETTINGS_DIR, KEYS_DIR, TLS_DIR = "/etc/orch/settings", "/etc/orch/keys", "/etc/orch/tls"
NGINX_IMAGE: Final = f"nginxinc/nginx-unprivileged:{NGINX_TAG}"
# A pod is told to stop and taken out of its Service at the same time: it goes on serving for so long.
LEAVE_S: Final = 5
PROBE_S: Final = 10


def kubernetes(config: Config, choices: Choices, *, image: str, pods: int = 1, claim: str = "") -> str:
    """Documents in YAML, one after another. Without a count of GPUs each pod takes one.

    pods: each on GPUs of its own. claim: a PersistentVolumeClaim that holds the model; without one the image does.

    Raises:
        ConfigError: the instance cannot run in a container as it is.
    """
    box = inside(config, dataclasses.replace(choices, cert=f"{TLS_DIR}/tls.crt", key=f"{TLS_DIR}/tls.key"))
    settings = as_file(box.config)
    text = render(
        "kubernetes.yaml.j2",
        q=quoted,
        box=box,
        name=f"orch-{box.name}",
        image=image,
        nginx_image=NGINX_IMAGE,
        settings=settings,
        digest=hashlib.sha256((settings + box.front).encode()).hexdigest()[:16],
        gpus=_count(box.gpus),
        pods=pods,
        claim=claim,
        uid=UID,
        model_dir=MODEL_DIR,
        runtime_dir=RUNTIME_DIR,
        state_dir=STATE_DIR,
        settings_dir=SETTINGS_DIR,
        keys_dir=KEYS_DIR,
        tls_dir=TLS_DIR,
        shm_mib=SHM_MIB,
        leave_s=LEAVE_S,
        probe_s=PROBE_S,
        num_probes=math.ceil(box.start_s / PROBE_S),
    )
    return sealed(text)


def _count(gpus: tuple[int, ...] | int | None) -> int:
    if isinstance(gpus, tuple):
        return len(gpus)
    return 1 if gpus is None else gpus
