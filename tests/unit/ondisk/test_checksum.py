from __future__ import annotations

import pytest

from tests.unit.ondisk.examples import EXAMPLES
from vmlockctl.ondisk.checksum import _make_table, checksum, crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xFFFFFFFE),
        (b"123456789", 0xE8C7BB34),
        (bytes(168), 0x7E11FBD1),
        (bytes(48), 0xCB5AD842),
        (EXAMPLES["E1"][:168], 0x4DA81B89),
        (EXAMPLES["E5"][:168], 0xF28DB4DD),
    ],
    ids=["empty", "digits", "168 zeros", "48 zeros", "E1", "E5"],
)
def test_sanlocks_vectors(data: bytes, expected: int) -> None:
    assert checksum(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"), [(b"", 0), (b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA)]
)
def test_the_owner_notes_sum_is_the_standard_one(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def test_the_table_is_that_of_the_castagnoli_polynomial() -> None:
    """Its entries at the powers of two decide all others: the CRC is linear."""
    table = _make_table()
    assert len(table) == 256
    assert [table[1 << bit] for bit in (0, 3, 7)] == [0xF26B8303, 0x8AD958CF, 0x82F63B78]
    assert all(table[a ^ b] == table[a] ^ table[b] for a in range(256) for b in (1, 128, 255))
