"""The words of a command that runs once for each replica: what stands in braces is filled in. Pure.

Only the names below are places to fill in. Any other brace stays as it is: a word may be JSON, or a format of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Final

# port: where the replica's server is to listen. replica: its id, such as r0. device: cuda:0 (each server sees one GPU
# alone), or cpu.
PLACES: Final = ("port", "replica", "device")
PORT: Final = "{port}"
_PLACE: Final = re.compile(r"\{(" + "|".join(PLACES) + r")\}")
SHOWN_WORDS: Final = 2  # what runs and what it runs: `python api_server.py`


def fill(word: str, values: Mapping[str, str]) -> str:
    """The word with the value of each place. values: one for every name of PLACES."""
    return _PLACE.sub(lambda found: values[found[1]], word)


def names_port(words: Iterable[str]) -> bool:
    """Whether one of the words says where to listen."""
    return any(PORT in word for word in words)


def title(words: Sequence[str]) -> str:
    """A command's name for people: `python api_server.py` of `/usr/bin/python api_server.py --listen ...`.

    A module's name stands for its file: `python uvicorn` of `python -m uvicorn ...`.
    """
    first = [word for word in words if word != "-m"][:SHOWN_WORDS]
    shown = [word for word in first if not word.startswith("-") and not _PLACE.search(word)]
    return " ".join(PurePath(word).name or word for word in shown)
