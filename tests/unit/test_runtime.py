"""Where an instance keeps its sockets, and that one name has one supervisor."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orch import runtime
from orch.errors import AlreadyRunning, NotRunning, RuntimeDirError
from orch.runtime import MAX_SOCKET_PATH_BYTES, RuntimeDir


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose one place is a directory that is not there yet."""
    return {"ORCH_RUNTIME_DIR": str(tmp_path / "run")}


@pytest.fixture
def short() -> Iterator[Path]:
    """The last resort, without what a test has left in it."""
    base = runtime.short_base()
    before = set(base.iterdir()) if base.exists() else None
    yield base
    if base.exists():
        assert before is not None or not any(base.iterdir()), "a test has left something there"
        assert before is None or set(base.iterdir()) <= before
        if before is None:
            base.rmdir()


# --- where ---------------------------------------------------------------------------------------------------------


def test_places_are_sought_in_the_documented_order() -> None:
    """The user's own, the system's, and one that is always there."""
    assert runtime.bases({"XDG_RUNTIME_DIR": "/run/user/7"}) == [
        Path("/run/user/7/orch"),
        Path("/run/orch"),
        Path(f"/tmp/orch-{os.getuid()}"),
    ]
    assert runtime.bases({}) == [Path("/run/orch"), Path(f"/tmp/orch-{os.getuid()}")]


