from __future__ import annotations

import pytest

from vmlockctl.ondisk import bitmap


@pytest.mark.parametrize(
    ("host_id", "byte", "value"),
    [(1, 0, 0x01), (8, 0, 0x80), (9, 1, 0x01), (2000, 249, 0x80), (2048, 255, 0x80)],
)
def test_bit_of_a_host(host_id: int, byte: int, value: int) -> None:
    """Byte 256 + (t-1)//8, least significant bit first (section 1.4)."""
    data = bitmap.to_bytes([host_id])
    assert len(data) == 256
    assert data[byte] == value
    assert sum(map(bool, data)) == 1
    assert bitmap.host_ids_in(bytes(256) + data) == [host_id]


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_several_hosts(sector_size: int) -> None:
    """In a sector of 4096 bytes it stands at 256 too; what comes behind is not of it."""
    sector = (b"\xff" * 256 + bitmap.to_bytes([7, 3, 2000, 3])).ljust(sector_size, b"\xff")
    assert bitmap.host_ids_in(sector) == [3, 7, 2000]


def test_nobody() -> None:
    assert bitmap.to_bytes([]) == bytes(256)
    assert bitmap.host_ids_in(bytes(512)) == []


@pytest.mark.parametrize("host_id", [0, -1, 2049])
def test_a_host_id_outside_is_our_own_mistake(host_id: int) -> None:
    with pytest.raises(AssertionError):
        bitmap.to_bytes([host_id])
