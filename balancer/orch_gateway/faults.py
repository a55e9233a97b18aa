"""What the protocol answers in place of a result. HTTP sends `status` and {"error": message}, gRPC its own code.

Fault: BadRequest 400 · NotFound 404 · BadResult 500 · Unsupported 501. The errors of orch itself are in orch.errors.
"""

from __future__ import annotations

from typing import ClassVar

MAX_MESSAGE = 500  # characters; a message may quote what a client sent


class Fault(Exception):
    """One request, ended by the gateway with one line for its sender. Abstract: it is always one of those below."""

    status: ClassVar[int]

    def __init__(self, message: str) -> None:
        line = " ".join(message.split()).encode("utf-8", "replace").decode()  # JSON can name half a surrogate pair
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}…")


class BadRequest(Fault):
    """The client sent what the protocol or the model's declaration does not allow."""

    status = 400


class NotFound(Fault):
    """There is no such model, or no such version of it."""

    status = 404


class BadResult(Fault):
    """The model returned something else than it declares."""

    status = 500


class Unsupported(Fault):
    """A part of the protocol that this server leaves out."""

    status = 501
