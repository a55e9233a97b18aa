"""Settings: what each source may say, which one wins, and what is said of a bad one."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch.config import SETTINGS, SHOWN_MAX, Config, Resolved, check, format_value, resolve
from orch.errors import ConfigError

GIB = 2**30


def refusal_of(name: str, value: object, source: str = "orch.toml") -> str:
    """The message of the ConfigError that this value gives."""
    with pytest.raises(ConfigError) as caught:
        check(name, value, source)
    return str(caught.value)


def replicas_of(resolved: Resolved) -> tuple[object, str]:
    """The setting most histories are about, and where it came from."""
    return resolved.config.replicas, resolved.origins["replicas"]


def test_each_source_overrides_the_one_before_it() -> None:
    """Defaults, then the file, then the environment, then flags; each value remembers where it came from."""
    file, environ, flags = {"replicas": 2}, {"ORCH_REPLICAS": "3"}, {"replicas": "4"}

    assert replicas_of(resolve()) == ("auto", "default")
    assert replicas_of(resolve(file=file)) == (2, "orch.toml")
    assert replicas_of(resolve(environ=environ, file=file)) == (3, "ORCH_REPLICAS")
    assert replicas_of(resolve(flags, environ, file)) == (4, "--replicas")


def test_the_file_is_called_by_the_name_it_was_given() -> None:
    """Somebody with three settings files is told which one is meant."""
    assert replicas_of(resolve(file={"replicas": 2}, file_name="/etc/orch/prod.toml"))[1] == "/etc/orch/prod.toml"
    with pytest.raises(ConfigError, match=r"/etc/orch/prod\.toml"):
        resolve(file={"replicas": 0}, file_name="/etc/orch/prod.toml")


def test_what_was_not_given_leaves_the_layer_below_alone() -> None:
    """Flags nobody wrote arrive as None or (), variables nobody filled as empty text."""
    resolved = resolve({"replicas": None, "set": ()}, {"ORCH_REPLICAS": ""}, {"replicas": 2, "set": {"depth": 1}})

    assert replicas_of(resolved) == (2, "orch.toml")
    assert resolved.config.set == {"depth": 1}


def test_a_bad_value_names_key_value_range_and_source() -> None:
    """Wherever it comes from, the message has all that is needed to mend it."""
    for flags, environ, file, source in (
        ({"replicas": "0"}, {}, {}, "--replicas"),
        ({}, {"ORCH_REPLICAS": "0"}, {}, "ORCH_REPLICAS"),
        ({}, {}, {"replicas": 0}, "orch.toml"),
    ):
        with pytest.raises(ConfigError) as caught:
            resolve(flags, environ, file)
        message = "replicas = 0 (from {}): use auto, best, or a whole number from 1 to 4096"
        assert str(caught.value) == message.format(source)


def test_a_bad_value_is_an_error_even_where_a_better_source_overrides_it() -> None:
    """A mistake in the file does not lie in wait for the day the flag is left out."""
    with pytest.raises(ConfigError, match=r"orch\.toml"):
        resolve({"replicas": "4"}, {}, {"replicas": "many"})


GOOD: list[tuple[str, object, object]] = [
    ("target", "embedder.py:Embedder", "embedder.py:Embedder"),
    ("target", "/srv/my models/embedder.py:Embedder", "/srv/my models/embedder.py:Embedder"),
    ("target", " pkg.mod:make ", "pkg.mod:make"),
    ("name", "prod-2.b_C", "prod-2.b_C"),
    ("name", "x" * 64, "x" * 64),
    ("replicas", "auto", "auto"),
    ("replicas", "AUTO", "auto"),
    ("replicas", "500", 500),
    ("replicas", 4096, 4096),
    ("device", "CUDA", "cuda"),
    ("device", "cuda:0, 01", "cuda:0,1"),
    ("vram_per_replica_bytes", "7GiB", 7 * GIB),
    ("vram_per_replica_bytes", "7GB", 7_000_000_000),
    ("vram_per_replica_bytes", 7 * GIB, 7 * GIB),
    ("gpu_utilization", "0.9", 0.9),
    ("gpu_utilization", 1, 1.0),
    ("max_batch_size", "1024", 1024),
    ("max_batch_wait_s", 0, 0.0),
    ("max_batch_wait_s", "2ms", 0.002),
    ("max_batch_wait_s", "0.002", 0.002),
    ("queue_limit", 10_000_000, 10_000_000),
    ("timeout_s", "5m", 300.0),
    ("timeout_s", "1.5 min", 90.0),
    ("load_timeout_s", "24h", 86_400.0),
    ("drain_timeout_s", "0", 0.0),
    ("drain_timeout_s", "30s", 30.0),
    ("max_payload_bytes", "256MiB", 256 * 2**20),
    ("log_max_bytes", "10MiB", 10 * 2**20),
    ("listen", "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
    ("listen", "tcp://localhost:5555", "tcp://127.0.0.1:5555"),
    ("listen", "tcp://127.9.9.9:1", "tcp://127.9.9.9:1"),
    ("listen", "ipc:///run/my.sock", "ipc:///run/my.sock"),
    ("set", ("layers=4", "rate=1e-3", "fast=true"), {"layers": 4, "rate": 0.001, "fast": True}),
    ("set", ("text=a=b", "empty=", "none=null"), {"text": "a=b", "empty": "", "none": None}),
    ("set", ("mask=0xff", "many=1_000", "quoted='7'"), {"mask": 255, "many": 1000, "quoted": "7"}),
    ("set", ('names=["a", "b"]', "sizes={small = 1}"), {"names": ["a", "b"], "sizes": {"small": 1}}),
    ("set", ("day=2024-05-01", "zip=007", "rate=nan", "big=Infinity"),
     {"day": "2024-05-01", "zip": "007", "rate": "nan", "big": "Infinity"}),
    ("set", ("note=1 # one", "lines=1\nb = 2"), {"note": "1 # one", "lines": "1\nb = 2"}),
    ("set", ("deep=" + "[" * 9_000,), {"deep": "[" * 9_000}),
    ("set", {"depth": 2, "names": ["a"], "table": {"x": 1.5}}, {"depth": 2, "names": ["a"], "table": {"x": 1.5}}),
    ("set", "layers=4  mode=fast", {"layers": 4, "mode": "fast"}),
    ("set", '{"text": "with blanks"}', {"text": "with blanks"}),
    ("env", ("A=1", "B=x=y", "C="), {"A": "1", "B": "x=y", "C": ""}),
    ("env", {"OMP_NUM_THREADS": 4, "SCALE": 0.5}, {"OMP_NUM_THREADS": "4", "SCALE": "0.5"}),
    ("env", '{"GREETING": "good day"}', {"GREETING": "good day"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given_value", "expected"), GOOD)
def test_a_good_value_is_read_as_it_was_meant(name: str, given_value: object, expected: object) -> None:
    """Texts of flags and variables, and typed values of the file, come to the same."""
    value = check(name, given_value, "orch.toml")

    assert value == expected
    assert type(value) is type(expected)


BAD: list[tuple[str, object, str]] = [
    ("target", "embedder.py", "names no class"),
    ("target", "embedder.py:", "names no class"),
    ("target", "embedder.py:My-Class", "'My-Class' is no name"),
    ("target", "models/embedder:Embedder", "neither a .py file nor a module"),
    ("target", 7, "not a string"),
    ("name", "", "1 to 64 letters"),
    ("name", "..", "1 to 64 letters"),
    ("name", "a/b", "1 to 64 letters"),
    ("name", "x" * 65, "1 to 64 letters"),
    ("replicas", "0", "from 1 to 4096"),
    ("replicas", -1, "from 1 to 4096"),
    ("replicas", 4097, "from 1 to 4096"),
    ("replicas", 2.0, "from 1 to 4096"),
    ("replicas", True, "from 1 to 4096"),
    ("replicas", "9" * 5_000, "from 1 to 4096"),
    ("device", "gpu", "cuda:0,1"),
    ("device", "cuda:", "cuda:0,1"),
    ("device", "cuda:0,00", "named twice"),
    ("vram_per_replica_bytes", "7XB", "7GiB"),
    ("vram_per_replica_bytes", "7G", "7GiB"),
    ("vram_per_replica_bytes", "1KiB", "from 64MiB to 16TiB"),
    ("vram_per_replica_bytes", 7.5, "not a size"),
    ("vram_per_replica_bytes", True, "not a size"),
    ("gpu_utilization", "0", "above 0, at most 1"),
    ("gpu_utilization", "1.01", "above 0, at most 1"),
    ("gpu_utilization", "nan", "not a finite number"),
    ("gpu_utilization", "most", "not a number"),
    ("gpu_utilization", 10**400, "not a number"),
    ("gpu_utilization", True, "not a number"),
    ("max_batch_size", "0", "from 1 to 1024"),
    ("max_batch_wait_s", "-1", "from 0 to 10"),
    ("max_batch_wait_s", "11s", "from 0 to 10"),
    ("max_batch_wait_s", "2 days", "not a number"),
    ("queue_limit", "1e3", "from 1 to 10000000"),
    ("max_attempts", 0, "from 1 to 100"),
    ("timeout_s", "0", "more than 0"),
    ("timeout_s", "inf", "not a finite number"),
    ("drain_timeout_s", "2h", "from 0 to 3600"),
    ("max_payload_bytes", "1TiB", "from 1KiB to 64GiB"),
    ("log_max_bytes", "1", "from 4KiB"),
    ("listen", "5555", "not an endpoint"),
    ("listen", "http://127.0.0.1:80", "not an endpoint"),
    ("listen", "tcp://0.0.0.0:5555", "CURVE"),
    ("listen", "tcp://*:5555", "CURVE"),
    ("listen", "tcp://example.org:5555", "CURVE"),
    ("listen", "tcp://127.0.0.1:0", "0 is no port"),
    ("listen", "tcp://127.0.0.1:*", "* is no port"),
    ("listen", "tcp://127.0.0.1:65536", "65536 is no port"),
    ("listen", "ipc://here.sock", "absolute path"),
    ("listen", "ipc://@abstract", "absolute path"),
    ("listen", "ipc:///" + "x" * 107, "the path has 108 bytes and a socket's may have 107"),
    ("set", ("depth",), "'depth' has no ="),
    ("set", ("my-key=1",), "'my-key' cannot be the name of an argument"),
    ("set", 7, "not a table"),
    ("set", "{oops", "not a JSON object"),
    ("set", {"day": dt.date(2024, 5, 1)}, "day is no string"),
    ("set", {"rate": float("nan")}, "rate is no string"),
    ("env", ("=1",), "'' cannot be the name of a variable"),
    ("env", ("CUDA_VISIBLE_DEVICES=0",), "choose GPUs with --device"),
    ("env", {"FAST": True}, "the value of FAST"),
    ("env", {"FAST": "a\0b"}, "the value of FAST"),
]


@pytest.mark.parametrize(("name", "value", "hint"), BAD)
def test_a_bad_value_says_what_is_allowed_instead(name: str, value: object, hint: str) -> None:
    """One line with the key, the source, and the way out."""
    message = refusal_of(name, value)

    assert hint in message
    assert SETTINGS[name].key in message
    assert "(from orch.toml)" in message
    assert "\n" not in message


def test_a_huge_or_unprintable_value_stays_one_short_line() -> None:
    """A message is for reading, whatever was in the value."""
    assert "x" * SHOWN_MAX + "…" in refusal_of("name", "x" * 5_000)
    assert r"name = a\nb" in refusal_of("name", "a\nb")


def test_an_unknown_key_of_the_file_names_the_nearest_one() -> None:
    """A slip of the pen is mended without opening the manual."""
    with pytest.raises(ConfigError, match=r"orch\.toml: unknown key replica; did you mean replicas\?"):
        resolve(file={"replica": 2})
    with pytest.raises(ConfigError, match=r"unknown key zzz; the keys are target, name, replicas"):
        resolve(file={"zzz": 2})


def test_keys_of_the_file_may_be_written_with_dashes() -> None:
    """As on the command line; both spellings of one key are a contradiction."""
    assert resolve(file={"drain-timeout": "5s"}).config.drain_timeout_s == 5.0
    with pytest.raises(ConfigError, match="drain_timeout is given twice"):
        resolve(file={"drain-timeout": 5, "drain_timeout": 6})


def test_tables_are_laid_over_each_other_key_by_key() -> None:
    """--set changes one setting of the model and leaves the file's others."""
    resolved = resolve(
        {"set": ("depth=9",)}, {"ORCH_ENV": "A=1"}, {"set": {"depth": 1, "mode": "fast"}, "env": {"A": "0", "B": "2"}}
    )

    assert resolved.config.set == {"depth": 9, "mode": "fast"}
    assert resolved.origins["set"] == "orch.toml + --set"
    assert resolved.config.env == {"A": "1", "B": "2"}
    assert resolved.origins["env"] == "orch.toml + ORCH_ENV"


