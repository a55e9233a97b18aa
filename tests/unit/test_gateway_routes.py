"""Paths, plain JSON bodies, models and errors of a gateway, without any connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orch import Tensor, errors, keys
from orch.errors import ConfigError, NotRunning
from orch.payload import RawTensor
from orch_gateway import instances, openapi
from orch_gateway.about import About
from orch_gateway.faults import BadRequest, BadResult, NotFound
from orch_gateway.messages import Request, Response
from orch_gateway.models import Models
from orch_gateway.refusals import Refused, error_of, refusal_of
from orch_gateway.routes import MAX_KNOWN, Route, Routes
from orch_gateway.running import Running

SUM = (Tensor("a", "FP32", (-1,)), Tensor("n", "UINT8", ()), Tensor("t", "BYTES", (2,)))


async def nothing(_request: Request) -> Response:
    """A handler."""
    return Response()


def routes(*templates: str) -> Routes:
    """A table of POST routes."""
    return Routes([Route("POST", template, nothing) for template in templates])


def all_routes() -> list[Route]:
    """The gateway's own table."""
    unused: Any = None
    return [*Running(unused, unused, 1).routes(), *About(unused, unused, unused).routes()]


# --- paths


def test_a_path_fits_the_template_whose_parts_it_has() -> None:
    """Parts hold neither slashes nor colons, so the two forms never mix."""
    table = routes("/v1/models/{model}:predict", "/v2/models/{model}/infer")
    assert table.find("POST", "/v1/models/a.b-c:predict").parts == {"model": "a.b-c"}
    assert table.find("POST", "/v2/models/x/infer").parts == {"model": "x"}
    for other in ("/v2/models/x/y/infer", "/v2/models//infer", "/v2/models/x/infer/", "/v1/models/a:b:predict"):
        assert table.find("POST", other).route is None


def test_a_known_path_tells_its_methods() -> None:
    """HEAD means what GET does; anything else is told what there is."""
    table = Routes([Route("GET", "/a", nothing), Route("POST", "/a", nothing)])
    assert table.find("HEAD", "/a").route is table.all[0]
    assert table.find("DELETE", "/a").allowed == ("GET", "POST")
    assert table.find("GET", "/b").allowed == ()


def test_whoever_asks_for_names_makes_no_memory_grow() -> None:
    """What is remembered of paths has a bound."""
    table = routes("/{name}")
    for number in range(3 * MAX_KNOWN):
        table.find("POST", f"/{number}")
    assert len(table._known) <= MAX_KNOWN  # noqa: SLF001  the point of it


def test_no_two_routes_mean_the_same_and_all_are_described() -> None:
    """Each path and method once in the document, with every part that it names."""
    table = all_routes()
    assert len({(route.method, route.template) for route in table}) == len(table)
    document = openapi.document(table, "1")
    told = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert told == {(route.method.lower(), route.template) for route in table if route.summary}
    ids = [each["operationId"] for methods in document["paths"].values() for each in methods.values()]
    assert len(set(ids)) == len(ids)


def test_only_what_tells_nothing_is_open() -> None:
    """Health, the page's files, and the document; never a model, a figure, or the status."""
    shut = {route.template for route in all_routes() if not route.is_open}
    assert {"/predict", "/v1/status", "/metrics", "/v2", "/v2/models/{model}/infer", "/v1/models"} <= shut
    assert all(route.template in shut for route in all_routes() if route.runs)


# --- plain JSON


def test_a_body_is_one_input_or_a_list_of_them() -> None:
    """By its one key; an object with more keys is an input."""
    assert instances.asked(b"3", "text/plain") == instances.Asked([3])
    assert instances.asked(b'{"instances": [1, 2]}', "application/json") == instances.Asked([1, 2], many=True)
    assert instances.asked(b'{"instances": [1], "x": 2}', "") == instances.Asked([{"instances": [1], "x": 2}])
    assert instances.asked(b"\x00", "application/octet-stream") == instances.Asked([b"\x00"])


