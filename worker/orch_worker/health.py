"""Whether somebody else's server is well, from how it answers. Pure.

Busy is not hung: a server that runs one request at a time may leave a look at its health unanswered for as long. So it
is given up for what it says or does (an error, a refused connection) several times in a row, and for silence only after
the time that one request may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# While a server loads it is looked at this often: a person who waits sees no difference. One that has answered alike
# for LONG_S, and not as it should, is looked at less often: each look may be a line in its log.
LOADING_LOOK_S, SLOW_LOOK_S, LONG_S = 0.2, 1.0, 5.0
# One failed look may be a garbage collection of its own, or a worker process of it that is being replaced.
MAX_FAILURES: Final = 3
OK_FROM, OK_TO, CLIENT_ERROR_FROM, SERVER_ERROR_FROM = 200, 300, 400, 500  # RFC 9110, 15


@dataclass(frozen=True, slots=True)
class Answer:
    """What one look showed. well: it may be sent requests. failed: it cannot serve now. text: what it did, for people.

    Neither: it answers, but not as asked for, such as 404; a server that was well before goes on counting as well.
    spoke: it did something itself; where nobody listens, the kernel refuses.
    """

    text: str
    well: bool = False
    failed: bool = False
    spoke: bool = False


def of_status(status: int) -> Answer:
    """What an HTTP status means."""
    text = f"answers {status}"
    if OK_TO <= status < CLIENT_ERROR_FROM:
        text = f"redirects ({status}; --health takes the path behind it)"
    return Answer(text, well=OK_FROM <= status < OK_TO, failed=status >= SERVER_ERROR_FROM, spoke=True)


@dataclass(slots=True)
class Health:
    """Owns what is known of one server. where: its address for people. timeout_s: how long silence may last."""

    where: str
    timeout_s: float
    ready: bool = False  # it was well once
    last: Answer | None = None
    failures: int = 0  # in a row
    alike_since: float = 0.0  # when it first did what it has last done

    def heard(self, answer: Answer, now: float) -> None:
        """One look is over. now: monotonic seconds."""
        if answer != self.last:
            self.alike_since = now
        self.last = answer
        self.failures = self.failures + 1 if answer.failed else 0
        self.ready = self.ready or answer.well

    def why_ill(self, silent_s: float) -> str | None:
        """Why it is to be replaced, once it was well; None: it is not. silent_s: how long the present look waits."""
        if not self.ready:
            return None
        if self.failures >= MAX_FAILURES and self.last is not None:
            return f"the server {self.last.text} at {self.where}, {self.failures} times in a row"
        if silent_s > self.timeout_s:
            return f"the server has not answered at {self.where} for {silent_s:.1f} s (--timeout {self.timeout_s:g})"
        return None

    def is_stuck(self, now: float) -> bool:
        """Whether it loads, and has answered alike for long: perhaps it is asked for the wrong thing."""
        spoke = self.last is not None and self.last.spoke
        return spoke and not self.ready and now - self.alike_since >= LONG_S

    def loading_look_s(self, now: float) -> float:
        """Seconds between two looks while it loads."""
        return SLOW_LOOK_S if self.is_stuck(now) else LOADING_LOOK_S

    @property
    def waiting_for(self) -> str:
        """What a server that is not ready yet has last done, for whoever waits for it."""
        return f"it {self.last.text} at {self.where}" if self.last is not None else f"no answer at {self.where} yet"
