"""The host_id bitmap in a delta lease sector: "host t, look at something" (section 1.4).

256 bytes at offset 256 of the sector, for 4096-byte sectors too; bit t-1, least significant first.
No checksum covers it. Only renewals set bits; joining and leaving write zeros.
"""

from __future__ import annotations

BITMAP_OFFSET = 256
BITMAP_SIZE = 256


def host_ids_in(sector: bytes) -> list[int]:
    """The host ids whose bit is set, ascending."""
    bits = int.from_bytes(sector[BITMAP_OFFSET : BITMAP_OFFSET + BITMAP_SIZE], "little")
    host_ids = []
    while bits:
        lowest = bits & -bits
        host_ids.append(lowest.bit_length())
        bits ^= lowest
    return host_ids


def to_bytes(host_ids: list[int]) -> bytes:
    """The 256 bytes with exactly these bits set."""
    bits = 0
    for host_id in host_ids:
        assert 1 <= host_id <= BITMAP_SIZE * 8, host_id
        bits |= 1 << (host_id - 1)
    return bits.to_bytes(BITMAP_SIZE, "little")
