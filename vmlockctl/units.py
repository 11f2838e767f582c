"""Sizes as people and commands write them."""

from __future__ import annotations

from vmlockctl.errors import UsageError

KIB = 1024
MIB = 1024 * KIB

_SUFFIXES = {"": 1, "K": KIB, "M": MIB}


def parse_size(text: str) -> int:
    """``512``, ``4K`` or ``8M`` in bytes. Raises ``UsageError``."""
    digits = text.rstrip("kKmM")
    suffix = text[len(digits) :].upper()
    if not digits.isdecimal() or suffix not in _SUFFIXES:
        raise UsageError(f"{text!r} is not a size, expected a number with an optional K or M")
    return int(digits) * _SUFFIXES[suffix]


def format_size(size_bytes: int) -> str:
    """``512``, ``4K``, ``8M``: the largest unit that divides it."""
    for suffix, factor in (("M", MIB), ("K", KIB)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{suffix}"
    return str(size_bytes)