def test_a_place_that_was_chosen_is_the_only_one() -> None:
    """Relative to where the command was typed."""
    environ = {"ORCH_RUNTIME_DIR": "here", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert runtime.bases(environ) == [Path.cwd() / "here"]
    assert runtime.bases({"ORCH_RUNTIME_DIR": "", "XDG_RUNTIME_DIR": ""}) == runtime.bases({})


def test_the_first_place_that_can_be_written_is_taken(tmp_path: Path) -> None:
    """A file where a directory should be is none."""
    (tmp_path / "orch").write_text("in the way")
    taken = RuntimeDir("unit-test-name", {"XDG_RUNTIME_DIR": str(tmp_path)})
    try:
        assert taken.path in (Path("/run/orch/unit-test-name"), runtime.short_base() / "unit-test-name")
    finally:
        taken.remove()


def test_where_no_place_can_be_used_every_reason_is_given(tmp_path: Path) -> None:
    """With the setting that helps."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeDirError) as caught:
        RuntimeDir("default", {"ORCH_RUNTIME_DIR": str(tmp_path / "file")})
    message = str(caught.value)
    assert f"{tmp_path}/file/default: " in message
    assert "set ORCH_RUNTIME_DIR" in message


def test_logs_are_kept_where_state_belongs() -> None:
    """They outlive the instance, so not in the runtime directory."""
    assert runtime.log_dir("prod", {"ORCH_STATE_DIR": "/var/log/orch"}) == Path("/var/log/orch/prod")
    assert runtime.log_dir("prod", {"XDG_STATE_HOME": "/home/me/state"}) == Path("/home/me/state/orch/prod")
    assert runtime.log_dir("prod", {}) == Path.home() / ".local/state/orch/prod"


# --- long paths ----------------------------------------------------------------------------------------------------


def test_a_path_of_107_bytes_is_used_and_one_of_108_is_not() -> None:
    """The kernel takes no more for a socket, so such an instance gets a short, hashed directory."""
    longest = MAX_SOCKET_PATH_BYTES - len(runtime.LONGEST_FILE)
    base = Path("/b" * 20)
    fitting = "x" * (longest - len(str(base)) - 1)
    assert runtime.directory_in(base, fitting) == base / fitting
    moved = runtime.directory_in(base, fitting + "x")
    assert moved.parent == runtime.short_base()
    assert len(str(moved) + runtime.LONGEST_FILE) <= MAX_SOCKET_PATH_BYTES
    umlauts = "ü" * (len(fitting) // 2 + 1)
    assert runtime.directory_in(base, umlauts).parent == runtime.short_base(), "bytes count, not letters"


def test_different_long_paths_get_different_directories_and_the_same_the_same() -> None:
    """A client finds the supervisor by computing the same."""
    one, other = Path("/" + "a" * 120), Path("/" + "b" * 120)
    assert runtime.directory_in(one, "x") == runtime.directory_in(one, "x")
    assert len({runtime.directory_in(base, name) for base in (one, other) for name in "xy"}) == 4


def test_an_instance_under_a_long_path_can_be_made_and_found(tmp_path: Path, short: Path) -> None:
    """And says that it has moved."""
    environ = {"ORCH_RUNTIME_DIR": str(tmp_path / ("deep" * 30))}
    made = RuntimeDir("default", environ)
    assert made.path.parent == short
    assert made.moved_from == tmp_path / ("deep" * 30) / "default"
    (made.path / runtime.FRONT).touch()
    assert runtime.find("default", environ) == made.path
    made.remove()
    assert not made.path.exists()


# --- one name, one supervisor --------------------------------------------------------------------------------------


def test_a_directory_belongs_to_its_user_alone(environ: dict[str, str]) -> None:
    """Whoever can open a socket can send requests."""
    made = RuntimeDir("default", environ)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700
    assert made.moved_from is None
    made.remove()


def test_two_supervisors_of_one_name_cannot_run(environ: dict[str, str]) -> None:
    """The second is told who the first is, and disturbs nothing of it."""
    first = RuntimeDir("default", environ)
    (first.path / runtime.FRONT).touch()
    with pytest.raises(AlreadyRunning) as caught:
        RuntimeDir("default", environ)
    message = str(caught.value)
    assert f"pid {os.getpid()}" in message
    assert "orch down --name default" in message
    assert (first.path / runtime.FRONT).exists()
    other = RuntimeDir("other", environ)
    other.remove()
    first.remove()
    RuntimeDir("default", environ).remove()


def test_nothing_is_left_when_an_instance_is_gone(environ: dict[str, str]) -> None:
    """Neither sockets nor the lock."""
    made = RuntimeDir("default", environ)
    (made.path / runtime.FRONT).touch()
    made.remove()
    assert list(made.path.parent.iterdir()) == []


def test_what_a_killed_predecessor_left_is_cleaned_away(environ: dict[str, str], tmp_path: Path) -> None:
    """Its lock fell with it; stale sockets would mislead clients, and a link would mislead us."""
    base = tmp_path / "run"
    (base / "default" / "deep").mkdir(parents=True)
    (base / "default" / runtime.FRONT).touch()
    (base / "default.lock").write_text("999999\n")
    made = RuntimeDir("default", environ)
    assert list(made.path.iterdir()) == []
    assert (base / "default.lock").read_text() == f"{os.getpid()}\n"
    made.remove()


def test_a_link_planted_as_the_directory_is_not_followed(environ: dict[str, str], tmp_path: Path) -> None:
    """What it points to is left alone."""
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (tmp_path / "run" / "default").symlink_to(tmp_path / "precious")
    with pytest.raises(RuntimeDirError):
        RuntimeDir("default", environ)
    assert (tmp_path / "precious" / "file").exists()


def test_a_client_finds_the_running_instance(environ: dict[str, str]) -> None:
    """By its sockets; a name that nobody runs is answered with where it was sought."""
    with pytest.raises(NotRunning) as caught:
        runtime.find("default", environ)
    assert environ["ORCH_RUNTIME_DIR"] in str(caught.value)
    assert "orch up TARGET --name default" in str(caught.value)
    made = RuntimeDir("default", environ)
    with pytest.raises(NotRunning):
        runtime.find("default", environ)
    (made.path / runtime.CONTROL).touch()
    assert runtime.find("default", environ) == made.path
    assert runtime.front_endpoint(made.path) == f"unix://{made.path}/front.sock"
    assert runtime.back_path(made.path) == f"{made.path}/back.sock"
    made.remove()
