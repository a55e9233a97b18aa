"""The file through which a model's warm-up samples become requests."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from orch.errors import ConfigError
from orch.samples import load_samples, write_samples
from orch.wire import FRAME_BYTES


def written(path: Path, values: list[Any]) -> Path:
    """A file of samples."""
    write_samples(path / "samples", values, "Embedder")
    return path / "samples"


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    """Small and large, plain and not."""
    values = ["a sentence", {"n": 3, "pair": (1, 2.5)}, b"x" * (FRAME_BYTES + 1), None]
    assert load_samples(written(tmp_path, values)) == values


def test_arrays_come_back_with_their_shape(tmp_path: Path) -> None:
    """Also those that travel in frames of their own."""
    small, large = np.arange(6, dtype=np.int16).reshape(2, 3), np.random.default_rng(0).random((64, 1024))
    found = load_samples(written(tmp_path, [small, [large, "caption"]]))
    assert found[0].dtype == small.dtype
    assert (found[0] == small).all()
    assert (found[1][0] == large).all()
    assert found[1][1] == "caption"


def test_only_the_user_may_read_them(tmp_path: Path) -> None:
    """They are somebody's data. Nothing else is left beside the file."""
    path = written(tmp_path, ["secret"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_who_writes_them_wins(tmp_path: Path) -> None:
    """Every replica would write the same."""
    path = written(tmp_path, ["first"])
    write_samples(path, ["second"], "Embedder")
    assert load_samples(path) == ["first"]


@pytest.mark.parametrize("values", [[], ()])
def test_a_model_without_samples_is_named(tmp_path: Path, values: Any) -> None:
    """With what to do instead."""
    path = written(tmp_path, values)
    with pytest.raises(ConfigError, match=r"Embedder's warmup\(\) returns no samples.* --replicas auto or a number"):
        load_samples(path)


def test_a_sample_that_cannot_travel_is_named(tmp_path: Path) -> None:
    """Which one, where in it, and what it is: in one line."""
    path = written(tmp_path, ["good", {"when": object()}])
    with pytest.raises(ConfigError, match=r"sample 2 of Embedder's warmup\(\).*'when'.*object cannot travel") as caught:
        load_samples(path)
    assert "\n" not in str(caught.value)


def test_samples_beyond_the_limit_are_left_out(tmp_path: Path) -> None:
    """A few are enough; a first one that is too large is said to be."""
    write_samples(tmp_path / "few", [b"x" * 8] * 5, "Embedder", max_bytes=30)
    assert load_samples(tmp_path / "few") == [b"x" * 8] * 3
    write_samples(tmp_path / "none", [b"x" * 99], "Embedder", max_bytes=30)
    with pytest.raises(ConfigError, match=r"the first sample of Embedder's warmup\(\) is larger than 30 B; for"):
        load_samples(tmp_path / "none")


def test_a_file_that_was_never_written_says_where_it_should_be(tmp_path: Path) -> None:
    """The worker could not write it, and its log says why."""
    with pytest.raises(ConfigError, match=f"no warm-up samples at {tmp_path / 'none'} .*log of replica 0"):
        load_samples(tmp_path / "none")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"\xc1",
        msgpack.packb([1, 2]),
        msgpack.packb({"format": 2, "samples": []}),
        msgpack.packb({"format": 1}),
        msgpack.packb({"format": 1, "samples": []}),
        msgpack.packb({"format": 1, "samples": [1]}),
        msgpack.packb({"format": 1, "samples": [[b"\xc1", []]]}),
        msgpack.packb({"format": 1, "samples": [["text", 3]]}),
        msgpack.packb({"format": 1, "samples": 7}),
    ],
)
def test_what_is_no_file_of_samples_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are, it is one error, in one line."""
    path = tmp_path / "samples"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no warm-up samples of this version of orch"):
        load_samples(path)


def test_a_folder_that_is_not_there_is_the_writers_error(tmp_path: Path) -> None:
    """The worker logs it and goes on."""
    with pytest.raises(OSError, match="No such file"):
        write_samples(tmp_path / "missing" / "samples", ["one"], "Embedder")