def test_a_body_that_cannot_be_read_is_the_clients_mistake() -> None:
    """The usual one, a text without its quotation marks, is told how to mend."""
    for body in (b"", b"{", b"[" * 100_000, b"\xff", b'{"instances": 1}', b'{"instances": [' + b"1," * 1024 + b"1]}"):
        with pytest.raises(BadRequest):
            instances.asked(body, "")
    with pytest.raises(BadRequest, match="quotation marks"):
        instances.asked(b"hello", "")


def test_declared_inputs_arrive_as_arrays() -> None:
    """By name, or the value alone of a single one; exactly in the datatype that is declared."""
    row = instances.asked(b'{"a": [1, 2.5], "n": 7, "t": ["x", "\xc3\xa4"]}', "", SUM).rows[0]
    assert (row["a"].dtype, row["a"].tolist()) == (np.float32, [1.0, 2.5])
    assert (row["n"].dtype, row["n"].shape, row["n"]) == (np.uint8, (), 7)
    assert row["t"] == [b"x", "ä".encode()]
    alone = instances.asked(b'{"instances": [[1], {"a": []}]}', "", SUM[:1]).rows
    assert [each["a"].tolist() for each in alone] == [[1.0], []]


@pytest.mark.parametrize(
    "row",
    [
        "3",
        '{"a": [1], "n": 7}',
        '{"a": [1], "n": 7, "t": ["x", "y"], "z": 1}',
        '{"a": [[1]], "n": 7, "t": ["x", "y"]}',
        '{"a": ["1"], "n": 7, "t": ["x", "y"]}',
        '{"a": [true], "n": 7, "t": ["x", "y"]}',
        '{"a": [[1], [1, 2]], "n": 7, "t": ["x", "y"]}',
        '{"a": [1], "n": 256, "t": ["x", "y"]}',
        '{"a": [1], "n": -1, "t": ["x", "y"]}',
        '{"a": [1], "n": 1.5, "t": ["x", "y"]}',
        '{"a": [1], "n": 7, "t": ["x"]}',
        '{"a": [1], "n": 7, "t": ["x", 3]}',
        '{"a": null, "n": 7, "t": ["x", "y"]}',
    ],
)
def test_an_input_that_is_not_as_declared_is_refused(row: str) -> None:
    """Nothing is rounded, wrapped or guessed."""
    with pytest.raises(BadRequest):
        instances.asked(row.encode(), "", SUM)


@given(st.lists(st.floats(width=32), min_size=1, max_size=20))
def test_bfloat16_is_rounded_to_the_nearest(values: list[float]) -> None:
    """As its upper half says: never further off than one part in 256, and what is no number stays none."""
    tensor = instances.asked(json.dumps(values).encode(), "", (Tensor("x", "BF16", (-1,)),)).rows[0]["x"]
    assert isinstance(tensor, RawTensor)
    found = (np.frombuffer(tensor.data, "<u2").astype("<u4") << 16).view("<f4")
    for value, near in zip(np.array(values, np.float32), found, strict=True):
        assert np.isnan(near) == np.isnan(value)
        if np.isfinite(value) and np.isfinite(near):
            assert abs(near - value) <= abs(value) / 256 + 1e-40


def test_outputs_are_written_as_what_they_were_asked_as() -> None:
    """Arrays become lists, what is not finite null, and bytes alone stay bytes."""

    def body(response: Response) -> Any:
        return json.loads(b"".join(map(bytes, response.buffers)))

    assert body(instances.answer([np.array([1, 2]), "NaN"], many=True)) == {"predictions": [[1, 2], "NaN"]}
    assert body(instances.answer([[float("nan"), "Infinity", {"x": -np.inf}]], many=False)) == [
        None,
        "Infinity",
        {"x": None},
    ]
    assert instances.answer([b"\xff"], many=False).content_type == b"application/octet-stream"
    with pytest.raises(BadResult, match="JSON"):
        instances.answer([{1, 2}], many=False)


