"""The OpenAPI document, made from the routes. Pure.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from orch_gateway.manners import MAX_TIMEOUT_S, PRIORITIES
from orch_gateway.refusals import TRY_AGAIN
from orch_gateway.routes import Route
from orch_gateway.schemas import SCHEMAS, ref

DESCRIPTION: Final = (
    "Plain JSON for people, the Open Inference Protocol v2 for clients that speak it, and what the instance tells of "
    'itself. Every error has the form {"error": text}.'
)
JSON_TYPE, EVENTS_TYPE = "application/json", "text/event-stream"
BINARY: Final[dict[str, Any]] = {"application/octet-stream": {"schema": {}}}
EVENTS: Final[dict[str, Any]] = {EVENTS_TYPE: {"schema": {}}}
# What a route takes or gives (its words for it) as content of other kinds, beside or in place of JSON.
BESIDES: Final[Mapping[str, dict[str, Any]]] = {
    "Input": BINARY,
    "Output": {**BINARY, **EVENTS},
    "InferRequest": BINARY,
    "InferAnswer": BINARY,
}
IN_PLACE: Final[Mapping[str, dict[str, Any]]] = {
    "Events": EVENTS,
    "Metrics": {"text/plain": {"schema": {"type": "string"}}},
}
# Bodies that may be left out.
OPTIONAL: Final = frozenset({"IndexRequest"})

SCHEDULING: Final[list[dict[str, Any]]] = [
    {
        "name": "X-Request-Timeout", "in": "header", "required": False,
        "description": "Seconds after which nobody waits for the answer any more.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT_S},
    },
    {
        "name": "X-Request-Priority", "in": "header", "required": False,
        "description": "Which requests go first.",
        "schema": {"enum": list(PRIORITIES)},
    },
]  # fmt: skip
JSON_LENGTH: Final[dict[str, Any]] = {
    "description": "Where the JSON ends and binary tensors begin; 0: the body is the one input of one row.",
    "schema": {"type": "integer", "minimum": 0},
}
LENGTH_NAME: Final = "Inference-Header-Content-Length"
RETRY_AFTER: Final = {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}}

# Why a request is answered so; the first ones may be said on every connection, before anybody looks at the path.
ANY_PATH: Final = (400, 408, 413, 431, 503)
GUARDED: Final = (401, 403, 429)
RUNNING: Final = (415, 500, 504)
REASONS: Final[Mapping[int, str]] = {
    400: "The body, a header or the request itself is not what it should be.",
    401: "No key that is known.",
    403: "A web page of another site.",
    404: "No such model or version.",
    408: "The request came too slowly.",
    413: "The body is too large.",
    415: "A Content-Encoding that is not known.",
    429: "The queue is full, or a key asks faster than it may.",
    431: "The headers are too large.",
    500: "The model failed, or returned what it does not declare.",
    501: "Left out here.",
    503: "It does not serve now, or takes no more.",
    504: "The deadline passed.",
}


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """The whole document, of the routes that have a summary."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.summary:
            paths.setdefault(route.template, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "orch", "version": version, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": dict(SCHEMAS),
            "responses": {_name(status): _refusal(status) for status in REASONS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[^/:]+$"}}
        for name in re.findall(r"\{(\w+)\}", route.template)
    ]
    if route.runs:
        parameters += SCHEDULING
    if route.takes == "InferRequest":
        parameters.append({"name": LENGTH_NAME, "in": "header", "required": False, **JSON_LENGTH})
    responses: dict[str, Any] = {} if route.refuses else {"200": _success(route)}
    for status in sorted({*ANY_PATH, *_refusals(route)}):
        responses[f"{status}"] = {"$ref": f"#/components/responses/{_name(status)}"}
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method} {route.template}").strip("_").lower(),
        "parameters": parameters,
        "responses": responses,
    }
    if route.is_open:
        operation["security"] = []
    if route.takes:
        operation["requestBody"] = {"required": route.takes not in OPTIONAL, "content": _content(route.takes)}
    return operation


def _refusals(route: Route) -> Iterable[int]:
    if not route.is_open:
        yield from GUARDED
    if "{model}" in route.template:
        yield 404
    if route.runs:
        yield from RUNNING
    if route.refuses:
        yield 501


def _success(route: Route) -> dict[str, Any]:
    if not route.gives:
        return {"description": "Yes."}
    found: dict[str, Any] = {"description": "The answer.", "content": _content(route.gives)}
    if route.gives == "InferAnswer":
        found["headers"] = {LENGTH_NAME: JSON_LENGTH}
    return found


def _content(what: str) -> dict[str, Any]:
    return IN_PLACE.get(what) or {JSON_TYPE: {"schema": ref(what)}, **BESIDES.get(what, {})}


def _refusal(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {"description": REASONS[status], "content": {JSON_TYPE: {"schema": ref("Error")}}}
    if status in TRY_AGAIN:
        found["headers"] = RETRY_AFTER
    return found


def _name(status: int) -> str:
    return re.sub(r"\W", "", HTTPStatus(status).phrase.title())
