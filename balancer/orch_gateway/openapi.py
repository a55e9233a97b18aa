"""The OpenAPI document, made from the routes. Pure.

Source: https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from orch_gateway.routes import Route

DESCRIPTION: Final = (
    "Plain JSON for people, the Open Inference Protocol v2 for clients that speak it, and what the instance tells of "
    'itself. Every error has the form {"error": text}.'
)
ANY_JSON: Final[dict[str, Any]] = {"description": "Any JSON value."}
ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "code": {"type": "string"}},
    "required": ["error"],
}
TENSORS: Final[dict[str, Any]] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "parameters": {"type": "object"},
            "data": {"type": "array", "items": {}},
        },
        "required": ["name", "shape", "datatype"],
    },
}
INFER: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": TENSORS,
        "outputs": {"type": "array", "items": {"type": "object"}},
    },
    "required": ["inputs"],
}
OBJECT: Final[dict[str, Any]] = {"type": "object"}
# What else a path may be answered with; "default" stands for every error.
JSON_TYPE, EVENTS_TYPE, BYTES_TYPE = "application/json", "text/event-stream", "application/octet-stream"
HEADERS: Final[list[dict[str, Any]]] = [
    {
        "name": "X-Request-Timeout", "in": "header", "required": False,
        "description": "Seconds after which nobody waits for the answer any more.",
        "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 86400},
    },
    {
        "name": "X-Request-Priority", "in": "header", "required": False,
        "description": "Which requests go first.",
        "schema": {"enum": ["high", "normal", "low"]},
    },
]  # fmt: skip


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
            "schemas": {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    error = {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/Error"}}}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[^/:]+$"}}
        for name in re.findall(r"\{(\w+)\}", route.template)
    ]
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method} {route.template}").strip("_").lower(),
        "parameters": parameters + (HEADERS if route.runs else []),
        "responses": {
            "200": _success(route),
            "default": {"description": "An error, in one line.", "content": error},
        },
    }
    if route.is_open:
        operation["security"] = []
    if route.runs or route.template.endswith("/index"):
        operation["requestBody"] = _body(route)
    return operation


def _success(route: Route) -> dict[str, Any]:
    kinds = {
        ":stream": (EVENTS_TYPE,),
        "/generate_stream": (EVENTS_TYPE,),
        "/predict": (JSON_TYPE, EVENTS_TYPE, BYTES_TYPE),
        ":predict": (JSON_TYPE, EVENTS_TYPE, BYTES_TYPE),
        "/infer": (JSON_TYPE, BYTES_TYPE),
        "/metrics": ("text/plain",),
    }
    told = next((each for ending, each in kinds.items() if route.template.endswith(ending)), (JSON_TYPE,))
    empty = route.is_open or route.template.endswith("/load") or route.template.endswith("/unload")
    if empty:
        return {"description": "Yes."}
    return {"description": "The answer.", "content": {kind: {"schema": {}} for kind in told}}


def _body(route: Route) -> dict[str, Any]:
    if route.template.endswith("/infer"):
        content = {JSON_TYPE: {"schema": INFER}, BYTES_TYPE: {"schema": {}}}
    elif route.template.endswith(("/generate", "/generate_stream", "/index")):
        content = {JSON_TYPE: {"schema": OBJECT}}
    else:
        content = {JSON_TYPE: {"schema": ANY_JSON}, BYTES_TYPE: {"schema": {}}}
    return {"required": route.runs, "content": content}
