"""`orch deploy install`, `upgrade` and `uninstall` in a folder that is to become a host, by systemd's programs."""

from __future__ import annotations

import stat
from pathlib import Path

from orch.errors import Exit
from tests.process.harness import Place

SETTINGS = 'target = "m:M"\nname = "web"\ndevice = "cpu"\n'
# What a host has of users before anybody is added.
USERS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\nwww-data:x:33:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nwww-data:*:19000:0:99999:7:::\n",
    "etc/gshadow": "root:*::\nwww-data:!::\n",
}
# The lock and the backups of whoever edits these.
OF_USERS = {"etc/.pwd.lock", *(f"{name}-" for name in USERS)}


def a_host(place: Place) -> Path:
    """A folder with a host's users, and settings to install."""
    (place.base / "web.toml").write_text(SETTINGS)
    root = place.base / "host"
    (root / "etc").mkdir(parents=True)
    for name, text in USERS.items():
        (root / name).write_text(text)
    return root


def files(root: Path) -> dict[str, str]:
    """Everything there that is no directory: a link by where it leads, a file by its text."""
    return {
        str(path.relative_to(root)): f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
        for path in root.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def deploy(place: Place, root: Path, *words: str, code: int = Exit.OK) -> list[str]:
    """Run one of the commands; what it printed."""
    done = place.orch("deploy", *words, f"--root={root}")
    assert done.code == code, done
    return (done.out + done.err).splitlines()


def test_a_clean_host_is_clean_again_afterwards(place: Place) -> None:
    """A dry run does nothing, install what that told, a second one nothing; uninstall leaves nothing."""
    root = a_host(place)
    told = deploy(place, root, "install", "--config=web.toml", "--proxy=nginx", "--dry-run")
    assert "nothing was done: --dry-run" in told
    assert files(root) == USERS
    done = deploy(place, root, "install", "--config=web.toml", "--proxy=nginx")
    assert [line for line in told if line not in done] == ["nothing was done: --dry-run"]
    found = files(root)
    assert found["etc/orch/web.toml"] == SETTINGS
    assert found["etc/systemd/system/sockets.target.wants/orch-web.socket"] == "-> /etc/systemd/system/orch-web.socket"
    assert "orch:x:" in found["etc/passwd"]
    assert {line.split(":")[0]: line.split(":")[3] for line in found["etc/group"].splitlines()}["orch"] == "www-data"
    assert stat.S_IMODE((root / "etc/orch/web.keys.json").stat().st_mode) == 0o640
    assert stat.S_IMODE((root / "run/orch").stat().st_mode) == 0o750
    assert deploy(place, root, "install", "--config=web.toml") == ["nothing to do"]
    deploy(place, root, "uninstall", "--name=web")
    left = files(root)
    assert {name: left.get(name) for name in USERS} == USERS
    assert set(left) - OF_USERS == set(USERS)


def test_an_upgrade_keeps_what_you_have_changed(place: Place) -> None:
    """New settings are written, a unit of yours stays with the new one beside it, and uninstall says what it left."""
    root = a_host(place)
    unit = root / "etc/systemd/system/orch-web.service"
    deploy(place, root, "install", "--config=web.toml")
    unit.write_text(unit.read_text() + "# mine\n")
    (place.base / "web.toml").write_text(SETTINGS + "drain_timeout = 90\n")
    told = deploy(place, root, "upgrade", "--config=web.toml", "--diff")
    assert "        | +drain_timeout = 90" in told
    assert "drain_timeout = 90" in (root / "etc/orch/web.toml").read_text()
    assert unit.read_text().endswith("# mine\n")
    assert "TimeoutStopSec=120" in unit.with_name("orch-web.service.new").read_text()
    told = deploy(place, root, "uninstall", "--name=web")
    assert any(line.startswith("keep    /etc/systemd/system/orch-web.service was changed") for line in told)
    assert set(files(root)) - OF_USERS == {
        *USERS,
        "etc/systemd/system/orch-web.service",
        "etc/orch/installed/web.json",
    }
    deploy(place, root, "uninstall", "--name=web", "--purge")
    assert set(files(root)) - OF_USERS == set(USERS)


def test_mistakes_are_told_in_a_line(place: Place) -> None:
    """Nothing installed, no settings, a certificate for nobody or that is not there, a host that cannot be written."""
    root = a_host(place)
    assert (
        "no instance 'web' was installed" in deploy(place, root, "uninstall", "--name=web", code=Exit.NOT_RUNNING)[-1]
    )
    assert "no instance 'web' was installed" in deploy(place, root, "upgrade", "--name=web", code=Exit.NOT_RUNNING)[-1]
    assert "no such file" in deploy(place, root, "install", "--config=none.toml", code=Exit.BAD_CONFIG)[-1]
    told = deploy(place, root, "install", "--config=web.toml", "--tls-cert=c.pem", code=Exit.BAD_CONFIG)
    assert "none is chosen: add --proxy" in told[-1]
    words = ("install", "--config=web.toml", "--proxy=nginx", "--tls-cert=c.pem", "--dry-run")
    assert "c.pem: there is no such file" in place.orch("deploy", *words).error_line()
    nowhere = place.base / "web.toml"
    assert "web.toml" in deploy(place, nowhere, "install", "--config=web.toml", code=Exit.BAD_CONFIG)[-1]
