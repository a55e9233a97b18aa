"""A template and the facts of a site give a file's text. Pure: the templates are part of the program."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("orch_deploy", "templates"),
        undefined=jinja2.StrictUndefined,  # a name that a template spells wrong is an error, not a hole in a file
        autoescape=False,  # noqa: S701  no HTML: each value is checked where its setting is read
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def render(template: str, **facts: Any) -> str:
    """The text of `templates/{template}`.

    Raises:
        jinja2.UndefinedError: the template names a fact that is not given.
    """
    return _environment().get_template(template).render(**facts)
