"""Pure functions of ``ondisk``, remembered: most sectors are decoded many times before they change.

Nothing of ``lease`` is touched. A function of bytes (and of keywords) that reads nothing else and returns
something immutable gives the same answer from a table; an exception is never kept, so it is raised anew.
The checksum is also computed in another way (two bytes a step), and a test holds it against the shipped one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from struct import Struct
from typing import Any

from vmlockctl.lease import ballot, delta, paxos, release, resource
from vmlockctl.ondisk import dblock, leader
from vmlockctl.ondisk.checksum import checksum

_BYTE_TABLE_BITS = 8
_WORDS = {size: Struct(f"<{size // 2}H") for size in range(0, 514, 2)}


def _words_table() -> list[int]:
    polynomial = 0x82F63B78
    table = []
    for word in range(1 << 16):
        for _ in range(16):
            word = (word >> 1) ^ (polynomial if word & 1 else 0)
        table.append(word)
    return table


_table: list[int] = []


def quick_checksum(data: bytes) -> int:
    """``ondisk.checksum.checksum`` for data of even length."""
    if not _table:
        _table.extend(_words_table())
    table, crc = _table, 0xFFFFFFFE
    for word in _WORDS[len(data)].unpack(data):
        crc = table[(crc ^ word) & 0xFFFF] ^ (crc >> 16)
    return crc


_SIZE = 4096
_PATCHES: list[tuple[Any, str, Callable[..., Any]]] = []


def _remember(function: Callable[..., Any], name: str, *modules: Any) -> None:
    kept = lru_cache(maxsize=_SIZE)(function)
    _PATCHES.extend((module, name, kept) for module in modules)


_remember(leader.verify_paxos, "verify_paxos", resource)
_remember(leader.verify_delta, "verify_delta", delta)
_remember(dblock.verify_dblock, "verify_dblock", ballot, paxos, release, resource)
_remember(leader.name_field, "name_field", delta)
_PATCHES.extend((module, "checksum", quick_checksum) for module in (leader, dblock))

assert leader.checksum is checksum and dblock.checksum is checksum


@contextmanager
def remembering() -> Iterator[None]:
    """Within this block the shipped procedures decode from memory."""
    before = [(module, name, getattr(module, name)) for module, name, _ in _PATCHES]
    try:
        for module, name, kept in _PATCHES:
            setattr(module, name, kept)
        yield
    finally:
        for module, name, shipped in before:
            setattr(module, name, shipped)
