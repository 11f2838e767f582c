from __future__ import annotations

import pytest

from vmlockctl.errors import UsageError, WrongGeometry, WrongSectorSize
from vmlockctl.ondisk.geometry import (
    ALL_GEOMETRIES,
    DEFAULT_GEOMETRY,
    Geometry,
    choose,
    from_leader_fields,
)
from vmlockctl.units import MIB

LVB_SECTOR = 2002  # sanlock's, in the geometries that have room for it

# Section 1.1: sector size, align size, max_hosts, sectors, flag.
TABLE = [
    (512, 1 * MIB, 2000, 2048, 0x10),
    (4096, 1 * MIB, 250, 256, 0x10),
    (4096, 2 * MIB, 500, 512, 0x20),
    (4096, 4 * MIB, 1000, 1024, 0x40),
    (4096, 8 * MIB, 2000, 2048, 0x80),
]

each_geometry = pytest.mark.parametrize("geometry", ALL_GEOMETRIES, ids=lambda g: f"{g[0]}-{g[1] // MIB}M")


@pytest.mark.parametrize(("sector_size", "align_size", "max_hosts", "sectors", "flag"), TABLE)
def test_the_table(sector_size: int, align_size: int, max_hosts: int, sectors: int, flag: int) -> None:
    geometry = choose(sector_size, align_size)
    assert geometry == Geometry(sector_size, align_size)
    assert (geometry.max_hosts, geometry.sectors, geometry.align_flag) == (max_hosts, sectors, flag)


def test_there_are_no_other_geometries() -> None:
    assert set(ALL_GEOMETRIES) == {Geometry(row[0], row[1]) for row in TABLE}
    assert len(ALL_GEOMETRIES) == len(TABLE)


@pytest.mark.parametrize(
    ("sector_size", "align_size"),
    [(512, 2 * MIB), (512, 8 * MIB), (1024, 1 * MIB), (0, 1 * MIB), (4096, 16 * MIB), (4096, 0)],
)
def test_an_invalid_pair_is_refused(sector_size: int, align_size: int) -> None:
    with pytest.raises(UsageError, match="not a valid geometry"):
        choose(sector_size, align_size)


def test_sanlocks_defaults() -> None:
    assert choose(512) == DEFAULT_GEOMETRY == Geometry(512, 1 * MIB)
    assert choose(4096) == Geometry(4096, 8 * MIB)


@each_geometry
def test_sectors_of_hosts(geometry: Geometry) -> None:
    last = geometry.max_hosts
    assert [geometry.delta_sector(host_id) for host_id in (1, 2, last)] == [0, 1, last - 1]
    assert [geometry.dblock_sector(host_id) for host_id in (1, 2, last)] == [2, 3, last + 1]
    assert geometry.dblock_sector(last) < geometry.sectors


@each_geometry
@pytest.mark.parametrize("outside", [-1, 0, "max_hosts + 1"])
def test_no_sector_for_a_host_id_outside(geometry: Geometry, outside: object) -> None:
    host_id = geometry.max_hosts + 1 if isinstance(outside, str) else outside
    assert isinstance(host_id, int)
    with pytest.raises(AssertionError):
        geometry.delta_sector(host_id)
    with pytest.raises(AssertionError):
        geometry.dblock_sector(host_id)


@pytest.mark.parametrize(
    ("num_hosts", "sectors"),
    [(1, 4), (2, 4), (3, 8), (6, 8), (7, 16), (8, 16), (14, 16), (15, 32), (250, 256), (2000, 2048)],
)
def test_a_ballot_reads_a_power_of_two(num_hosts: int, sectors: int) -> None:
    """V in section 6: 8192 bytes for num_hosts 8 at 512."""
    assert Geometry(512, 1 * MIB).ballot_sectors(num_hosts) == sectors


@each_geometry
def test_a_ballot_reads_every_dblock_and_stays_in_the_area(geometry: Geometry) -> None:
    for num_hosts in range(1, geometry.max_hosts + 1):
        sectors = geometry.ballot_sectors(num_hosts)
        assert geometry.dblock_sector(num_hosts) < sectors <= geometry.sectors
        assert sectors & (sectors - 1) == 0


@each_geometry
def test_the_note_is_the_last_4096_bytes_and_no_record_of_sanlock(geometry: Geometry) -> None:
    sector, count = geometry.note_sectors()
    assert (sector + count) * geometry.sector_size == geometry.align_size
    assert count * geometry.sector_size == 4096
    assert sector > geometry.dblock_sector(geometry.max_hosts)
    assert not sector <= LVB_SECTOR < sector + count


@pytest.mark.parametrize(
    ("sector_size", "flags", "expected"),
    [
        (512, 0x10, Geometry(512, 1 * MIB)),
        (512, 0, Geometry(512, 1 * MIB)),
        (4096, 0, Geometry(4096, 8 * MIB)),
        (4096, 0x10, Geometry(4096, 1 * MIB)),
        (4096, 0x20, Geometry(4096, 2 * MIB)),
        (4096, 0x40, Geometry(4096, 4 * MIB)),
        (4096, 0x80, Geometry(4096, 8 * MIB)),
        (4096, 0xC0, Geometry(4096, 4 * MIB)),
        (4096, 0xF0, Geometry(4096, 1 * MIB)),
        (512, 0x10 | 0x1 | 0xFFFFFF00, Geometry(512, 1 * MIB)),
    ],
)
def test_what_a_leader_states(sector_size: int, flags: int, expected: Geometry) -> None:
    """No align flag: the old defaults. Of several the smallest. Unknown bits mean nothing."""
    assert from_leader_fields(sector_size, flags) == expected


@pytest.mark.parametrize("sector_size", [0, 256, 513, 1024, 2048, 8192, 0xFFFFFFFF])
def test_a_wrong_sector_size(sector_size: int) -> None:
    with pytest.raises(WrongSectorSize) as caught:
        from_leader_fields(sector_size, 0x10)
    assert caught.value.sanlk_rv == -225
    assert caught.value.details["found"] == sector_size


@pytest.mark.parametrize("flags", [0x20, 0x40, 0x80])
def test_a_wrong_pair(flags: int) -> None:
    with pytest.raises(WrongGeometry) as caught:
        from_leader_fields(512, flags)
    assert caught.value.sanlk_rv == -230
