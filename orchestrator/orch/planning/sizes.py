"""Sizes in bytes, as people write them and as people read them."""

from __future__ import annotations

import re

from orch.errors import ConfigError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

# GB and GiB differ by 7 %: at 24 of them that is a whole small replica, so neither is ever taken for the other.
UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": TIB,
}

# 18 digits and 9 decimals write any size that exists, and keep a hostile string from becoming a huge number.
_SIZE = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,9}))?\s*([A-Za-z]*)")
_BITS = re.compile(r"[KMGT]i?b")


def parse_size(text: str, key: str = "size") -> int:
    """Bytes named by a text such as "7GiB" (7 x 2^30), "7GB" (7 x 10^9), "1.5 GiB" or "7516192768".

    Units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB in any case, but not "Gb" and its like, which read as bits. A bare
    K, M, G or T is refused: docker takes 7g as GiB, Kubernetes takes 7G as GB. Fractions of a byte are dropped.

    Raises ConfigError naming `key` (the setting the text came from) and the text.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise _bad(key, text, "it is not a number with a unit")
    whole, fraction, unit = match[1], match[2] or "", match[3]
    if unit.upper() in ("K", "M", "G", "T", "KI", "MI", "GI", "TI"):
        letter = unit[0].upper()
        hint = f"{match[0][: -len(unit)].rstrip()}{letter}"
        raise _bad(key, text, f"write {hint}iB (powers of 1024) or {hint}B (powers of 1000)")
    if _BITS.fullmatch(unit):
        raise _bad(key, text, f"{unit} reads as bits; write {unit[:-1]}B")
    if unit and unit.upper() not in UNITS:
        raise _bad(key, text, f"{unit} is not a unit")
    # Whole numbers only: 0.1GB must be 100,000,000 bytes and not what a binary float makes of it.
    num_bytes = int(whole + fraction.ljust(9, "0")) * UNITS[unit.upper() or "B"] // 10**9
    if num_bytes < 1:
        raise _bad(key, text, "it is not at least one byte")
    return num_bytes


def format_size(num_bytes: int) -> str:
    """A size for people, in powers of 1024 with one decimal: "7.0 GiB", "-1.5 MiB", "512 B"."""
    if abs(num_bytes) < KIB:
        return f"{num_bytes} B"
    for unit, factor in (("KiB", KIB), ("MiB", MIB), ("GiB", GIB)):
        if round(abs(num_bytes) / factor, 1) < KIB:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / TIB:.1f} TiB"


def _bad(key: str, text: str, why: str) -> ConfigError:
    return ConfigError(
        f"{key}: {text!r} cannot be used: {why}; allowed: a number above 0 with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"
        " (none: bytes), for example 7GiB"
    )