def test_a_required_setting_that_nobody_gave_is_asked_for() -> None:
    """`orch up` alone says where a target can be written."""
    with pytest.raises(ConfigError, match=r"no target given: .*ORCH_TARGET.* target in orch\.toml"):
        resolve(required=("target",))
    assert resolve(environ={"ORCH_TARGET": "m:f"}, required=("target",)).config.target == "m:f"


def test_unknown_variables_are_warned_of_and_known_ones_are_not() -> None:
    """ORCH_REPLICA does nothing, and whoever set it ought to know."""
    environ = {
        "ORCH_REPLICA": "3",
        "ORCH_ZZZZZZ": "",
        "ORCH_RUNTIME_DIR": "/run/x",
        "ORCH_REPLICAS": "2",
        "PATH": "/bin",
    }

    assert resolve(environ=environ).warnings == (
        "ORCH_REPLICA means nothing to orch; did you mean ORCH_REPLICAS?",
        "ORCH_ZZZZZZ means nothing to orch",
    )


def test_gpu_indexes_are_those_that_the_device_names() -> None:
    """None where no GPU is named: then it is all of them, or none."""
    indexes = {text: resolve({"device": text}).config.gpu_indexes for text in ("auto", "cpu", "cuda", "cuda:0,2")}

    assert indexes == {"auto": None, "cpu": None, "cuda": None, "cuda:0,2": (0, 2)}


