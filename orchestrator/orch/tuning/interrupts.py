"""Ctrl-C and the other requests to end, noted when they come and obeyed where it is safe."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """We were asked to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Owns the handlers of SIGNALS inside its `with` block. numbers: those that came, in order.

    What is ignored stays ignored: after nohup, and of a shell's background job.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """To be called often.

        Raises:
            Interrupted: a signal has come.
        """
        if self.numbers:
            raise Interrupted(self.numbers[0])

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.numbers.append(number)
