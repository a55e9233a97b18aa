"""A proxy's own program: where it is, which version, and what it says of a configuration."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from orch.errors import ConfigError

# Where Debian puts them; not every user has it on PATH.
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"
RUN_S: Final = 20.0  # names in a configuration may have to be resolved
# What nginx says of the errors that only tell who checked: an ordinary user may not open port 80 or a log of root's.
NOT_ALLOWED: Final = re.compile(r"\[emerg\] (\d+#\d+: )?(bind|open|mkdir|chown)\(\).*\(13: Permission denied\)")
WRAPPER: Final = """pid {folder}/pid; error_log stderr; events {{}}
http {{
client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
include {file};
}}
"""


def find(name: str, binary: str | None = None) -> str:
    """The program to run. binary: one that the user has named.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which(binary or name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")
    if found is None:
        hint = "it is no program" if binary else f"install it (Debian: apt-get install {name}), or name it by --binary"
        raise ConfigError(f"{binary or name} cannot be found: {hint}")
    return found


def nginx_version(binary: str | None = None) -> tuple[int, int, int] | None:
    """Of the nginx that is installed, if one is."""
    try:
        said = run([find("nginx", binary), "-v"])[1]
    except ConfigError:
        return None
    found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def compiled_pid_path(binary: str | None = None) -> Path:
    """Where the installed nginx notes the number of its master, unless its configuration says otherwise."""
    found = re.search(r"--pid-path=(\S+)", run([find("nginx", binary), "-V"])[1])
    return Path(found[1] if found else "/run/nginx.pid")


def check_nginx(text: str, *, standalone: bool, binary: str | None = None) -> None:
    """Have nginx read a configuration, or a part of one within a minimal whole.

    Raises:
        ConfigError: it refuses it, with its words, or cannot be found.
    """
    program = find("nginx", binary)
    with tempfile.TemporaryDirectory(prefix="orch-") as folder:
        Path(folder).chmod(0o711)  # its workers' user has to pass
        file = Path(folder) / "staged.conf"
        file.write_text(text)
        whole = file
        if not standalone:
            whole = Path(folder) / "whole.conf"
            whole.write_text(WRAPPER.format(folder=folder, file=file))
        code, said = run([program, "-t", "-c", str(whole), "-p", folder])
    if code and not _only_rights(said):
        raise ConfigError(f"nginx refuses the configuration: {complaint(said, str(file))}")


def _only_rights(said: str) -> bool:
    """Whether all that nginx misses is what this user may not do; who runs it may."""
    return os.geteuid() != 0 and "syntax is ok" in said and NOT_ALLOWED.search(said) is not None


def check_whole_nginx(binary: str | None = None) -> None:
    """Have nginx read the configuration that it runs with.

    Raises:
        ConfigError: it refuses it, with its words.
    """
    code, said = run([find("nginx", binary), "-t"])
    if code and not _only_rights(said):
        raise ConfigError(f"nginx refuses its whole configuration: {complaint(said)}")


def check_haproxy(text: str, *, binary: str | None = None) -> None:
    """Have HAProxy read a configuration.

    Raises:
        ConfigError: it refuses it, with its words, or cannot be found.
    """
    program = find("haproxy", binary)
    with tempfile.TemporaryDirectory(prefix="orch-") as folder:
        file = Path(folder) / "staged.cfg"
        file.write_text(text)
        code, said = run([program, "-c", "-f", str(file)])
    if code:
        raise ConfigError(f"HAProxy refuses the configuration: {complaint(said, str(file))}")


def complaint(said: str, staged: str = "") -> str:
    """The line of a program's output that says what is wrong. staged: a file whose name would tell the user nothing."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\[(emerg|alert|ALERT)\]", line)] or lines or ["it says nothing"]
    line = re.sub(r"^.*?\[(emerg|alert|ALERT)\]\s*(\(\d+\)\s*:|\d+#\d+:)?\s*", "", telling[0])
    return line.replace(staged, "the generated file") if staged else line


def run(words: list[str], within_s: float = RUN_S) -> tuple[int, str]:
    """A program's exit code, and all that it said.

    Raises:
        ConfigError: it cannot be started, or does not end.
    """
    try:
        done = subprocess.run(
            words,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=within_s,
        )
    except OSError as err:
        raise ConfigError(f"{words[0]} cannot be started: {err.strerror}") from err
    except subprocess.TimeoutExpired:
        raise ConfigError(f"`{' '.join(words)}` has not ended within {within_s:g} s") from None
    return done.returncode, done.stdout.decode(errors="replace")
