"""The image: pinned, without root, and of the same shape as the files that run it think."""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

from orch.version import __version__
from orch_deploy.inside import MODEL_DIR, RUNTIME_DIR, STATE_DIR, UID

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"


def stages() -> list[list[tuple[str, str]]]:
    """Instructions and their arguments, stage by stage; what stands before the first FROM is a stage of its own."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    found: list[list[tuple[str, str]]] = [[]]
    for name, _, rest in (line.strip().partition(" ") for line in whole if line.strip()):
        assert name.isupper(), name
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def last(name: str) -> str:
    """The argument of an instruction in the last stage."""
    (only,) = [rest for each, rest in stages()[-1] if each == name]
    return only


def test_hadolint_is_content() -> None:
    """The linter of Dockerfiles, which has shellcheck within."""
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_base_is_a_pinned_runtime_of_cuda() -> None:
    """Not the latest of anything, and not the compilers."""
    arguments = dict(rest.split("=") for name, rest in stages()[0] if name == "ARG")
    base = next(rest for name, rest in stages()[1] if name == "FROM").split()[0]
    for name, value in arguments.items():
        base = base.replace(f"${{{name}}}", value)
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu\d\d\.\d\d", base), base


def test_it_runs_as_the_user_that_the_files_name() -> None:
    """By number, which Kubernetes can tell from root's; the directories are that user's."""
    assert last("USER") == f"{UID}:{UID}"
    made = next(rest for name, rest in stages()[-1] if name == "RUN")
    assert f"install -d -o {UID} -g {UID} -m 0700 {STATE_DIR} {RUNTIME_DIR}" in made
    assert last("WORKDIR") == MODEL_DIR
    environ = dict(re.findall(r"(\w+)=(\S+)", last("ENV")))
    assert (environ["ORCH_RUNTIME_DIR"], environ["ORCH_STATE_DIR"]) == (RUNTIME_DIR, STATE_DIR)


def test_it_is_well_when_orch_says_so() -> None:
    """No curl is needed, and no shell: what runs is a list of words."""
    words = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    assert words == ["orch", "status", "--check"]
    assert json.loads(last("ENTRYPOINT")) == ["orch"]
    assert json.loads(last("CMD")) == ["up", "--http", "0.0.0.0:8000"]
    assert last("EXPOSE") == "8000"


def test_what_is_built_is_what_is_sent() -> None:
    """.dockerignore lets through what the wheel is made of, and no more: no key, no environment, no history."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for path in [*packages, "pyproject.toml", "README.md", "LICENSE", "constraints.txt"]:
        assert any(path == each or path.startswith(each + "/") for each in sent), path
    assert all((ROOT / each).exists() for each in sent)
    copied = {rest.split()[0] for stage in stages() for name, rest in stage if name == "COPY" and "--from" not in rest}
    assert copied == {"constraints.txt", "."}


def test_its_tag_is_the_version() -> None:
    """The line to copy builds the image that the generated files name."""
    assert f"docker build -t orch:{__version__} ." in DOCKERFILE.read_text()
