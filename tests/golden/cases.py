"""The generated files of some configurations, as orch writes them now. `python -m tests.golden.cases` keeps them.

Each case is a folder here with its files. tests/unit/test_golden.py compares them with what is generated now, and
tests/process/test_golden_checkers.py has each read by the program it is for. Paths are those of no machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orch.config import Config, resolve
from orch_deploy import layout, systemd
from orch_deploy.containers import compose
from orch_deploy.haproxy import render_haproxy
from orch_deploy.inside import Choices
from orch_deploy.kubernetes import kubernetes
from orch_deploy.nginx import render_nginx
from orch_deploy.proxy import Options
from orch_deploy.site import Server, Site

HERE = Path(__file__).resolve().parent
CERT, KEY, BOTH = "/etc/orch/tls/cert.pem", "/etc/orch/tls/key.pem", "/etc/orch/tls/both.pem"
FOLDER = "/srv/search"
PYTHON = "/opt/orch/bin/python"

MODEL = {"target": "emb.py:Embedder", "name": "search"}
COMMAND = {
    "command": ["python", "api_server.py", "--listen", "127.0.0.1:{port}"],
    "name": "speech",
    "replicas": 3,
    "vram_per_replica": "7GiB",
    "health": "/v1/health",
}
GATEWAYS = tuple(Server(f"g{number}", f"unix:/run/orch/search/g{number}.http") for number in range(2))
WORKERS = tuple(Server(f"r{number}", f"127.0.0.1:{9100 + number}") for number in range(3))
LEAVING = (*WORKERS[:2], Server("r2", "127.0.0.1:9102", draining=True))


@dataclass(frozen=True)
class Case:
    """name: of its folder. files: makes them anew, by file name."""

    name: str
    files: Callable[[], Mapping[str, str]]


def config(**settings: Any) -> Config:
    """As from an orch.toml."""
    return resolve(file=settings).config


def nginx(name: str, settings: Mapping[str, Any], servers: tuple[Server, ...], **options: Any) -> Case:
    """One nginx.conf."""
    return Case(
        name, lambda: {"nginx.conf": render_nginx(Site(config(**settings), servers), Options(folder=FOLDER, **options))}
    )


def haproxy(name: str, settings: Mapping[str, Any], servers: tuple[Server, ...], **options: Any) -> Case:
    """One haproxy.cfg."""
    return Case(
        name,
        lambda: {"haproxy.cfg": render_haproxy(Site(config(**settings), servers), Options(folder=FOLDER, **options))},
    )


def unit_files(name: str, settings: Mapping[str, Any], **options: Any) -> Case:
    """A service, and what belongs to it."""
    chosen = systemd.Options(python=PYTHON, settings=f"{FOLDER}/orch.toml", directory=FOLDER, **options)
    return Case(name, lambda: systemd.units(config(**settings), chosen))


def installed() -> dict[str, str]:
    """All that an install writes for a command behind nginx, but its settings, by the last two parts of its path."""
    units = systemd.Options(python=PYTHON, settings=f"{FOLDER}/orch.toml", directory=FOLDER, socket=False)
    front = Options(server_name="speech.example.org", tls_cert=CERT, tls_key=KEY)
    wanted = layout.Wanted(config(**COMMAND), "", units, "nginx", front)
    return {"-".join(file.path.split("/")[-2:]): file.text for file in layout.files(wanted) if not file.has_env}


CASES = (
    nginx("01-nginx-model", MODEL, GATEWAYS[:1]),
    nginx(
        "02-nginx-model-tls", {**MODEL, "gateways": 2, "http_max_body": "1MiB"}, GATEWAYS,
        tls_cert=CERT, tls_key=KEY, server_name="search.example.org", rate=50, allow=("127.0.0.1", "10.0.0.0/8"),
    ),
    nginx("03-nginx-commands", COMMAND, LEAVING),
    nginx("04-nginx-standalone", COMMAND, WORKERS, standalone=True, retry_posts=True, keepalive=0),
    nginx("05-nginx-nobody", COMMAND, ()),
    haproxy("06-haproxy-commands", COMMAND, LEAVING, per_server=1),
    haproxy("07-haproxy-model-tls", {**MODEL, "gateways": 2}, GATEWAYS, tls_cert=BOTH, rate=50),
    unit_files("08-systemd", {**MODEL, "drain_timeout": "1m"}),
    unit_files("09-systemd-user", MODEL, user=True, socket=False),
    unit_files("10-systemd-commands", {**COMMAND, "device": "cpu"}, socket=False, watchdog_s=10.0, memory_max="48G"),
    Case(
        "11-compose",
        lambda: {
            "compose.yaml": compose(
                config(**MODEL, device="cuda:0,1", drain_timeout="1m", set={"dtype": "float16", "path": "$HOME"}),
                Choices(),
                image="orch:1",
            )
        },
    ),
    Case(
        "12-compose-commands",
        lambda: {
            "compose.yaml": compose(
                config(**COMMAND, tls_cert="cert.pem", tls_key="key.pem"),
                Choices(gpus=1, publish="0.0.0.0:443"),
                image="speech:1",
            )
        },
    ),
    Case("13-kubernetes", lambda: {"manifest.yaml": kubernetes(config(**MODEL), Choices(), image="orch:1", pods=2)}),
    Case(
        "14-kubernetes-all",
        lambda: {
            "manifest.yaml": kubernetes(
                config(
                    **MODEL, grpc="0.0.0.0:8001", tls_cert="cert.pem", tls_key="key.pem", load_timeout="5m",
                    set={"dtype": "float16"},
                ),
                Choices(gpus=2, publish="0.0.0.0:443"),
                image="orch:1",
                claim="models",
            )
        },
    ),
    Case(
        "15-kubernetes-commands",
        lambda: {"manifest.yaml": kubernetes(config(**COMMAND), Choices(), image="speech:1")},
    ),
    Case("16-install-commands", installed),
)  # fmt: skip


def kept(case: Case) -> dict[str, str]:
    """The files in its folder."""
    return {path.name: path.read_text() for path in sorted((HERE / case.name).iterdir())}


def main() -> None:
    """Write all of them, and remove what is no case any more."""
    for folder in HERE.iterdir():
        if folder.is_dir() and folder.name[0].isdigit():
            shutil.rmtree(folder)
    for case in CASES:
        folder = HERE / case.name
        folder.mkdir()
        for name, text in case.files().items():
            (folder / name).write_text(text)


if __name__ == "__main__":
    main()
