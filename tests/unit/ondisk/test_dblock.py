from __future__ import annotations

import pytest

from vmlockctl.errors import WrongDblock
from vmlockctl.ondisk.dblock import (
    FLAG_RELEASED,
    MAX_MBAL,
    NO_MODE,
    Dblock,
    ModeBlock,
    own_sector,
    verify_dblock,
)

BALLOT = Dblock(mbal=2001, bal=2001, inp=1, inp2=3, inp3=77, lver=5).sealed()


def sector(dblock: Dblock, mode: ModeBlock = NO_MODE) -> bytes:
    return own_sector(dblock, mode, 512)


def test_zeros_need_no_checksum() -> None:
    assert verify_dblock(bytes(512), host_id=1) == Dblock()
    assert verify_dblock(bytes(512), host_id=1).never_used


def test_only_five_fields_say_never_used() -> None:
    """Section 2.5: checksum, mbal, bal, inp and lver; the others may hold anything."""
    odd = Dblock(inp2=7, inp3=8, flags=FLAG_RELEASED)
    assert verify_dblock(sector(odd), host_id=1) == odd


@pytest.mark.parametrize("field", ["mbal", "bal", "inp", "lver"])
def test_each_of_them_needs_the_checksum(field: str) -> None:
    with pytest.raises(WrongDblock):
        verify_dblock(sector(Dblock()._replace(**{field: 1})), host_id=1)


def test_zeros_with_their_checksum_and_released() -> None:
    """What a failed shared acquire of sanlock leaves behind (12.2-f)."""
    blanked = Dblock(checksum=0xCB5AD842, flags=FLAG_RELEASED)
    found = verify_dblock(sector(blanked), host_id=1)
    assert found == blanked == Dblock().sealed()._replace(flags=FLAG_RELEASED)
    assert found.is_released
    assert not found.never_used


def test_a_wrong_checksum_names_the_host() -> None:
    with pytest.raises(WrongDblock, match="host id 17 has a wrong checksum") as caught:
        verify_dblock(sector(BALLOT._replace(checksum=1)), host_id=17)
    assert caught.value.sanlk_rv == -214
    assert caught.value.details["found"] == "0x00000001"


def test_an_absurd_ballot_number_is_damage() -> None:
    assert verify_dblock(sector(BALLOT._replace(mbal=MAX_MBAL).sealed()), host_id=1).mbal == MAX_MBAL
    with pytest.raises(WrongDblock, match="host id 4 has an absurd ballot number"):
        verify_dblock(sector(BALLOT._replace(mbal=MAX_MBAL + 1).sealed()), host_id=4)


def test_the_checksum_covers_48_bytes() -> None:
    data = bytearray(sector(BALLOT, ModeBlock.shared(3)))
    for position in (52, 56, 127, 128, 136, 300):
        data[position] ^= 0x80
    verify_dblock(bytes(data), host_id=1)
    for position in range(0, 52, 5):
        damaged = bytearray(sector(BALLOT))
        damaged[position] ^= 1
        with pytest.raises(WrongDblock):
            verify_dblock(bytes(damaged), host_id=1)


def test_unknown_flags_are_kept() -> None:
    odd = BALLOT._replace(flags=0xFFFFFFFE)
    found = verify_dblock(sector(odd), host_id=1)
    assert found == odd
    assert not found.is_released
    assert found._replace(flags=found.flags | FLAG_RELEASED).is_released


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_one_writer_for_both_structures(sector_size: int) -> None:
    data = own_sector(BALLOT, ModeBlock.shared(9), sector_size)
    assert len(data) == sector_size
    assert data[:56] == BALLOT.to_bytes()
    assert data[128:144] == bytes.fromhex("01000000 00000000 0900000000000000")
    assert not any(data[56:128])
    assert not any(data[144:])


@pytest.mark.parametrize(
    ("mode", "is_shared"),
    [(ModeBlock(), False), (ModeBlock(1, 0), False), (ModeBlock(1, 1), True),
     (ModeBlock(2, 1), False), (ModeBlock(3, 9), True)],
)  # fmt: skip
def test_who_holds_it_shared(mode: ModeBlock, is_shared: bool) -> None:
    """Generation 0 is nobody (section 4.6)."""
    assert ModeBlock.from_bytes(sector(BALLOT, mode)) == mode
    assert mode.is_shared == is_shared


def test_padding_of_the_mode_block_is_ignored() -> None:
    data = bytearray(sector(BALLOT, ModeBlock.shared(3)))
    data[132:136] = b"\xff" * 4
    assert ModeBlock.from_bytes(bytes(data)) == ModeBlock.shared(3)
