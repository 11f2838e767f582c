"""The library's checksums are the shipped ones, also where they stand in for them."""

from __future__ import annotations

import crc32c
from hypothesis import example, given
from hypothesis import strategies as st

from tests.proofs.checksums import quick_checksum, summing_quickly
from vmlockctl.lease import rindexrecords
from vmlockctl.ondisk import checksum, dblock, leader, ownernote


@given(st.binary(max_size=4096))
@example(b"")
@example(bytes(168))
@example(b"\xff" * 48)
def test_they_are_the_same(data: bytes) -> None:
    assert quick_checksum(data) == checksum.checksum(data)
    assert crc32c.crc32c(data) == checksum.crc32c(data)


def test_the_shipped_ones_come_back() -> None:
    with summing_quickly():
        assert {home.checksum for home in (dblock, leader, rindexrecords)} == {quick_checksum}
    assert {home.checksum for home in (dblock, leader, rindexrecords)} == {checksum.checksum}
    assert ownernote.crc32c is checksum.crc32c
