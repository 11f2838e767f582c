"""Mutations of records whose layout is known, with the checksum repaired or left as it was.

A CRC is linear: the sum of ``a ^ b`` is the sum of ``a``, changed by what ``b`` alone changes. So a mutation
is an integer to be xored to the record, and a second one that carries the change of the checksum with it; any
number of either can be combined for the price of a few xors, and the checksum stays right, or wrong.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from struct import Struct
from typing import NamedTuple

from tests.proofs.checksums import quick_checksum
from vmlockctl.ondisk.dblock import DBLOCK, DBLOCK_CHECKSUM_LEN, MAX_MBAL, MODE_BLOCK_OFFSET, Dblock
from vmlockctl.ondisk.leader import (
    DELTA_MAGIC,
    DELTA_VERSION,
    LEADER,
    LEADER_CHECKSUM_LEN,
    PAXOS_CLEARED_MAGIC,
    PAXOS_MAGIC,
    PAXOS_VERSION,
    Leader,
)
from vmlockctl.ondisk.request import REQUEST, REQUEST_MAGIC, REQUEST_VERSION, Request

RECORD_LEN = 512  # of a sector of either size: what lies behind is zeros that nobody reads

BOUNDARIES = sorted(
    {(1 << bits) + step for bits in (0, 1, 8, 15, 16, 31, 32, 62, 63, 64) for step in (-1, 0, 1)}
    | {3, 7, 9, 10, 60, 250, 251, 500, 501, 512, 1000, 1999, 2000, 2001, 2002, 2047, 2048, 4096, 10**9}
    | {0x10, 0x11, 0x20, 0x40, 0x80, 0xF0, 0x30, 0xA0}
    | {DELTA_MAGIC, PAXOS_MAGIC, PAXOS_CLEARED_MAGIC, REQUEST_MAGIC}
    | {DELTA_VERSION, PAXOS_VERSION, REQUEST_VERSION, 0x00030000, 0x00060000, 0x00060009, 0x00070004}
    | {MAX_MBAL - 1, MAX_MBAL + 1, MAX_MBAL - 26 * 2000, MAX_MBAL - 26 * 2000 + 1}
)  # fmt: skip

NASTY_NAMES = [
    name.ljust(48, b"\0")[:48]
    for name in (
        b"",
        b"\x1b[2J\x1b]0;owned\x07",
        b"\x9b31m",
        b"a\0b" * 16,
        b"\xff\xfe\xfd",
        b"x" * 48,
        b"x" * 47,
        "\u202eevil\u2066".encode(),
        "\u200b\ufeff\u2028".encode(),
        "\U000e0041".encode(),
        b"\xed\xa0\x80\xed\xb0\x80",
        b"[red]bold[/red]",
        b"a\r\nb\tc\x7f",
        b"../../etc/passwd",
        b"%s%n{0}",
        ("e" + "\u0301" * 20).encode(),
    )
]


class Layout(NamedTuple):
    """The fields of a record as (offset, size), and what its checksum covers."""

    fields: tuple[tuple[int, int], ...]
    used: int
    checked: int = 0
    sum_offset: int = 0


def _layout(
    names: Sequence[str], struct: Struct, sizes: Sequence[int], *, checked: int, extra: int
) -> Layout:
    assert len(names) == len(sizes) and sum(sizes) == struct.size
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    sum_offset = offsets[names.index("checksum")] if checked else 0
    return Layout(tuple(zip(offsets, sizes)), extra or struct.size, checked, sum_offset)


_LEADER_SIZES = [4] * 4 + [8] * 5 + [48] * 2 + [8] * 2 + [4] + [2] * 2 + [8] * 3
LEADER_LAYOUT = _layout(Leader._fields, LEADER, _LEADER_SIZES, checked=LEADER_CHECKSUM_LEN, extra=272)
REQUEST_LAYOUT = _layout(Request._fields, REQUEST, [4, 4, 8, 4], checked=0, extra=24)
_DBLOCK = _layout(Dblock._fields, DBLOCK, [8] * 6 + [4] * 2, checked=DBLOCK_CHECKSUM_LEN, extra=144)
# The mode block stands in the same sector: flags, padding, generation.
DBLOCK_LAYOUT = _DBLOCK._replace(
    fields=(*_DBLOCK.fields, (MODE_BLOCK_OFFSET, 4), (MODE_BLOCK_OFFSET + 4, 4), (MODE_BLOCK_OFFSET + 8, 8))
)


def repaired(delta: int, layout: Layout) -> int:
    """The same change of a record, together with the change of the checksum that it calls for."""
    if not layout.checked:
        return delta
    shift = 8 * layout.sum_offset
    covered = delta.to_bytes(RECORD_LEN, "little")[: layout.checked]
    difference = quick_checksum(covered) ^ quick_checksum(bytes(layout.checked))
    return (delta & ~(0xFFFFFFFF << shift)) | difference << shift


@cache
def _bit_flips(layout: Layout) -> tuple[list[int], list[int]]:
    raw = [1 << bit for bit in range(8 * layout.used)]
    return raw, [repaired(delta, layout) for delta in raw]


class Mutator:
    """Endless mutations of one record."""

    def __init__(self, record: bytes, layout: Layout, others: Sequence[bytes] = (), *, seed: int = 0) -> None:
        self._base = int.from_bytes(record[:RECORD_LEN].ljust(RECORD_LEN, b"\0"), "little")
        self._sealed = repaired(self._base, layout) if layout.checked else self._base
        if layout.checked:  # ``repaired`` reckons from zeros, whose sum is not 0
            self._sealed ^= quick_checksum(bytes(layout.checked)) << 8 * layout.sum_offset
        deltas = [delta for delta in self._deltas(layout, others, random.Random(seed)) if delta]
        flips, repaired_flips = _bit_flips(layout)
        # Three mutations in four are a field's own, the others are flips of any bit.
        self._raw = (deltas, deltas, deltas, flips)
        fixed = [repaired(delta, layout) for delta in deltas]
        self._repaired = (fixed, fixed, fixed, repaired_flips)

    def _deltas(self, layout: Layout, others: Sequence[bytes], source: random.Random) -> Iterator[int]:
        for offset, size in layout.fields:
            mask = (1 << 8 * size) - 1
            now = self._base >> 8 * offset & mask
            values = [*BOUNDARIES, now + 1, now - 1, source.getrandbits(8 * size)]
            if size == 48:
                values = [int.from_bytes(name, "little") for name in NASTY_NAMES]
                values.append(source.getrandbits(8 * size))
            for value in values:
                if 0 <= value <= mask:
                    yield (now ^ value) << 8 * offset
        for other in others:  # a sector of another host, or of another kind, stands here
            yield self._base ^ int.from_bytes(other[:RECORD_LEN].ljust(RECORD_LEN, b"\0"), "little")
        for end in (0, 1, 16, 48, 52, 56, 104, 152, 168, 176, 200, 256):  # a write that was torn
            yield self._base >> 8 * end << 8 * end
        for _ in range(20):
            start, length = source.randrange(layout.used), source.randrange(1, 64)
            yield source.getrandbits(8 * length) << 8 * start & ((1 << 8 * layout.used) - 1)

    def cases(self, source: random.Random, count: int) -> Iterator[bytes]:
        """``count`` mutated records: more than half of them with the right checksum."""
        draw, raw, fixed = source.random, self._raw, self._repaired
        for _ in range(count):
            kind = draw()
            if kind < 0.6:
                value, pools = self._sealed, fixed
            elif kind < 0.99:
                value, pools = self._base, raw
            else:
                yield source.getrandbits(8 * RECORD_LEN).to_bytes(RECORD_LEN, "little")
                continue
            more = True
            while more:
                at = draw() * 4
                pool = pools[int(at)]
                value ^= pool[int(at % 1 * len(pool))]
                more = draw() < 0.4
            yield value.to_bytes(RECORD_LEN, "little")

    def one(self, source: random.Random) -> bytes:
        return next(self.cases(source, 1))
