"""A progress bar for `Client.map`, where a person looks on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(inputs: Iterable[Any], *, shown: bool) -> Iterator[Callable[[], None]]:
    """Yields what to call after each input. Nothing is drawn unless standard error is a terminal and rich is there."""
    if not shown or not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:  # a client needs pyzmq, msgpack and numpy only
        yield lambda: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("requests", total=len(inputs) if isinstance(inputs, Sized) else None)
        yield lambda: bar.advance(task)
