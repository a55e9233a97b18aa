"""One `orch up` of our own: started, watched until it is settled, scaled, and stopped whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from orch import runtime
from orch.errors import DoesNotFit, Exit, NotRunning, OrchError, StartFailed
from orch.supervising import control
from orch.tuning.grid import Outcome

# The module that ties a command to its parent's life.
LEASHED: Final = "orch_cli.leashed"
POLL_S: Final = 0.1
CALL_S: Final = 5.0
# Beyond load_timeout: the interpreter's start, the plan, MPS, and the registration.
MARGIN_S: Final = 30.0
# The rungs of a stop. The supervisor's own ladder drains (we send nothing more), then gives workers 10 s, then kills.
RUNGS: Final = ((signal.SIGTERM, 20.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
# The warden, after a SIGKILL of its supervisor: it looks for so long, and unlinks the directory last.
WARDEN_S: Final = 8.0
STOP_POLL_S: Final = 0.02
TAIL_BYTES: Final = 64 * 1024  # of the output, in which the last words are looked for

# Exit codes that one configuration can have and another not; what else `orch up` ends with holds for all of them.
REFUSALS: Final = {
    Exit.DOES_NOT_FIT: Outcome.DOES_NOT_FIT,
    Exit.OUT_OF_MEMORY: Outcome.OUT_OF_MEMORY,
    Exit.MODEL_LOAD: Outcome.FAILED,
}
GENERAL: Final = frozenset({Exit.BAD_CONFIG, Exit.USAGE, Exit.ALREADY_RUNNING, Exit.ADDRESS_IN_USE, Exit.RUNTIME_DIR})
NO_MPS: Final = "mps = on"  # how the refusal begins that is about MPS alone


class Refused(Exception):
    """This configuration cannot be had. reason: in one line."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class Instance:
    """Owns the process of one `orch up`, which ends with us. `stop` it in any case.

    words: the command's. output: the file for what it prints. tick: called some ten times a second while waiting; what
    it raises passes through. num_signals: how often we were asked to end; each time more takes the stop a rung further.
    """

    def __init__(
        self,
        words: Sequence[str],
        name: str,
        output: Path,
        *,
        tick: Callable[[], None] = lambda: None,
        num_signals: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._output = output
        self._tick, self._num_signals, self._clock = tick, num_signals, clock
        with output.open("wb") as file:
            # In a session of its own: Ctrl-C is ours to handle, and reaches the whole foreground group.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", LEASHED, str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def settle(self, count: int, load_timeout_s: float, on_ready: Callable[[int], None]) -> dict[str, Any]:
        """Wait until `count` replicas are READY and nothing changes any more; the status then.

        on_ready: called with the number of READY replicas, whenever it changes.

        Raises:
            Refused: so many cannot be had.
            OrchError: no configuration could be.
        """
        num_ready, deadline = -1, 0.0
        while True:
            self._tick()
            if self._process.poll() is not None:
                raise self._ended()
            status = self.status()
            replicas = status.get("replicas", [])
            now_ready = sum(each.get("state") == "READY" for each in replicas)
            if status.get("settled") and now_ready == count == len(replicas):
                return status
            self._refuse_hopeless(status, count)
            if now_ready != num_ready:
                num_ready, deadline = now_ready, self._clock() + load_timeout_s + MARGIN_S
                on_ready(num_ready)
            if self._clock() > deadline:
                raise Refused(
                    Outcome.FAILED,
                    f"{num_ready} of {count} replicas were READY in time (--load-timeout; log: {self._logs})",
                )
            time.sleep(POLL_S)

    def scale(self, count: int) -> None:
        """Ask for more replicas.

        Raises:
            Refused: so many do not fit, or it cannot be done now.
        """
        try:
            control.call(self.name, "scale", timeout=CALL_S, replicas=count)
        except DoesNotFit as err:
            raise Refused(Outcome.DOES_NOT_FIT, str(err)) from err
        except OrchError as err:
            raise Refused(Outcome.FAILED, str(err)) from err

    def status(self) -> dict[str, Any]:
        """What `orch status --json` shows; nothing while it does not answer."""
        try:
            return control.call(self.name, "status", timeout=CALL_S)
        except NotRunning:
            return {}

    def stop(self) -> None:
        """End it and everything it has started; returns when all of that is gone."""
        seen = self._num_signals()
        for number, patience_s in RUNGS:
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            until = self._clock() + patience_s
            while self._process.poll() is None and self._clock() < until and self._num_signals() == seen:
                time.sleep(STOP_POLL_S)
            seen = self._num_signals()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._await_warden()

    def _await_warden(self) -> None:
        """After a supervisor that could not clean up itself."""
        until = self._clock() + WARDEN_S
        while self._clock() < until:
            try:
                runtime.find(self.name)
            except NotRunning:
                return
            time.sleep(STOP_POLL_S)

    def _refuse_hopeless(self, status: dict[str, Any], count: int) -> None:
        replicas = status.get("replicas", [])
        for each in replicas:
            if each.get("state") == "QUARANTINED":
                reason = str(each.get("reason"))
                raise Refused(outcome_of(reason), f"{each.get('id')}: {reason} (log: {self._logs})")
        if status.get("settled") and len(replicas) < count:
            because = (status.get("plan") or {}).get("because") or ["the plan became smaller"]
            raise Refused(Outcome.DOES_NOT_FIT, f"{len(replicas)} of {count} replicas could be had: {because[-1]}")

    @property
    def _logs(self) -> Path:
        return runtime.log_dir(self.name)

    def _ended(self) -> Refused | OrchError:
        """What its end means for the configuration, or for all of them."""
        code = self._process.returncode
        text = self._last_words().removeprefix("orch: ") or f"orch up ended with exit code {code}"
        if code in GENERAL and not text.startswith(NO_MPS):
            return StartFailed(text, Exit(code))
        return Refused(REFUSALS.get(Exit(code), Outcome.FAILED) if code in REFUSALS else Outcome.FAILED, text)

    def _last_words(self) -> str:
        with self._output.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.startswith(("orch: ", "Error: "))), "")


def outcome_of(reason: str) -> Outcome:
    """Whether what a replica died of was a lack of memory."""
    signs = (f"({Exit.OUT_OF_MEMORY.name})", "MemoryError", "OutOfMemory", "out of memory")
    return Outcome.OUT_OF_MEMORY if any(sign in reason for sign in signs) else Outcome.FAILED
