"""Pure functions of ``ondisk``, remembered: most sectors are decoded many times before they change.

Nothing of ``lease`` is touched. A function of bytes (and of keywords) that reads nothing else and returns
something immutable gives the same answer from a table; an exception is never kept, so it is raised anew.
The checksum of a leader is also computed in another way, which steps over its names; a test holds it against
the shipped one.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from vmlockctl import records
from vmlockctl.lease import ballot, delta, paxos, release, resource
from vmlockctl.ondisk import dblock, leader
from vmlockctl.ondisk.checksum import _make_table, checksum
from vmlockctl.ondisk.leader import LEADER_CHECKSUM_LEN

_TABLE = _make_table()
_CONSTANT = slice(56, 152)  # of a leader: the names, which hardly ever change
_CONSTANT_LEN = _CONSTANT.stop - _CONSTANT.start


def _sum(crc: int, data: bytes) -> int:
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


_sum_once = lru_cache(maxsize=1024)(_sum)
# A CRC is linear: what follows of a state and data is the sum of what follows of the state and zeros, and of
# zero and data. The first for each byte of the state:
_STATE_THEN_ZEROS = [
    [_sum(byte << shift, bytes(_CONSTANT_LEN)) for byte in range(256)] for shift in (0, 8, 16, 24)
]


def quick_checksum(data: bytes) -> int:
    """``ondisk.checksum.checksum``."""
    if len(data) != LEADER_CHECKSUM_LEN:
        return _sum(0xFFFFFFFE, data)
    crc = _sum(_sum_once(0xFFFFFFFE, data[:32]), data[32 : _CONSTANT.start])
    a, b, c, d = _STATE_THEN_ZEROS
    crc = a[crc & 0xFF] ^ b[crc >> 8 & 0xFF] ^ c[crc >> 16 & 0xFF] ^ d[crc >> 24]
    return _sum(crc ^ _sum_once(0, data[_CONSTANT]), data[_CONSTANT.stop :])


_SIZE = 4096
_PATCHES: list[tuple[Any, str, Callable[..., Any]]] = []


def _remember(function: Callable[..., Any], name: str, used: int, *modules: Any) -> None:
    """Keep the answers for the first ``used`` bytes: a record is the same in whatever it was read with."""
    kept = lru_cache(maxsize=_SIZE)(function)

    def remembered(data: Any, **options: Any) -> Any:
        return kept(data[:used], **options)

    _PATCHES.extend((module, name, remembered) for module in modules)


_remember(leader.verify_paxos, "verify_paxos", leader.LEADER.size, resource)
_remember(leader.verify_delta, "verify_delta", leader.LEADER.size, delta)
_remember(dblock.verify_dblock, "verify_dblock", dblock.DBLOCK.size, ballot, paxos, release, resource)
_remember(leader.name_field, "name_field", leader.NAME_LEN, delta)
_checksum = lru_cache(maxsize=_SIZE)(quick_checksum)
_PATCHES.extend((module, "checksum", _checksum) for module in (leader, dblock))

# The records of ``vmlockctl.records`` are made to be quick to define; the standard ones are quick to make.
for record in tuple.__subclasses__():
    if record.__new__ is records._new:
        standard = namedtuple(record.__name__, record._fields, defaults=record._field_defaults.values())
        _PATCHES.extend((record, name, getattr(standard, name)) for name in ("__new__", "_replace"))

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
