"""`python -P -m orch_worker LINK_FD PAGES_FD`: one replica's process, started by the supervisor."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orch.child import become_child, first_messages
from orch.errors import ConfigError, Exit
from orch.link import Link
from orch.page import Phase, StatusPage
from orch.samples import write_samples
from orch_worker import device
from orch_worker.batching import Batcher
from orch_worker.engine import Engine
from orch_worker.loop import Loop
from orch_worker.target import declaration, describe, load_target

log = logging.getLogger("orch_worker")


@dataclass(frozen=True, slots=True)
class Spec:
    """What the supervisor tells a new worker."""

    replica: str
    generation: int
    slot: int
    path: str  # where the balancer listens
    target: str
    model: str
    device: str
    max_batch_size: int | None = None
    max_batch_wait_s: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    samples: str | None = None  # the file that the samples of the warm-up are to be written to


def main(argv: list[str]) -> int:
    """Load, warm up, say READY, serve; the exit code says how it ended."""
    link_fd, pages_fd = (int(word) for word in argv)
    become_child()
    link = Link(socket.socket(fileno=link_fd))
    spec = _read_spec(link)
    if spec is None:
        return Exit.ORPHANED
    page = StatusPage(pages_fd, spec.slot)
    code, text = Exit.OK, ""
    try:
        engine, batcher, ready = _load(spec, link, page)
    except ConfigError as err:
        code, text = Exit.BAD_CONFIG, str(err)
    except BaseException as err:
        out_of_memory = device.is_out_of_memory(err)
        log.exception("%s could not be loaded", spec.target)
        code = Exit.OUT_OF_MEMORY if out_of_memory else Exit.MODEL_LOAD
        text = f"loading failed: {describe(err)}"
    else:
        try:
            return Loop(spec.path, ready, engine, batcher, page, link).run()
        except BaseException as err:
            log.exception("the worker's loop failed")
            code, text = Exit.BUG, f"the worker's loop failed: {describe(err)}"
    link.send(event="failed", message=text, exit_code=code)
    return code


def _read_spec(link: Link) -> Spec | None:
    messages = first_messages(link)
    return Spec(**messages[0]["spec"]) if messages else None


def _load(spec: Spec, link: Link, page: StatusPage) -> tuple[Engine, Batcher, dict[str, Any]]:
    """All that the loop needs; the last is what it says to the balancer."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # until the loop takes it over: a load may be ended at any point
    started = time.monotonic()
    page.enter(Phase.LOADING)
    link.send(event="loading")
    with device.metered() as meter:
        model = load_target(spec.target, spec.settings)
        meter.before_load()
        max_batch_size = spec.max_batch_size or model.max_batch_size
        max_wait_s = model.max_batch_wait if spec.max_batch_wait_s is None else spec.max_batch_wait_s
        engine = Engine(model, max_batch_size, alive=lambda: page.progress(time.monotonic_ns()))
        try:
            engine.load(spec.device)
            meter.after_load()
            loaded = time.monotonic()
            page.enter(Phase.WARMING)
            warmed = engine.warmup(meter.held_bytes)
            meter.after_warmup()
        except BaseException as err:
            if device.is_out_of_memory(err):
                link.send(event="ran_out", held_bytes=meter.held_bytes())
            raise
        warmed_up = time.monotonic()
    if spec.samples is not None:
        _write_samples(Path(spec.samples), warmed.samples, spec.model)
    link.send(
        event="ready",
        load_s=loaded - started,
        warmup_s=warmed_up - loaded,
        warmup_batches=warmed.batches,
        **({} if warmed.batch_s is None else {"batch_s": warmed.batch_s}),
        max_batch_size=max_batch_size,
        timeout_s=model.timeout,
        **declaration(model, spec.target)._asdict(),
        **device.memory(),
        **meter.facts(),
    )
    ready = {
        "replica": spec.replica,
        "generation": spec.generation,
        "model": spec.model,
        "max_batch_size": max_batch_size,
    }
    return engine, Batcher(max_batch_size, max_wait_s), ready


def _write_samples(path: Path, samples: Sequence[Any], model: str) -> None:
    """For whoever makes a load of them; a replica that cannot write them serves all the same."""
    try:
        write_samples(path, samples, model)
    except Exception as err:  # noqa: BLE001  a full disk, no memory, or a sample whose own methods fail
        log.error("the warm-up samples could not be written to %s: %s", path, describe(err))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
