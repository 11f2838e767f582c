"""Every worked example of the specification: decoded, re-encoded exactly, and built from its fields."""

from __future__ import annotations

import pytest

from tests.unit.ondisk.examples import EXAMPLES, SECTOR_SIZE
from vmlockctl.ondisk import bitmap
from vmlockctl.ondisk.area import lockspace_area, resource_area
from vmlockctl.ondisk.dblock import NO_MODE, Dblock, ModeBlock, own_sector, verify_dblock
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY
from vmlockctl.ondisk.leader import (
    Leader,
    name_field,
    new_delta,
    new_paxos,
    verify_delta,
    verify_paxos,
)
from vmlockctl.ondisk.request import Request, verify_request

DELTA = new_delta(DEFAULT_GEOMETRY, space_name="specls", io_timeout=10)
ACQUIRED = DELTA._replace(
    owner_id=2, owner_generation=1, resource_name=name_field("hostB"), timestamp=2623, io_timeout=1
).sealed()
EVENT = ACQUIRED._replace(
    timestamp=2625, write_id=7, write_generation=0x1234, write_timestamp=0x5678
).sealed()
PAXOS = new_paxos(DEFAULT_GEOMETRY, space_name="specls", resource_name="resA")
OWNED = PAXOS._replace(
    owner_id=1, owner_generation=1, lver=1, timestamp=2624, write_id=1, write_generation=1,
    write_timestamp=2624,
).sealed()  # fmt: skip

PHASE_1 = Dblock(mbal=1, lver=1).sealed()
PHASE_2 = Dblock(mbal=1, bal=1, inp=1, inp2=1, inp3=2624, lver=1).sealed()
RELEASED = PHASE_2._replace(flags=1)
SHARED = Dblock(mbal=2002, bal=2002, inp=2, inp2=1, inp3=2624, lver=2).sealed()._replace(flags=1)

LEADERS = {
    "E1": DELTA,
    "E2": ACQUIRED,
    "E4": EVENT._replace(timestamp=0).sealed(),
    "E5": PAXOS,
    "E7a": OWNED,
    "E7b": OWNED._replace(timestamp=0).sealed(),
}

DBLOCKS = {
    "E8": (PHASE_1, NO_MODE),
    "E9": (PHASE_2, NO_MODE),
    "E10": (RELEASED, NO_MODE),
    "E11": (SHARED, ModeBlock.shared(1)),
}

CHECKSUMS = {
    "E1": 0x4DA81B89, "E2": 0x0B0FF01F, "E3": 0xC7E8C5E3, "E4": 0x9022E3F8, "E5": 0xF28DB4DD,
    "E7a": 0xFA8ECCC8, "E7b": 0x5F48E72D, "E8": 0x9E4FB861, "E9": 0x61A094EA, "E10": 0x61A094EA,
    "E11": 0x39443F1C,
}  # fmt: skip


@pytest.mark.parametrize("name", LEADERS)
def test_leaders(name: str) -> None:
    sector = EXAMPLES[name]
    assert LEADERS[name].sector(SECTOR_SIZE) == sector
    assert Leader.from_bytes(sector) == LEADERS[name]
    assert Leader.from_bytes(sector).to_bytes() == sector[:200]
    assert Leader.from_bytes(sector).checksum == CHECKSUMS[name]


@pytest.mark.parametrize("name", ["E1", "E2", "E3", "E4"])
def test_delta_records_verify(name: str) -> None:
    leader = verify_delta(EXAMPLES[name], space_name="specls")
    assert leader.geometry == DEFAULT_GEOMETRY
    assert leader.is_free == (name in ("E1", "E4"))


@pytest.mark.parametrize("name", ["E5", "E7a", "E7b"])
def test_paxos_leaders_verify(name: str) -> None:
    leader = verify_paxos(EXAMPLES[name], space_name="specls", resource_name="resA", host_id=1)
    assert (leader.space, leader.resource) == ("specls", "resA")
    assert leader.is_free == (name != "E7a")
    assert leader.owner == ((0, 0) if name == "E5" else (1, 1))


def test_a_renewal_with_an_event_and_a_bit() -> None:
    sector = EXAMPLES["E3"]
    built = EVENT.to_bytes().ljust(256, b"\0") + bitmap.to_bytes([1])
    assert built == sector
    assert bitmap.host_ids_in(sector) == [1]
    assert Leader.from_bytes(sector).checksum == CHECKSUMS["E3"]


@pytest.mark.parametrize("name", DBLOCKS)
def test_dblocks(name: str) -> None:
    sector = EXAMPLES[name]
    dblock, mode = DBLOCKS[name]
    assert own_sector(dblock, mode, SECTOR_SIZE) == sector
    assert verify_dblock(sector, host_id=1) == dblock
    assert Dblock.from_bytes(sector).to_bytes() == sector[:56]
    assert ModeBlock.from_bytes(sector) == mode
    assert dblock.checksum == CHECKSUMS[name]
    assert dblock.is_released == (name in ("E10", "E11"))
    assert mode.is_shared == (name == "E11")


def test_requests() -> None:
    assert Request().to_bytes() == EXAMPLES["E6"][:20]
    assert Request(lver=4, force_mode=2).to_bytes() == EXAMPLES["E6b"][:20]
    assert verify_request(EXAMPLES["E6"]) == Request()
    assert verify_request(EXAMPLES["E6b"]) == Request(lver=4, force_mode=2)


def test_whole_areas() -> None:
    lockspace = lockspace_area(DEFAULT_GEOMETRY, space_name="specls", io_timeout=10)
    assert lockspace == EXAMPLES["E1"] * 2000 + bytes(48 * SECTOR_SIZE)
    resource = resource_area(DEFAULT_GEOMETRY, space_name="specls", resource_name="resA")
    assert resource == EXAMPLES["E5"] + EXAMPLES["E6"] + bytes(2046 * SECTOR_SIZE)
