"""The access log: a line for each answer, written in batches to standard output, which the supervisor keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Final

from orch_gateway.messages import Request, Response

FLUSH_S: Final = 0.2
# What is beyond it in that time is counted, not written: a log must not be what slows the service.
MAX_LINES: Final = 5_000


class AccessLog:
    """Owns the lines that are not written yet. later: calls something after so many seconds."""

    def __init__(self, form: str, later: Callable[[float, Callable[[], None]], Any]) -> None:
        self._line = json_line if form == "json" else text_line
        self._later = later
        self._lines: list[str] = []
        self._left_out = 0

    def note(self, request: Request, response: Response, num_bytes: int, now: float) -> None:
        """An answer was written."""
        if not self._lines:
            self._later(FLUSH_S, self.flush)
        if len(self._lines) >= MAX_LINES:
            self._left_out += 1
            return
        self._lines.append(self._line(request, response, num_bytes, now))

    def flush(self) -> None:
        """Write them."""
        if self._left_out:
            self._lines.append(f"{self._left_out} more requests")
        text = "".join(f"{line}\n" for line in self._lines)
        self._lines, self._left_out = [], 0
        sys.stdout.write(text)
        sys.stdout.flush()


def text_line(request: Request, response: Response, num_bytes: int, now: float) -> str:
    """For people: peer, key, what was asked, status, bytes of the answer, milliseconds, request id."""
    asked = json.dumps(f"{request.method} {request.path}")  # whatever a path holds, it stays one line
    took_ms = (now - request.began) * 1000
    peer = f"{request.peer} {request.key or '-'}"
    return f"{peer} {asked} {response.status} {num_bytes} B {took_ms:.1f} ms {request.request_id}"


def json_line(request: Request, response: Response, num_bytes: int, now: float) -> str:
    """For programs."""
    return json.dumps(
        {
            "peer": request.peer,
            "key": request.key or None,
            "method": request.method,
            "path": request.path,
            "route": request.route,
            "status": response.status,
            "request_bytes": len(request.body),
            "response_bytes": num_bytes,
            "duration_s": round(now - request.began, 6),
            "request_id": request.request_id,
        },
        separators=(",", ":"),
    )
