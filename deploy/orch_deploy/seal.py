"""A line in a generated file by which a later change of it is noticed: a digest of all its other text. Pure."""

from __future__ import annotations

import enum
import hashlib
import re
from typing import Final

SEAL: Final = "# orch-digest: "
# It names who wrote the file: the command that writes it again.
WRITER: Final = re.compile(r"`(orch deploy \w+)`")


class Standing(enum.Enum):
    """Whose a file is, as its text tells. ABSENT: there is none. CHANGED: ours, and somebody has edited it."""

    ABSENT = enum.auto()
    OURS = enum.auto()
    CHANGED = enum.auto()
    FOREIGN = enum.auto()


def sealed(text: str) -> str:
    """The text with its digest as the second line. The first is a comment that names the command (`WRITER`)."""
    first, _, rest = text.partition("\n")
    return f"{first}\n{SEAL}{_digest(text)}\n{rest}"


def unsealed(text: str) -> str:
    """The text without that line."""
    first, _, rest = text.partition("\n")
    line, _, after = rest.partition("\n")
    return f"{first}\n{after}" if line.startswith(SEAL) else text


def standing(before: str, text: str) -> Standing:
    """Whose `before` is, where `text` is to go. A file by another command of orch is as one of somebody else."""
    if not before:
        return Standing.ABSENT
    if writer(before) is None or writer(before) != writer(text):
        return Standing.FOREIGN
    return Standing.OURS if sealed(unsealed(before)) == before else Standing.CHANGED


def writer(text: str) -> str | None:
    """The command of orch that a text says it is from, such as `orch deploy nginx`."""
    found = WRITER.search(text.partition("\n")[0])
    return found[1] if found else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
