"""The OpenAPI document against real instances: schemathesis asks what it allows and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis")

import requests  # noqa: E402  schemathesis's own client
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

from orch.version import __version__  # noqa: E402
from orch_gateway import openapi  # noqa: E402
from orch_gateway.about import About  # noqa: E402
from orch_gateway.running import Running  # noqa: E402
from tests.process.harness import FACTOR, Instance, Place  # noqa: E402
from tests.process.web import Web  # noqa: E402
from tests.unit.gateway_reference import DATATYPES  # noqa: E402

UNUSED: Any = None
DOCUMENT = openapi.document(
    [*Running(UNUSED, UNUSED, 1).routes(), *About(UNUSED, UNUSED, UNUSED).routes()], __version__
)
WITHIN_S = 10.0 * FACTOR
# What the protocol's schemas cannot say: that names are the model's, and that a shape tells how many elements follow.
NOT_SAID = [positive_data_acceptance]
# A deadline of almost nothing passes; nothing is unloaded.
EXPECTED = {504, 501}
# A body that a schema describes is another one with it.
REINTERPRETS = {openapi.LENGTH_NAME}
few = settings(
    max_examples=6, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip


def naming(model: str) -> Any:
    """The document with the names that are found in the paths, which it does not tell to everybody."""
    words = {"model": [model], "version": ["1"]}
    paths = {
        path: {
            method: {
                **operation,
                "parameters": [
                    {**each, "schema": {"enum": words[each["name"]]}} if each["in"] == "path" else each
                    for each in operation["parameters"]
                    if each["name"] not in REINTERPRETS
                ],
            }
            for method, operation in methods.items()
        }
        for path, methods in DOCUMENT["paths"].items()
    }
    return schemathesis.openapi.from_dict({**DOCUMENT, "paths": paths})


echoing, pairing = naming("Echo"), naming("Pair")


@pytest.fixture(scope="module")
def echo(shared_place: Place) -> Instance:
    """A model that declares nothing."""
    return shared_place.up("plain.py:Echo", name="echo", http=True)


@pytest.fixture(scope="module")
def pair(shared_place: Place) -> Instance:
    """A model that declares two tensors."""
    return shared_place.up("tensors.py:Pair", name="pair", http=True)


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """A connection that is kept."""
    with requests.Session() as found:
        yield found


def check(case: Any, url: str, session: Any) -> int:
    """Send it; the answer must be one that the document has."""
    response = case.call(base_url=url, session=session, timeout=WITHIN_S)
    excluded = [*NOT_SAID, *([not_a_server_error] if response.status_code in EXPECTED else [])]
    case.validate_response(response, excluded_checks=excluded)
    found: int = response.status_code
    return found


def test_the_document_is_served(echo: Instance) -> None:
    """By every instance, and it is the one that is tested here."""
    with Web(echo.url) as web:
        assert web.get("/openapi.json").json == DOCUMENT


@echoing.exclude(path_regex="/versions/").parametrize()  # type: ignore[untyped-decorator]  # its module is there or not
@few
def test_each_operation_keeps_its_word(case: Any, echo: Instance, session: Any) -> None:
    """Nothing malformed is accepted or fails the gateway, and each answer is as the document says."""
    check(case, echo.url, session)


# Elements, names and shapes that are nearly right.
NAMES = st.sampled_from(["number", "text", "none", ""])
ELEMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 1025, 2**62, -1]), max_size=3)
TENSORS = st.fixed_dictionaries(
    {"name": NAMES, "datatype": st.sampled_from([*DATATYPES, "FP8"]), "shape": SHAPES},
    optional={
        "data": st.lists(ELEMENTS, max_size=4),
        "parameters": st.none() | st.dictionaries(st.sampled_from(["binary_data_size", "other"]), ELEMENTS, max_size=2),
    },
)
WISHES = st.fixed_dictionaries(
    {"name": st.sampled_from(["number", "text", "none"])},
    optional={
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data", "classification"]), st.sampled_from([True, 0, 1, 2**64, "x"]), max_size=2
        )
    },
)
GOOD: list[dict[str, Any]] = [
    {"name": "number", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, -0.0, 4]},
    {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
]
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.just(GOOD) | st.lists(st.sampled_from(GOOD) | TENSORS, max_size=3)},
    optional={"outputs": st.lists(WISHES, max_size=2), "id": st.text(max_size=3)},
)


@given(body=REQUESTS)
@settings(few, max_examples=100)
def test_what_is_nearly_a_request_is_answered_or_refused(body: Any, pair: Instance, session: Any) -> None:
    """By 200 or 400 and nothing else, and as the document says."""
    operation = pairing["/v2/models/{model}/infer"]["POST"]
    case = operation.Case(path_parameters={"model": "Pair"}, body=body, media_type="application/json")
    assert check(case, pair.url, session) in (200, 400)