def test_every_default_is_a_value_its_own_setting_allows() -> None:
    """So whatever `orch config` shows can be written into the file."""
    for name in SETTINGS:
        default = getattr(Config(), name)
        if default not in (None, ""):
            assert check(name, default, "default") == default
            assert check(name, format_value(name, default).replace("-", ""), "default") == default


def test_a_config_is_frozen_and_goes_through_json() -> None:
    """Children and programs get the same values that were checked."""
    config = resolve({"set": ("depth=2",), "listen": "ipc:///run/x", "target": "m:f"}).config

    with pytest.raises(dataclasses.FrozenInstanceError):
        config.replicas = 2  # type: ignore[misc]
    values = json.loads(json.dumps(config.to_json()))
    assert Config(**{**values, "command": tuple(values["command"])}) == config  # JSON knows lists alone


def test_values_are_shown_in_words_they_could_be_given_in() -> None:
    """Sizes with their unit, seconds with theirs, and a dash for what is unset."""
    assert format_value("max_payload_bytes", GIB) == "1.0 GiB"
    assert format_value("timeout_s", 300.0) == "300s"
    assert format_value("listen", None) == "-"
    assert format_value("set", {"a": 1, "b": "x"}) == "a=1 b=x"
    assert format_value("replicas", "auto") == "auto"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
KEYS = st.sampled_from([setting.key for setting in SETTINGS.values()])


@given(file=st.dictionaries(KEYS, VALUES, max_size=3), words=st.lists(st.text(max_size=20), max_size=3))
def test_any_input_gives_a_config_or_a_config_error(file: Mapping[str, Any], words: list[str]) -> None:
    """Nothing that a file or a flag can hold ends in another exception, and what is accepted fits JSON."""
    try:
        resolved = resolve({"set": tuple(words)}, {"ORCH_ENV": " ".join(words)}, file)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017  both outcomes are right
    else:
        json.dumps(resolved.config.to_json(), allow_nan=False)
