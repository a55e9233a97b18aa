"""Each generated file is read by the program that it is for, or checked by the schema that this program publishes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from orch_deploy.checking import check_haproxy, check_nginx, nginx_version
from orch_deploy.nginx import KEEPS_IDLE
from tests.golden.cases import CASES, CERT, FOLDER, PYTHON, Case

# What stands in the files for a place that is not here: the oldest Kubernetes that still gets mended, and the newest.
KUBERNETES = ("1.33", "1.37")
# Of https://github.com/prometheus-operator/prometheus-operator, Documentation/api-reference: an endpoint's fields.
ENDPOINT = {"port", "path", "interval", "scheme", "tlsConfig", "authorization"}


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate, for what the files name by paths of no machine."""
    folder = tmp_path_factory.mktemp("golden")
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-subj", "/CN=search.example.org", "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"),
    )  # fmt: skip
    (folder / "both.pem").write_text((folder / "cert.pem").read_text() + (folder / "key.pem").read_text())
    return folder


def run(*words: str, **environ: str) -> str:
    """What a program says; that it is content is asserted."""
    done = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=30)
    said = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(words)}: {said}"
    return said


def moved(text: str, here: Path) -> str:
    """With paths of this machine, and nothing else changed."""
    for path, instead in (
        (str(Path(CERT).parent), here), (FOLDER, here), ("/var/log/nginx", here), (PYTHON, sys.executable),
        ("/run/secrets/tls_cert", here / "cert.pem"), ("/run/secrets/tls_key", here / "key.pem"),
        ("/tls.crt", "/cert.pem"), ("/tls.key", "/key.pem"),
    ):  # fmt: skip
        text = text.replace(str(path), str(instead))
    return text


def nginx(files: Mapping[str, str], here: Path) -> None:
    """Nginx -t."""
    text = moved(files["nginx.conf"], here)
    if (nginx_version() or (0, 0, 0)) < KEEPS_IDLE:  # what is for a later one than is here cannot be checked here
        text = re.sub(r"^ *(http2 on|keepalive_min_timeout \w+);\n", "", text, flags=re.MULTILINE)
    check_nginx(text, standalone="worker_processes" in text)


def haproxy(files: Mapping[str, str], here: Path) -> None:
    """Haproxy -c."""
    check_haproxy(moved(files["haproxy.cfg"], here))


def systemd(files: Mapping[str, str], here: Path) -> None:
    """Systemd-analyze verify: not a word."""
    folder = here / "units"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(moved(text, here))
    services = [folder / name for name in files if name.endswith(".service")]
    whose = "--user" if "default.target" in services[0].read_text() else "--system"
    words = ("systemd-analyze", whose, "--man=no", "--recursive-errors=no", "verify", *map(str, services))
    assert run(*words, XDG_RUNTIME_DIR=str(here)) == ""


def compose(files: Mapping[str, str], here: Path) -> None:
    """The specification's schema, as check-jsonschema brings it; docker's own reader where there is one."""
    file = here / "compose.yaml"
    file.write_text(files["compose.yaml"])
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file))
    if subprocess.run(["sh", "-c", "docker compose version"], capture_output=True, check=False).returncode == 0:
        run("docker", "compose", "--file", str(file), "config", "--quiet")
    found = yaml.safe_load(files["compose.yaml"])
    if "configs" in found:
        text = found["configs"]["nginx"]["content"].replace("$$", "$")
        assert "$$" not in text
        nginx({"nginx.conf": text}, here)


def kubernetes(files: Mapping[str, str], here: Path) -> None:
    """Kubernetes' own schemas, unknown fields refused. A PodMonitor's is the operator's: its fields are compared."""
    for document in yaml.safe_load_all(files["manifest.yaml"]):
        if document["kind"] == "PodMonitor":
            assert document["apiVersion"] == "monitoring.coreos.com/v1"
            assert set(document["spec"]) == {"selector", "podMetricsEndpoints"}
            assert all(set(endpoint) <= ENDPOINT for endpoint in document["spec"]["podMetricsEndpoints"])
            continue
        for version in KUBERNETES:
            kubernetes_validate.validate(document, version, strict=True)
        if document["kind"] == "ConfigMap" and "nginx.conf" in document["data"]:
            nginx({"nginx.conf": document["data"]["nginx.conf"]}, here)


def install(files: Mapping[str, str], here: Path) -> None:
    """Units and the proxy's file. Those of users and directories are read by systemd's programs in test_install.py."""
    systemd({name.removeprefix("system-"): text for name, text in files.items() if name.startswith("system-")}, here)
    nginx({"nginx.conf": files["conf.d-orch-speech.conf"]}, here)


CHECKERS: Mapping[str, Callable[[Mapping[str, str], Path], None]] = {
    "nginx": nginx, "haproxy": haproxy, "systemd": systemd, "compose": compose, "kubernetes": kubernetes,
    "install": install,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_its_own_checker_is_content(case: Case, here: Path) -> None:
    """With every file of every case."""
    CHECKERS[case.name.split("-")[1]](dict(case.files()), here)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("03-nginx-commands", "least_conn;", "least_con;"),
        ("06-haproxy-commands", "leastconn", "leastcon"),
        ("08-systemd", "Type=notify", "Typ=notify"),
        ("11-compose", "shm_size", "shm_sice"),
        ("12-compose-commands", "least_conn;", "least_con;"),
        ("13-kubernetes", "automountServiceAccountToken", "automountServiceAccountTokens"),
        ("15-kubernetes-commands", "least_conn;", "least_con;"),
        ("16-install-commands", "RestartSec=2", "RestartSek=2"),
        ("16-install-commands", "least_conn;", "least_con;"),
    ],
)
def test_a_checker_sees_a_slip(name: str, right: str, wrong: str, here: Path) -> None:
    """One that would pass anything proves nothing."""
    case = next(case for case in CASES if case.name == name)
    files = {file: text.replace(right, wrong) for file, text in case.files().items()}
    assert files != case.files()
    with pytest.raises(Exception, match=r"least_con|leastcon|Typ|RestartSek|shm_sice|automountServiceAccountTokens"):
        CHECKERS[name.split("-")[1]](files, here)
