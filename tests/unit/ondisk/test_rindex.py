"""The resource index on the disk: fields, places, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.ondisk.test_geometry import each_geometry
from vmlockctl.errors import (
    OnDiskError,
    WrongGeometry,
    WrongRindexEntry,
    WrongRindexLockspace,
    WrongRindexMagic,
    WrongRindexOffset,
    WrongRindexVersion,
    WrongSectorSize,
)
from vmlockctl.ondisk.geometry import DEFAULT_GEOMETRY, Geometry
from vmlockctl.ondisk.leader import name_field
from vmlockctl.ondisk.rindex import (
    ENTRY,
    Entry,
    Header,
    entries_in,
    new_entry,
    new_header,
    rindex_area,
    verify_entry,
    verify_header,
)

PLACE = 8 << 20


def header(geometry: Geometry = DEFAULT_GEOMETRY, **fields: Any) -> Header:
    return new_header(geometry, rx_offset=PLACE, space_name="space")._replace(**fields)


@each_geometry
def test_round_trip_and_places(geometry: Geometry) -> None:
    made = header(geometry)
    area = rindex_area(made)
    assert len(area) == geometry.align_size
    assert Header.from_bytes(area) == made
    assert verify_header(area, rx_offset=PLACE, space_name="space") == made
    assert made.geometry == geometry
    assert made.space == "space"
    assert made.lease_offset == PLACE + geometry.align_size
    for number in (0, 1, made.max_entries - 1):
        place = made.resource_offset(number)
        assert place == PLACE + (2 + number) * geometry.align_size
        assert made.index_of(place) == number
        sector, start = made.entry_sector(number)
        assert sector * geometry.sector_size + start == geometry.sector_size + 64 * number
        assert sector < made.table_sectors
    assert made.resources_within(PLACE + 5 * geometry.align_size) == 3
    assert made.resources_within(0) == 0


@pytest.mark.parametrize(
    ("fields", "error", "number"),
    [
        ({"magic": 0}, WrongRindexMagic, -274),
        ({"version": 0x00020000}, WrongRindexVersion, -275),
        ({"space_name": name_field("other")}, WrongRindexLockspace, -276),
        ({"rx_offset": 0}, WrongRindexOffset, -277),
        ({"sector_size": 1024}, WrongSectorSize, -225),
        ({"flags": 0}, WrongGeometry, -230),
        ({"flags": 8}, WrongGeometry, -230),
    ],
)
def test_a_header_that_is_refused(fields: dict[str, Any], error: type[OnDiskError], number: int) -> None:
    sector = header(**fields).to_bytes().ljust(512, b"\0")
    with pytest.raises(error) as caught:
        verify_header(sector, rx_offset=PLACE, space_name="space")
    assert caught.value.sanlk_rv == number


def test_only_zeros_are_named() -> None:
    with pytest.raises(WrongRindexMagic, match="only zeros"):
        verify_header(bytes(512), rx_offset=PLACE)


def test_any_minor_version_and_name_that_is_there() -> None:
    sector = header(version=0x00010009).to_bytes()
    assert verify_header(sector, rx_offset=PLACE).version == 0x00010009


@pytest.mark.parametrize("place", [0, PLACE, PLACE + (1 << 20), PLACE + (2 << 20) + 512, 1 << 50])
def test_an_offset_that_is_no_place(place: int) -> None:
    with pytest.raises(WrongRindexOffset, match="no place of a resource"):
        header().index_of(place)


def test_more_entries_than_the_area_holds_do_not_count() -> None:
    assert header(max_resources=1 << 31).max_entries == ((1 << 20) - 512) // ENTRY.size
    assert header(max_resources=0).max_entries == 4096


def test_entries() -> None:
    made = header()
    area = bytearray(rindex_area(made))
    good, nameless, wrong = new_entry(made, 0, "res"), Entry(offset=5), Entry(offset=7, name=name_field("x"))
    for number, entry in {0: good, 3: nameless, 9: wrong}.items():
        start = 512 + 64 * number
        area[start : start + 64] = entry.to_bytes()
    area[512 + 64 * 5] = 0
    found = dict(entries_in(made, bytes(area)))
    assert found == {0: good, 3: nameless, 9: wrong}
    assert good.names("res")
    assert good.resource == "res"
    assert not good.names("other")
    verify_entry(made, 0, good)
    verify_entry(made, 1, Entry())
    for number, told in ((3, "has no name"), (9, "wrong offset")):
        with pytest.raises(WrongRindexEntry, match=told):
            verify_entry(made, number, found[number])
    assert dict(entries_in(made, bytes(area[: 512 + 64]))) == {0: good}
    flagged = Entry(flags=3)
    area[512 + 64 : 512 + 128] = flagged.to_bytes()
    assert flagged.is_free
    assert 1 not in dict(entries_in(made, bytes(area)))
