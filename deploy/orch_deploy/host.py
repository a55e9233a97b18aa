"""The host that an instance is installed on: its files, its users, and systemd's programs. Decides nothing."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from orch.errors import ConfigError
from orch.whole import write_whole
from orch_deploy import installing, layout, steps, systemd
from orch_deploy.steps import Do, Manifest, Step

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """This host, or a folder that is to become one (`root`)."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root.absolute() if root is not None else None

    def facts(self, name: str) -> installing.Host:
        """What is known of it for an instance."""
        own = (f"{layout.STATE}/{name}", layout.STATE, layout.CACHE, layout.RUN)
        unit = systemd.unit_name(name)
        return installing.Host(
            self.found,
            has_user=self._has_user(),
            active=frozenset(self._active((f"{unit}-nginx.service", f"{unit}.socket", f"{unit}.service"))),
            directories=frozenset(path for path in own if self._at(path).is_dir()),
            others={other: manifest for other, manifest in self._manifests() if other != name},
            root="" if self.root is None else str(self.root),
        )

    def manifest(self, name: str) -> Manifest | None:
        """What was installed under that name.

        Raises:
            ConfigError: there is a list, and it cannot be read.
        """
        path = layout.manifest_path(name)
        text = self.found(path)
        return None if text is None else steps.load(text, path)

    def shared_choices(self, name: str) -> dict[str, str | bool]:
        """The options of other instances that hold for that one, too."""
        return {
            key: value
            for other, manifest in self._manifests()
            if other != name
            for key, value in manifest.choices.items()
            if key in layout.SLICE_CHOICES
        }

    def found(self, path: str) -> str | None:
        """The text of a file; None: there is none.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            return self._at(path).read_text(encoding="utf-8", errors="surrogateescape")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as err:
            raise ConfigError(f"{self._at(path)} cannot be read: {err.strerror}; be root, or use --root") from err

    def perform(self, step: Step) -> None:
        """Do it.

        Raises:
            ConfigError: it cannot be done; what was done before stays, and the same command goes on from there.
        """
        try:
            match step.do:
                case Do.WRITE:
                    self._write(step)
                case Do.REMOVE:
                    self._at(step.path).unlink(missing_ok=True)
                case Do.CLEAR if self._at(step.path).is_dir():
                    shutil.rmtree(self._at(step.path))
                case Do.EMPTY if self._at(step.path).is_dir() and not any(self._at(step.path).iterdir()):
                    self._at(step.path).rmdir()
                case Do.RUN:
                    self._run(step)
        except OSError as err:
            where = err.filename or step.path
            raise ConfigError(f"{where}: {err.strerror}; be root, or use --root DIR to install into a folder") from err

    # --- inside --------------------------------------------------------------------------------------------------

    def _at(self, path: str) -> Path:
        return Path(path) if self.root is None else self.root / path.lstrip("/")

    def _write(self, step: Step) -> None:
        path = self._at(step.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        ready = path.with_name(f".{path.name}.orch")  # in its place it has its mode and its group at once
        write_whole(ready, step.text.encode("utf-8", "surrogateescape"))
        ready.chmod(step.mode)
        if os.geteuid() == 0:
            os.chown(ready, 0, self._gid(step.group))
        ready.replace(path)

    def _gid(self, group: str) -> int:
        if self.root is None:
            return grp.getgrnam(group).gr_gid
        for line in (self.found("/etc/group") or "").splitlines():
            name, _, number, *_ = [*line.split(":"), "", "", ""]
            if name == group:
                return int(number)
        return 0

    def _has_user(self) -> bool:
        if self.root is not None:
            return any(line.startswith("orch:") for line in (self.found("/etc/passwd") or "").splitlines())
        try:
            pwd.getpwnam(installing.USER)
        except KeyError:
            return False
        return True

    def _active(self, units: Iterable[str]) -> list[str]:
        """Of this host; one that is to become one runs nothing, and one without systemd neither."""
        if self.root is not None or not Path("/run/systemd/system").is_dir():
            return []
        systemctl = shutil.which("systemctl", path=PATH) or "systemctl"
        return [
            each for each in units if subprocess.run([systemctl, "is-active", "-q", each], check=False).returncode == 0
        ]

    def _manifests(self) -> list[tuple[str, Manifest]]:
        folder = self._at(layout.MANIFESTS)
        names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
        return [(name, manifest) for name in names if (manifest := self.manifest(name)) is not None]

    def _run(self, step: Step) -> None:
        program = shutil.which(step.command[0], path=PATH)
        if program is None:
            raise ConfigError(f"{step.command[0]} is not installed, and is needed: {' '.join(step.command)}")
        # No time limit: a start waits for the first replica, and the unit bounds that.
        environ = {**os.environ, "PATH": PATH, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [program, *step.command[1:]], env=environ, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode and not step.may_fail:
            said = " ".join((done.stderr or done.stdout).split())[-600:]
            raise ConfigError(f"`{' '.join(step.command)}` failed with {done.returncode}: {said}")
