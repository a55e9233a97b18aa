"""One run of `orch tune`: what it holds while it measures, and gives back however it ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orch import runtime
from orch.config import Config
from orch.tuning.grid import Grid
from orch.tuning.instance import Instance
from orch.tuning.interrupts import Interrupts
from orch.tuning.results import Results
from orch.tuning.runner import Place, TimeUp, Tuner, View, deadline

PREFIX: Final = "orch-tune-"


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be measured, and how. words: of `orch up`'s command line. limit_s: seconds in all; None: no limit."""

    config: Config
    grid: Grid
    words: Sequence[str]
    window_s: float
    limit_s: float | None


def measure_grid(request: Request, results: Results, view: View, publish: Callable[[], None]) -> bool:
    """Measure what is left. Returns whether nothing is any more; False: the time limit has passed.

    publish: called after each row. When it returns or raises, nothing that was started runs any more.

    Raises:
        Interrupted: Ctrl-C, SIGTERM or SIGHUP.
        OrchError: no configuration can be had, or the figures cannot be kept.
    """
    name = f"tune-{os.getpid()}"
    in_time = deadline(request.limit_s)
    with Interrupts() as interrupts, tempfile.TemporaryDirectory(prefix=PREFIX) as directory:

        def tick() -> None:
            interrupts.check()
            in_time()

        place = Place(name, Path(directory))

        def start(words: Sequence[str]) -> Instance:
            return Instance(words, name, place.output, tick=tick, num_signals=lambda: len(interrupts.numbers))

        options = list(request.words)
        if request.config.listen is not None:  # that endpoint is for those who serve
            options.append(f"--listen=unix://{directory}/listen.sock")
        tuner = Tuner(
            request.config,
            request.grid,
            results,
            view,
            place,
            start,
            words=["up", *options, "--http=off"],  # that is for those who serve, too
            window_s=request.window_s,
            tick=tick,
            publish=publish,
        )
        try:
            tuner.run()
        except TimeUp:
            return False
        finally:
            if not tuner.has_failed:
                shutil.rmtree(runtime.log_dir(name), ignore_errors=True)
    return True
