"""What an error is over HTTP: a status, and {"error": text}, the form of the Open Inference Protocol. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from orch import errors
from orch_gateway import plain
from orch_gateway.faults import Fault
from orch_gateway.messages import JSON, Response

STATUS_OF: Final[Mapping[type[Exception], int]] = {
    errors.Overloaded: 429,
    errors.DeadlineExceeded: 504,
    errors.WorkerLost: 503,
    errors.Poisoned: 500,
    errors.ModelError: 500,
    errors.NoSuchModel: 404,
    errors.PayloadTooLarge: 413,
    errors.Closed: 503,
    errors.NotRunning: 503,
    TypeError: 400,  # a payload that cannot travel, which a client has made
}
NOT_RUNNING, BUG = "not_running", "bug"
# Statuses after which the same request may be sent again, and when at the earliest.
TRY_AGAIN: Final = frozenset({429, 503})
RETRY_S: Final = 1


class Refused(Exception):
    """A request that is answered with an error before any model sees it. status: of HTTP; code: a word for programs."""

    def __init__(self, status: int, message: str, code: str = "", retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


def refusal(status: int, message: str, *, code: str = "", retry_after_s: float = 0.0) -> Response:
    """An error as an answer."""
    response = Response(status, (plain.dumps(body_of(message, code)),), JSON)
    if status in TRY_AGAIN:
        response.headers.append((b"retry-after", b"%d" % max(RETRY_S, math.ceil(retry_after_s))))
    return response


def refusal_of(err: Exception) -> Response:
    """The answer to a request that ended in this error."""
    status, text, code = error_of(err)
    return refusal(status, text, code=code, retry_after_s=getattr(err, "retry_after_s", 0.0))


def body_of(message: str, code: str = "") -> dict[str, str]:
    """An error as a JSON object; code: a word for programs, where there is one."""
    return {"error": message, "code": code} if code else {"error": message}


def error_of(err: Exception) -> tuple[int, str, str]:
    """An error as status, text and code. What nobody expected is not shown to a client; its code is "bug"."""
    if isinstance(err, Refused):
        return err.status, str(err), err.code
    if isinstance(err, Fault):
        return err.status, str(err), ""
    for kind, status in STATUS_OF.items():
        if isinstance(err, kind):
            return status, str(err), getattr(kind, "code", NOT_RUNNING if status in TRY_AGAIN else "")
    if isinstance(err, errors.RequestError):
        return 500, str(err), err.code
    return 500, "an error that orch did not expect; the gateway's log has more", BUG