# --- models


def row(**facts: Any) -> dict[str, Any]:
    """What the supervisor tells of a model."""
    told = {"name": "m", "reason": "", "accepts": True, "max_batch_size": 4, "max_batch_wait_s": 0.0}
    return {**told, "inputs": [["x", "FP32", [-1, 3]]], "outputs": [], "streams": False, **facts}


def test_a_model_is_found_by_name_and_is_the_first_without_one() -> None:
    """Its declaration is as it was told."""
    models = Models()
    with pytest.raises(NotRunning, match="starting"):
        models.taking()
    models.replace([row(), row(name="n")])
    assert models.taking().name == "m"
    assert models.taking("n", "1").inputs == (Tensor("x", "FP32", (-1, 3)),)
    for name, version in (("o", ""), ("n", "2")):
        with pytest.raises(NotFound):
            models.taking(name, version)


def test_requests_wait_for_a_model_that_has_served_and_not_for_one_that_never_did() -> None:
    """Health says in both cases that it does not serve now."""
    models = Models()
    models.replace([row(reason="starting", accepts=False), row(name="n", reason="without a worker")])
    assert models.taking("n").name == "n"
    assert models.find("n")[1] == "without a worker"
    with pytest.raises(NotRunning, match="m is starting"):
        models.taking("m")


# --- errors and keys


def test_every_error_has_a_status_and_a_line() -> None:
    """Nothing of an error that nobody expected is shown."""
    told = {
        errors.Overloaded("full", 1.2): (429, "overloaded"),
        errors.DeadlineExceeded("late"): (504, "deadline"),
        errors.WorkerLost("lost"): (503, "lost"),
        errors.Poisoned("bad"): (500, "poisoned"),
        errors.ModelError("ValueError: x"): (500, "model"),
        errors.NoSuchModel("no"): (404, "no_such_model"),
        errors.PayloadTooLarge("large"): (413, "too_large"),
        errors.NotRunning("gone"): (503, "not_running"),
        errors.Closed("gone"): (503, "closed"),
        errors.RequestError("new"): (500, "failed"),
        BadRequest("wrong"): (400, ""),
        Refused(403, "no", "origin"): (403, "origin"),
    }
    for error, (status, code) in told.items():
        assert error_of(error) == (status, str(error), code)
    status, text, code = error_of(ZeroDivisionError("secret"))
    assert (status, code, "secret" in text) == (500, "bug", False)


def test_who_may_try_again_is_told_when() -> None:
    """In whole seconds, rounded up, and never zero."""

    def after(err: Exception) -> bytes | None:
        return dict(refusal_of(err).headers).get(b"retry-after")

    assert after(errors.Overloaded("full", 1.2)) == b"2"
    assert after(errors.Overloaded("full")) == b"1"
    assert after(errors.NotRunning("gone")) == b"1"
    assert after(errors.ModelError("x")) is None


def test_keys_are_kept_as_digests_and_told_once(tmp_path: Path) -> None:
    """The file is this user's alone, and one that is damaged is an error, never an empty one."""
    path = tmp_path / "state" / "keys.json"
    assert keys.read(path) == []
    token = keys.add(path, "app", 2.0)
    assert token not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    found = keys.read(path)
    assert [(each["name"], each["digest"], each["rate"]) for each in found] == [("app", keys.digest_of(token), 2.0)]
    for name in ("app", "a b", ""):
        with pytest.raises(ConfigError):
            keys.add(path, name, None)
    with pytest.raises(ConfigError, match="there are: app"):
        keys.remove(path, "other")
    keys.remove(path, "app")
    assert keys.read(path) == []
    path.write_text("[]")
    with pytest.raises(ConfigError, match="holds no keys"):
        keys.read(path)
