"""The checksums of records by a library: proofs sum them by the hundred million, at 10 microseconds each.

``summing_quickly`` puts it in the place of the shipped one, and only there; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import crc32c

from vmlockctl.lease import rindexrecords
from vmlockctl.ondisk import dblock, leader, ownernote

_HOMES = (dblock, leader, rindexrecords)  # whoever sums a record


def quick_checksum(data: bytes) -> int:
    """``ondisk.checksum.checksum``: another initial value, and no final xor."""
    return crc32c.crc32c(data, 1) ^ 0xFFFFFFFF


@contextmanager
def summing_quickly() -> Iterator[None]:
    """Within this block the shipped code sums with the library."""
    checksum, of_note = leader.checksum, ownernote.crc32c
    assert all(home.checksum is checksum for home in _HOMES)
    try:
        for home in _HOMES:
            home.checksum = quick_checksum  # type: ignore[attr-defined]
        ownernote.crc32c = crc32c.crc32c
        yield
    finally:
        for home in _HOMES:
            home.checksum = checksum  # type: ignore[attr-defined]
        ownernote.crc32c = of_note
